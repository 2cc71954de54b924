"""LangServe's own routes for every agent: invoke, batch, stream, stream_log, stream_events, schemas, playground.

LangServe does the talking; every call it makes is a run (``runs.runnable``). What it leaves open is closed here,
around each of its routes: the body is read by the same strict reader as everywhere, ``configurable`` is refused but
for what an agent declares, the client's leaving ends the work (LangServe ignores it for ``invoke`` and ``batch``),
a stream tells its run's id in its headers, and an error that was told in a stream is not raised a second time,
which would break the connection under a client that wants to use it again.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar
from uuid import uuid4

import orjson
from fastapi import APIRouter
from fastapi.routing import APIRoute
from langserve import add_routes
from langserve.serialization import WellKnownLCSerializer
from pydantic import BaseModel
from sse_starlette.sse import AppStatus
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from app.errors import InvalidInput
from app.events import codec
from app.protocols import native
from app.routes.stream import run_headers
from app.runs.agent import Agent
from app.runs.runnable import AgentRunnable, calling
from app.runs.runner import Runner
from app.transports.disconnect import until_disconnect
from app.transports.sse import HEADERS


class WireSerializer(WellKnownLCSerializer):
    """LangServe's JSON, also for values it would fail on: what has no JSON form becomes its plain form."""

    @override
    def dumps(self, obj: Any) -> bytes:
        """One line of JSON, safe for readers that take U+2028 for a line's end."""
        try:
            data = orjson.dumps(obj, default=_default)
        except TypeError:
            data = orjson.dumps(codec.plain(obj))
        return codec.one_line(data)


class CallRoute(APIRoute):
    """One of LangServe's routes, with a run's manners."""

    agents: ClassVar[Mapping[str, Agent]]

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see the module."""
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        body = await Request(scope, receive).body()
        _check(body, self.agents[self.path.split("/")[2]])
        run_id = str(uuid4())
        scope["state"]["run_id"] = run_id
        reply = _Reply(send, {} if self.path.endswith("/batch") else run_headers(run_id))
        # sse-starlette keeps one event for the whole process, bound to the loop that first waited for it: a second
        # server in the process (a notebook's, a test's) would fail on it.
        AppStatus.should_exit_event = None
        with calling(scope["state"]["user"]):
            try:
                await until_disconnect(super().handle, body, scope, receive, reply.send)
            except* Exception as group:  # noqa: BLE001 - whatever it is, it is told once: by a frame or by a status
                if not reply.started:
                    raise _first(group) from None
                await reply.end()


class _Reply:
    """The response on its way out: headers added, and a failure after its start turned into its end."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = headers
        self._ended = False
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": list(self._with_ours(message["headers"]))}
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def end(self) -> None:
        """Close the response properly: the error's frame is out already."""
        if not self._ended:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _with_ours(self, headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
        ours = dict(self._headers)
        stream = any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
        if stream:
            ours |= HEADERS
        names = {name.lower().encode() for name in ours}
        yield from ((name, value) for name, value in headers if name not in names)
        yield from ((name.lower().encode(), value.encode()) for name, value in ours.items())


def langserve_routes(runner: Runner) -> APIRouter:
    """``/agents/{agent}/…`` as LangServe serves it, for every agent."""

    class Route(CallRoute):
        agents = runner.agents

    router = APIRouter(route_class=Route)
    for agent in runner.agents.values():
        add_routes(
            router,
            AgentRunnable(runner, agent),
            path=f"/agents/{agent.name}",
            config_keys=("configurable",) if agent.configurable else (),
            disabled_endpoints=None if agent.configurable else ["config_hashes"],
            per_req_config_modifier=_with_run_id,
            serializer=WireSerializer(),
        )
    return router


def _with_run_id(config: dict[str, Any], request: Request) -> dict[str, Any]:
    return {**config, "run_id": request.state.run_id}


def _check(body: bytes, agent: Agent) -> None:
    """The body is JSON, and asks for nothing that clients may not set. Raises ``BadRequest``, ``InvalidInput``.

    Of the rest of a client's config LangServe itself takes nothing: callbacks, recursion limits, tags.
    """
    parsed = native.parse_json(body)
    configs = parsed.get("config") if isinstance(parsed, dict) else None
    for config in configs if isinstance(configs, list) else [configs]:
        asked = config.get("configurable") if isinstance(config, dict) else None
        refused = sorted(set(asked or ()) - agent.configurable) if isinstance(asked, dict) else []
        if refused:
            message = f"config.configurable.{refused[0]} cannot be set for agent {agent.name!r}"
            detail = [{"field": f"config.configurable.{name}", "message": "cannot be set"} for name in refused]
            raise InvalidInput(message, detail=detail)


def _default(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else codec.plain(value)


def _first(group: BaseExceptionGroup[Any]) -> Exception:
    """The error itself, out of the task groups it came through."""
    error: Any = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
