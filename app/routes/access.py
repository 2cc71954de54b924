"""Who asks. Without keys, only this machine is served, and the user is the peer's address.

A browser on this machine also runs pages from elsewhere, which must not speak as the person at the keyboard. So the
``Host`` must name this machine (a page can have its own name resolve to 127.0.0.1: DNS rebinding), and an ``Origin``,
which browsers send with every request that starts something, must be the server's own.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Forbidden

_IN_PROCESS = "testclient"
"""What Starlette's TestClient calls its peer; no network peer has a name for an address."""


class LoopbackOnly:
    """ASGI middleware: sets ``request.state.user`` or refuses with 403."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its user."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        peer = (scope.get("client") or ("127.0.0.1", 0))[0]
        refusal = _refusal(peer, Headers(scope=scope))
        if refusal is not None:
            error = Forbidden(refusal)
            await JSONResponse(error.body(), error.status)(scope, receive, send)
            return
        scope.setdefault("state", {})["user"] = peer
        await self._app(scope, receive, send)


def _refusal(peer: str, headers: Headers) -> str | None:
    host, origin = headers.get("host", ""), headers.get("origin")
    if peer != _IN_PROCESS and not (_is_loopback(peer) and _names_loopback(host)):
        return "this server has no keys set, so it serves its own machine only"
    if origin is not None and urlsplit(origin).netloc != host:
        return "pages of other origins may not use this server"
    return None


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def _names_loopback(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower() == "localhost" or name.lower().endswith(".localhost") or _is_loopback(name)
