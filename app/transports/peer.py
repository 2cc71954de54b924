"""Where a request comes from: the socket's own peer, or whom a trusted proxy says that it asks for.

Launchers have their own minds about forwarded headers: uvicorn by itself believes them from loopback, and under
``--forwarded-allow-ips='*'`` from everybody, so that who writes ``X-Forwarded-For: 127.0.0.1`` would be this machine.
So the address is read off the socket again, and the headers are believed of ``trusted_proxies`` alone.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.transports.wire import connection_of

UNKNOWN = "unknown"
"""The peer, where a proxy tells something that is no address."""


class Peer:
    """ASGI middleware, inside ``Wire``: sets ``scope["client"]``, and ``scope["scheme"]`` where a proxy tells it.

    Of ``X-Forwarded-For`` the rightmost address counts that is no trusted proxy's: what stands left of it anybody may
    have written. ``trusted_proxies`` are addresses and networks. Of a Unix socket no headers are believed.
    """

    def __init__(self, app: ASGIApp, *, trusted_proxies: Sequence[str] = ()) -> None:
        self._app = app
        self._by_proxy: Any = ProxyHeadersMiddleware(cast("Any", self._told), list(trusted_proxies))
        self._proxies = bool(trusted_proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its peer."""
        connection = connection_of(scope)
        if connection is not None:
            scope["client"] = connection.peer
        host = (scope.get("client") or ("", 0))[0]
        if self._proxies and plain_address(host) is not None:
            await self._by_proxy(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _told(self, scope: Scope, receive: Receive, send: Send) -> None:
        host, port = scope["client"][:2]
        scope["client"] = (plain_address(host) or UNKNOWN, port)
        await self._app(scope, receive, send)


def plain_address(text: str) -> str | None:
    """An IP address in its one spelling, with IPv4 as such; nothing where it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def is_loopback(text: str) -> bool:
    """Whether this is an address of the machine itself."""
    address = plain_address(text)
    return address is not None and ipaddress.ip_address(address).is_loopback
