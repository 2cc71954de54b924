"""Who asks. Without keys, only this machine is served, and the user is the peer's address.

The ``Host`` must name this machine too: a page from elsewhere can make a browser resolve its own name to
127.0.0.1 (DNS rebinding), and would otherwise speak to the server as the person at the keyboard.
"""

import ipaddress

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
        if not (peer == _IN_PROCESS or (_is_loopback(peer) and _names_loopback(Headers(scope=scope).get("host", "")))):
            error = Forbidden("this server has no keys set, so it serves its own machine only")
            await JSONResponse(error.body(), error.status)(scope, receive, send)
            return
        scope.setdefault("state", {})["user"] = peer
        await self._app(scope, receive, send)


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
