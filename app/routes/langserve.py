"""LangServe's own routes for every agent: invoke, batch, stream, stream_log, stream_events, schemas, playground.

LangServe does the talking; every call it makes is a run (``runs.runnable``). What it leaves open is closed here,
around each of its routes: the body is read by the same strict reader as everywhere, ``configurable`` is refused but
for what an agent declares, and the client's leaving ends the work (LangServe ignores it for ``invoke`` and
``batch``). Its streams go out by our own transport, not by sse-starlette, whose streams all hang on one event for
the whole process: two servers in a process would break each other, and a signal would cut every stream at once.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import ExitStack, suppress
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import orjson
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from langserve import add_routes
from langserve.serialization import WellKnownLCSerializer
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from typing_extensions import override

from app.errors import InvalidInput, MillraceError, RunFailed
from app.events import codec
from app.events.request import MAX_THREAD_ID
from app.protocols import native
from app.protocols.frame import Frame
from app.routes import errors
from app.routes.stream import run_headers
from app.runs.agent import Agent
from app.runs.runnable import AgentRunnable, Caller, caller
from app.runs.runner import Runner
from app.transports.disconnect import ClientLeft, until_disconnect
from app.transports.sse import EndOfFrames, EventStream, Render, Stream, beating
from app.transports.wheel import Wheel

logger = logging.getLogger("millrace.langserve")

PAGE = "/playground/"
"""Where a request comes from that LangServe's own page sends, by its ``Referer``."""

Serve = Callable[[Request], Coroutine[Any, Any, Response]]


def langserve_routes(runner: Runner, *, heartbeat_s: float = 5.0) -> APIRouter:
    """``/agents/{agent}/…`` as LangServe serves it, for every agent."""
    router = APIRouter()
    heartbeats = beating(heartbeat_s)
    for agent in runner.agents.values():
        router.route_class = _route_class(agent, heartbeats)
        add_routes(
            router,
            AgentRunnable(runner, agent),
            path=f"/agents/{agent.name}",
            config_keys=("configurable",) if agent.configurable else (),
            per_req_config_modifier=_with_run_id,
            serializer=WireSerializer(),
            # LangSmith's, which is not set up. (LangServe knows the name, its annotation does not.)
            disabled_endpoints=("token_feedback",),  # type: ignore[arg-type]
        )
    return router


def _route_class(served: Agent, beats: Wheel[Stream]) -> type[APIRoute]:
    class Route(CallRoute):
        agent = served
        heartbeats = beats

    return Route


class CallRoute(APIRoute):
    """One of LangServe's routes, with a run's manners."""

    agent: ClassVar[Agent]
    heartbeats: ClassVar[Wheel[Stream]]

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if "{config_hash}" in path:  # the playground's share links; each route would be described twice
            options["include_in_schema"] = False
        super().__init__(path, endpoint, **options)

    @override
    def get_route_handler(self) -> Serve:
        """See the module."""
        serve = super().get_route_handler()

        async def call(request: Request) -> Response:
            if request.method != "POST":
                return await serve(request)
            try:
                return await self._call(serve, request)
            except (ClientDisconnect, ClientLeft):
                return Response(status_code=204)
            except (MillraceError, HTTPException, RequestValidationError):
                raise
            except Exception:
                # Raised further, it would be answered all the same, and then break the connection.
                logger.exception("%s failed", request.url.path)
                raise MillraceError("The server failed on this request; its log has the details.") from None

        return call

    async def _call(self, serve: Serve, request: Request) -> Response:
        batch = self.path.endswith("/batch")
        sent = _check(native.parse_json(await request.body()), self.agent, batch=batch)
        # A batch's items have an id each, which LangServe gives them.
        request.state.run_id = None if batch else str(uuid4())
        who = Caller(request.state.user, at_playground=urlsplit(request.headers.get("referer", "")).path.endswith(PAGE))
        if not batch and isinstance(sent["config"], dict):
            # LangServe would have to show it in the playground's form, which knows no text that may be missing.
            who.thread_id = (sent["config"].get("configurable") or {}).get("thread_id")
        caller.set(who)
        with ExitStack() as leaving:
            leaving.callback(who.close)
            try:
                response = await until_disconnect(self._answer(serve, _Checked(request, sent), who), request.receive)
            except RunFailed as error:
                response = errors.response(error)
            if isinstance(response, EventStream):
                leaving.pop_all()
            elif not batch:
                response.headers.update(run_headers(request.state.run_id))
        return response

    async def _answer(self, serve: Serve, request: Request, who: Caller) -> Response:
        response = await serve(request)
        if isinstance(response, EventSourceResponse):
            return await _begun(response, who, request.state.run_id, self.heartbeats)
        return response


class _Checked(Request):
    """A request whose body is read already, by a stricter reader than LangServe's."""

    def __init__(self, request: Request, sent: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._sent = sent

    @override
    async def json(self) -> Any:
        return self._sent


async def _begun(response: EventSourceResponse, who: Caller, run_id: str, heartbeats: Wheel[Stream]) -> EventStream:
    """LangServe's stream as every stream of ours is sent, with its run started; its client is a reader until it ends.

    Raises what refused the run, while there is a status to say it by.
    """
    frames = _Frames(cast("AsyncGenerator[dict[str, str], None]", response.body_iterator))
    try:
        await frames.begin(who.started)
        if not who.runs and frames.failure is not None:
            raise frames.failure
    except BaseException:
        await frames.aclose()
        raise
    return EventStream(frames, heartbeats=heartbeats, headers=run_headers(run_id), on_close=who.close)


class _Frames:
    """LangServe's items as frames; see ``transports.sse.FrameSource``. ``failure`` is what ended them, told by one.

    One item is fetched at a time, by a task of its own: a stream that takes none has none fetched.
    """

    def __init__(self, items: AsyncGenerator[dict[str, str], None]) -> None:
        self.failure: Exception | None = None
        self._items = items
        self._next: asyncio.Task[Frame | None] | None = None
        self._woken: Callable[[], object] = lambda: None

    async def begin(self, started: asyncio.Future[None]) -> None:
        """Set off, and wait until the run is started or refused."""
        await asyncio.wait((self._fetch(), started), return_when=asyncio.FIRST_COMPLETED)

    def watch(self, woken: Callable[[], object]) -> None:
        """Have ``woken`` called when an item has been fetched."""
        self._woken = woken

    def take(self, render: Render) -> bytes:
        """The next frame, once it is fetched."""
        fetched = self._next or self._fetch()
        if not fetched.done():
            return b""
        frame, self._next = fetched.result(), None
        if frame is None:
            raise EndOfFrames
        return render((frame,))

    async def aclose(self) -> None:
        """Let go of the generator. It would answer a plain close with another item, which Python forbids."""
        self._woken = lambda: None
        with anyio.CancelScope(shield=True):
            if self._next is not None:
                self._next.cancel()
                await asyncio.gather(self._next, return_exceptions=True)
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await self._items.athrow(asyncio.CancelledError())
            await self._items.aclose()

    def _fetch(self) -> asyncio.Task[Frame | None]:
        self._next = asyncio.create_task(self._advance())
        self._next.add_done_callback(lambda _: self._woken())
        return self._next

    async def _advance(self) -> Frame | None:
        if self.failure is not None:
            return None
        item = await anext(self._items, None)
        if item is None:
            return None
        if item["event"] != "error":
            return Frame(None, item["event"], item.get("data", "").encode())
        try:
            await anext(self._items)  # having told of the error, it raises it
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told once, by this frame
            self.failure = error
        return Frame(None, "error", orjson.dumps(_told(self.failure)))


def _told(failure: Exception | None) -> dict[str, Any]:
    """An error frame's data: LangServe's two keys, and the contract's code."""
    if not isinstance(failure, MillraceError):
        logger.error("a stream failed", exc_info=failure)
        failure = MillraceError("The server failed on this request; its log has the details.")
    return {"status_code": failure.status, "message": str(failure), "code": failure.reason}


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


def _default(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else codec.plain(value)


def _with_run_id(config: dict[str, Any], request: Request) -> dict[str, Any]:
    return {**config, "run_id": request.state.run_id} if request.state.run_id else config


def _check(sent: Any, agent: Agent, *, batch: bool) -> Any:
    """The body has LangServe's shape, and asks for nothing that clients may not set. Raises ``InvalidInput``.

    Of the rest of a client's config LangServe itself takes nothing: callbacks, recursion limits, tags.
    """
    if not isinstance(sent, dict):
        raise _wrong("", "the body must be an object")
    if batch and not isinstance(sent.get("inputs"), list):
        raise _wrong("inputs", "must be a list")
    if sent.get("config") is None:
        sent["config"] = {}
    config = sent["config"]
    if batch and isinstance(config, list) and len(config) != len(sent["inputs"]):
        raise _wrong("config", "must be one object, or a list with one for each of the inputs")
    for one in config if batch and isinstance(config, list) else [config]:
        # The items of a batch run side by side, so they cannot be turns of one conversation.
        allowed = agent.configurable | ({"thread_id"} if agent.has_threads and not batch else set())
        _check_configurable(one.get("configurable") if isinstance(one, dict) else None, agent, allowed)
    return sent


def _check_configurable(asked: Any, agent: Agent, allowed: Collection[str]) -> None:
    if asked is None:
        return
    if not isinstance(asked, dict):
        raise _wrong("config.configurable", "must be an object")
    thread_id = asked.get("thread_id")
    if thread_id is not None and not (isinstance(thread_id, str) and 0 < len(thread_id) <= MAX_THREAD_ID):
        raise _wrong("config.configurable.thread_id", f"must be a text of 1 to {MAX_THREAD_ID} characters")
    # What starts with "__" or "checkpoint_" is LangGraph's own, in the config of every step of a client's graph.
    refused = sorted(one for one in asked if one not in allowed and not one.startswith(("__", "checkpoint_")))
    if refused:
        detail = [{"field": f"config.configurable.{name}", "message": "cannot be set"} for name in refused]
        raise InvalidInput(f"{detail[0]['field']} cannot be set for agent {agent.name!r}", detail=detail)


def _wrong(field: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{field} {problem}".strip(), detail=[{"field": field, "message": problem}])
