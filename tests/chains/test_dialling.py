"""A host of several addresses: the first that answers is taken, and nothing else stays open."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from chains import dialling
from chains.dialling import Address, dial, resolve


def address(of: socket.socket) -> Address:
    return Address(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, of.getsockname())


@pytest.fixture
def refusing() -> Iterator[Address]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield address(one)


@pytest.fixture
def silent() -> Iterator[Address]:
    """An address behind which nobody takes a connection: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield address(listener)


@pytest.fixture
async def answering() -> AsyncIterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield address(listener)


async def reached(*addresses: Address) -> object:
    with await dial(asyncio.get_running_loop(), list(addresses)) as sock:
        assert sock.getpeername()
        return sock.getpeername()


async def test_the_first_address_that_answers_is_taken(refusing: Address, silent: Address, answering: Address) -> None:
    for addresses in (
        [answering],
        [refusing, answering],
        [silent, answering],
        [answering, silent],
        [silent, refusing, answering],
    ):
        assert await reached(*addresses) == answering.sockaddr


async def test_when_none_answers_the_first_error_is_raised(refusing: Address) -> None:
    with pytest.raises(ConnectionRefusedError):
        await dial(asyncio.get_running_loop(), [refusing, refusing])
    nonsense = Address(12345, socket.SOCK_STREAM, 0, ("127.0.0.1", 1))
    with pytest.raises(OSError, match="not supported"):
        await dial(asyncio.get_running_loop(), [nonsense, refusing])
    with pytest.raises(OSError, match="no address"):
        await dial(asyncio.get_running_loop(), [])


async def test_a_cancel_at_any_moment_closes_every_socket(silent: Address, answering: Address) -> None:
    """An unclosed socket is a warning, and warnings fail."""
    loop = asyncio.get_running_loop()
    for turns in range(10):
        for addresses in ([answering, answering], [silent, answering]):
            task = asyncio.create_task(dial(loop, addresses))
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                task.result().close()
                continue
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 10)


async def test_families_alternate_and_a_literal_address_needs_no_look_up() -> None:
    loop = asyncio.get_running_loop()
    assert await resolve(loop, "127.0.0.1", 80) == []
    assert await resolve(loop, "::1", 80) == []
    found = await resolve(loop, "localhost", 80)
    assert {one.sockaddr[0] for one in found} <= {"127.0.0.1", "::1"}
    six, four = (Address(family, 0, 0, None) for family in (socket.AF_INET6, socket.AF_INET))
    assert dialling._alternating([six, six, six, four, four]) == [six, four, six, four, six]
    assert dialling._alternating([]) == []
