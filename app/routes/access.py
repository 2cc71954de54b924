"""Who asks. With keys, whoever has one; without, this machine alone, and the user is the peer's address.

A key comes as ``Authorization: Bearer``, as ``x-api-key``, or as the session cookie it was traded for; a WebSocket may
bring it as a subprotocol, since a page can set no header there. Never in the URL, which ends up in logs and histories.

A browser also runs pages from elsewhere, which must not speak as the person at the keyboard. So an ``Origin``, which
browsers send with every request that starts something, and with every WebSocket, must be the server's own. Without keys
the ``Host`` must name this machine too: a page can have its own name resolve to 127.0.0.1 (DNS rebinding).
"""

from collections.abc import Callable, Collection, Mapping
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BadRequest, Forbidden, MillraceError, Unauthorized
from app.routes import errors
from app.routes.keys import SEND_A_KEY, Keys
from app.transports.peer import is_loopback
from app.transports.websocket import CloseCode, refuse

FOREIGN = "pages of other origins may not use this server"

COOKIE = "millrace_session"

OPEN_PATHS = frozenset(("/", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/health/live", "/health/ready"))
"""What needs no key: nothing of any user's is there. What the agents are called and take stands in the OpenAPI."""

PAGE = "/web/"
"""The files of the page at ``/``, which need none either: it is the page that asks for the key."""

METRICS = "/metrics"
"""Needs none on this machine, where the scraper often is."""

BEARER = "bearer."
"""How the subprotocol begins that brings a WebSocket's key."""

KEY_NAMES = frozenset(("key", "api_key", "apikey", "api-key", "x-api-key", "access_token", "token", "authorization"))
"""Names in a query under which a key is meant."""

MAX_PARAMETERS = 100
"""Of a query, each of which is looked at for a key before anybody is known."""

_IN_PROCESS = "testclient"
"""What Starlette's TestClient calls its peer; no network peer has a name for an address."""


class Access:
    """ASGI middleware: sets ``request.state.user``, or refuses with 401 or 403 (a WebSocket: 4401, 4403).

    On paths that need no key the user is ``None``. Pages of ``origins`` may ask beside the server's own. ``anyone``
    lets everybody in who can reach the port, where there are no keys. ``allowance`` is what of a user's limits is left,
    as headers for every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys | None = None,
        origins: Collection[str] = (),
        anyone: bool = False,
        allowance: Callable[[str], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._app = app
        self._keys = keys
        self._origins = origins
        self._anyone = anyone
        self._allowance = allowance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its user."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            user = self._user(scope, Headers(scope=scope))
        except MillraceError as error:
            await _refuse(scope, receive, send, error)
            return
        scope.setdefault("state", {})["user"] = user
        if scope["type"] == "http" and user is not None:
            send = self._telling(user, send)
        await self._app(scope, receive, send)

    def _user(self, scope: Scope, headers: Headers) -> str | None:
        """Who asks; nobody, where nobody need be known. Raises what the request is refused by."""
        peer = (scope.get("client") or ("127.0.0.1", 0))[0]  # a Unix socket has none, and is this machine's
        here = peer == _IN_PROCESS or (is_loopback(peer) and names_loopback(headers.get("host", "")))
        if self._keys is None and not self._anyone and not here:
            raise Forbidden("this server has no keys set, so it serves its own machine only")
        if not may_ask(headers, self._origins):
            raise Forbidden(FOREIGN)
        if self._keys is None:
            return str(peer)
        if scope["type"] == "http" and _needs_no_key(scope, headers, here=here):
            return None
        return _by_key(self._keys, scope, headers)

    def _telling(self, user: str, send: Send) -> Send:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                MutableHeaders(scope=message).update(self._allowance(user))
            await send(message)

        return tell


def sent_key(headers: Headers, subprotocols: Collection[str] = ()) -> str | None:
    """The one key that was sent. Raises ``Unauthorized`` for what is none, or for two that differ."""
    sent = {value.strip() for value in headers.getlist("x-api-key")}
    sent |= {one.removeprefix(BEARER) for one in subprotocols if one.startswith(BEARER)}
    for value in headers.getlist("authorization"):
        scheme, _, secret = value.strip().partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized(f"of Authorization only Bearer is known; {SEND_A_KEY}")
        sent.add(secret.strip())
    if len(sent) > 1:
        raise Unauthorized("two keys that differ were sent; send one")
    key = next(iter(sent), None)
    if key is not None and (not key or " " in key):
        raise Unauthorized(f"the key is empty or malformed; {SEND_A_KEY}")
    return key


def may_ask(headers: Headers, origins: Collection[str]) -> bool:
    """Whether the page that asks, if it is a page, is the server's own or of one of the ``origins``."""
    asking, host = headers.getlist("origin"), headers.get("host", "")
    return not asking or (len(asking) == 1 and asking[0] in {f"http://{host}", f"https://{host}", *origins})


def names_loopback(host: str) -> bool:
    """Whether a ``Host``, with a port or without, names this machine for whoever sends it."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower() == "localhost" or name.lower().endswith(".localhost") or is_loopback(name)


def _needs_no_key(scope: Scope, headers: Headers, *, here: bool) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))  # as the router sees it
    if path == METRICS:  # with one of the headers, it is a proxy that is here
        return here and "x-forwarded-for" not in headers and "forwarded" not in headers
    return (
        path in OPEN_PATHS or path.startswith(PAGE) or (path == "/session" and scope["method"] == "DELETE")
    )  # with whatever cookie


def _by_key(keys: Keys, scope: Scope, headers: Headers) -> str:
    for name, value in _query(scope):
        if keys.holds(name) or keys.holds(value.rpartition(" ")[2]):
            raise Unauthorized(f"a key was sent in the URL, where logs keep it: have it replaced, and {SEND_A_KEY}")
        if name.lower() in KEY_NAMES:
            raise Unauthorized(f"keys are not taken from the URL; {SEND_A_KEY}")
    secret = sent_key(headers, scope.get("subprotocols", ()))
    if secret is not None:
        return keys.user(secret)
    token = cookie_parser(headers.get("cookie", "")).get(COOKIE)
    if token:
        return keys.user_of_session(token)
    raise Unauthorized(f"this server needs a key; {SEND_A_KEY}")


def _query(scope: Scope) -> list[tuple[str, str]]:
    sent = scope.get("query_string", b"").decode("latin-1")
    try:
        return parse_qsl(sent, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise BadRequest(f"the URL has more than {MAX_PARAMETERS} parameters") from None


async def _refuse(scope: Scope, receive: Receive, send: Send, error: MillraceError) -> None:
    if scope["type"] == "websocket":
        code = CloseCode.UNAUTHORIZED if error.status == 401 else CloseCode.FORBIDDEN
        await refuse(scope, receive, send, code, str(error))
        return
    await errors.response(error)(scope, receive, send)
