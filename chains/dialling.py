"""A TCP connection to a host that may have several addresses, on any event loop.

The addresses are tried in turn, the families alternating; one that does not answer within ``STAGGER_S`` gets company
from the next (RFC 8305, "happy eyeballs"), so that a broken IPv6 costs a quarter of a second and not the whole timeout.
asyncio's own way loses a socket when it is cancelled as one connects (Python 3.11), and uvloop has none.
"""

import asyncio
import socket
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import Any, NamedTuple

STAGGER_S = 0.25


class Address(NamedTuple):
    """Of one socket, as ``getaddrinfo`` has it."""

    family: int
    type: int
    proto: int
    sockaddr: Any


async def resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Address]:
    """The host's addresses, the first family first, and then in turn. None for a literal address: it is its own."""
    if _literal(host):
        return []
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return _alternating([Address(family, kind, proto, sockaddr) for family, kind, proto, _, sockaddr in found])


async def dial(loop: asyncio.AbstractEventLoop, addresses: list[Address]) -> socket.socket:
    """A socket that is connected to the first address that answers. Raises the first one's ``OSError``.

    Whatever happens, a cancel too, every other socket is closed when it returns.
    """
    race = _Race(loop)
    try:
        for address in addresses:
            race.start(address)
            if await race.won(STAGGER_S):
                break
        else:
            while race.running and not await race.won(None):
                pass
        return race.winner()
    finally:
        race.close()


class _Race:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._runners: dict[asyncio.Task[None], socket.socket] = {}
        self._winner: socket.socket | None = None
        self._errors: list[OSError] = []

    @property
    def running(self) -> bool:
        return bool(self._runners)

    def start(self, address: Address) -> None:
        try:
            sock = socket.socket(address.family, address.type, address.proto)
        except OSError as error:  # a family that this machine has not
            self._errors.append(error)
            return
        sock.setblocking(False)
        self._runners[self._loop.create_task(self._loop.sock_connect(sock, address.sockaddr))] = sock

    async def won(self, within_s: float | None) -> bool:
        """Whether one has connected, after that time, or as soon as one of them has or one has failed."""
        if not self._runners:
            return False
        done, _ = await asyncio.wait(self._runners, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            sock = self._runners.pop(task)
            error = task.exception()
            if error is None and self._winner is None:
                self._winner = sock
            else:
                self._lost(sock, error)
        return self._winner is not None

    def winner(self) -> socket.socket:
        if self._winner is None:
            raise self._errors[0] if self._errors else OSError("The host has no address.")
        winner, self._winner = self._winner, None
        return winner

    def close(self) -> None:
        for task, sock in self._runners.items():
            task.cancel()
            task.add_done_callback(_heard)
            sock.close()
        if self._winner is not None:
            self._winner.close()

    def _lost(self, sock: socket.socket, error: BaseException | None) -> None:
        sock.close()
        if isinstance(error, OSError):
            self._errors.append(error)
        elif error is not None:
            raise error


def _alternating(addresses: list[Address]) -> list[Address]:
    first = [one for one in addresses if one.family == addresses[0].family]
    other = [one for one in addresses if one.family != addresses[0].family]
    return [one for one in chain.from_iterable(zip_longest(first, other)) if one is not None]


def _heard(task: asyncio.Task[None]) -> None:
    """An attempt that is over anyway: its error is nobody's."""
    if not task.cancelled():
        task.exception()


def _literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
