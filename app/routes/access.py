"""Who asks. Without keys, only this machine is served, and the user is the peer's address.

A browser on this machine also runs pages from elsewhere, which must not speak as the person at the keyboard. So the
``Host`` must name this machine (a page can have its own name resolve to 127.0.0.1: DNS rebinding), and an ``Origin``,
which browsers send with every request that starts something, and with every WebSocket, must be the server's own.
"""

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from app.errors import Forbidden
from app.transports.websocket import CloseCode, refuse

FOREIGN = "pages of other origins may not use this server"

_IN_PROCESS = "testclient"
"""What Starlette's TestClient calls its peer; no network peer has a name for an address."""


class LoopbackOnly:
    """ASGI middleware: sets ``request.state.user``, or refuses with 403 (a WebSocket: 4403).

    Pages of ``origins`` may ask beside the server's own. For a WebSocket that is its own route's to judge.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its user."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        peer, headers = (scope.get("client") or ("127.0.0.1", 0))[0], Headers(scope=scope)
        if not _on_this_machine(peer, headers):
            await _refuse(scope, receive, send, "this server has no keys set, so it serves its own machine only")
        elif scope["type"] == "http" and not may_ask(headers, self._origins):
            await _refuse(scope, receive, send, FOREIGN)
        else:
            scope.setdefault("state", {})["user"] = peer
            await self._app(scope, receive, send)


def may_ask(headers: Headers, origins: Collection[str]) -> bool:
    """Whether the page that asks, if it is a page, is the server's own or of one of the ``origins``."""
    asking, host = headers.getlist("origin"), headers.get("host", "")
    return not asking or (len(asking) == 1 and asking[0] in {f"http://{host}", f"https://{host}", *origins})


async def _refuse(scope: Scope, receive: Receive, send: Send, reason: str) -> None:
    if scope["type"] == "websocket":
        await refuse(WebSocket(scope, receive, send), CloseCode.FORBIDDEN, reason)
        return
    error = Forbidden(reason)
    await JSONResponse(error.body(), error.status)(scope, receive, send)


def _on_this_machine(peer: str, headers: Headers) -> bool:
    return peer == _IN_PROCESS or (_is_loopback(peer) and _names_loopback(headers.get("host", "")))


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
