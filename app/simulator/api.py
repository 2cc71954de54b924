"""The provider's HTTP surface, and the one place where an answer is played: each act at its time, in its own write.

``GET /v1/models`` and ``POST /v1/chat/completions`` are the OpenAI wire; any ``Authorization`` will do.
``GET /simulator/connections`` and ``/simulator/requests`` show the records to whoever runs it as a process.

A response races against its client's leaving, before the first token and in a stall as well as in mid-answer.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from itertools import chain

import msgspec
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from app.simulator import faults, wire
from app.simulator.connection import LoggedConnection
from app.simulator.faults import Directives
from app.simulator.records import Exchange, Records
from app.simulator.request import ChatRequest, Refused, parse
from app.simulator.script import digest, interrupted, prefilled, reply, resumed
from app.simulator.wire import Act, Frames, HangUp, Pause, Reset, Send, Start

MAX_BODY_BYTES = 64 * 1024 * 1024
LARGE_BODY_BYTES = 256 * 1024  # read in a thread, so that the other streams keep their pace


class Playback(Response):
    """A response that plays acts until they end or the client leaves, whichever is first."""

    def __init__(
        self, acts: Iterable[Act], exchange: Exchange, records: Records, *, tokens_per_second: float = 0.0
    ) -> None:
        self._acts = acts
        self._interval_s = 1 / tokens_per_second if tokens_per_second else 0.0
        self._exchange = exchange
        self._records = records
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        """The ASGI side of it; returns when the response is over for good."""
        connection: LoggedConnection = scope["state"]["connection"]
        playing = asyncio.ensure_future(self._play(connection, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((playing, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            playing.cancel()
            leaving.cancel()
            finished = (await asyncio.gather(playing, leaving, return_exceptions=True))[0]
            self._records.ended(self._exchange, finished=finished is True)
        if isinstance(finished, Exception):
            raise finished

    async def _play(self, connection: LoggedConnection, send: AsgiSend) -> bool:
        """True when every act went out. The clock of the tokens is absolute: a late one does not delay the next."""
        loop = asyncio.get_running_loop()
        due: float | None = None
        for act in self._acts:
            if isinstance(act, Send):
                if act.tokens:
                    due = loop.time() if due is None else due
                    await asyncio.sleep(max(due - loop.time(), 0.0))
                    due += self._interval_s * act.tokens
                if act.data:
                    await send({"type": "http.response.body", "body": act.data, "more_body": True})
                if act.tokens and connection.is_open:
                    self._records.sent(connection.record, self._exchange, act.tokens)
            elif isinstance(act, Start):
                self._exchange.status = act.status
                request_id = (b"x-request-id", f"req_{self._exchange.number}".encode())
                headers = [*act.headers, request_id]
                await send({"type": "http.response.start", "status": act.status, "headers": headers})
            elif isinstance(act, Pause):
                await asyncio.sleep(act.seconds)
            else:
                if isinstance(act, Reset):
                    connection.reset()
                elif isinstance(act, HangUp):
                    connection.hang_up()
                await asyncio.Event().wait()  # until the client, or the reset, ends it
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Provider:
    """The simulated provider's answers; one per server."""

    def __init__(self, records: Records, *, tokens_per_second: float, first_token_s: float, directives: bool) -> None:
        self._records = records
        self._tokens_per_second = tokens_per_second
        self._first_token_s = first_token_s
        self._directives = directives
        self._created = int(time.time())
        self._failed: dict[str, int] = {}  # attempts that failed so far, by conversation; see `_attempt`

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.completions, methods=["POST"]),
                Route("/simulator/connections", self.connections),
                Route("/simulator/requests", self.requests),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    async def connections(self, _request: Request) -> Response:
        """The connections so far, as JSON."""
        return Response(orjson.dumps(self._records.connections), media_type="application/json")

    async def requests(self, _request: Request) -> Response:
        """The requests so far, as JSON."""
        return Response(orjson.dumps(self._records.exchanges), media_type="application/json")

    async def models(self, request: Request) -> Response:
        """The one model there is."""
        acts = wire.json_body(200, wire.models(self._created))
        return Playback(acts, self._begun(request), self._records)

    async def completions(self, request: Request) -> Response:
        """An answer, or the refusal of a request that the real provider would refuse."""
        exchange = self._begun(request)
        speed = 0.0
        try:
            body = await _body(request)
            asked = await asyncio.to_thread(parse, body) if len(body) > LARGE_BODY_BYTES else parse(body)
            _note(exchange, asked)
            conversation = digest(asked)
            asked, said = prefilled(asked)
            told = self._told(asked, request.headers.get("x-simulate", ""))
            acts, speed = self._acts(asked, said, conversation, told, exchange), self._speed(told)
        except Refused as error:
            acts = wire.refusal(error)
        except ClientDisconnect:
            self._records.ended(exchange, finished=False)
            return Response(status_code=400)
        return Playback(acts, exchange, self._records, tokens_per_second=speed)

    def _begun(self, request: Request) -> Exchange:
        connection: LoggedConnection = request.scope["state"]["connection"]
        return self._records.begun(connection.record, request.method, request.url.path)

    def _told(self, asked: ChatRequest, header: str) -> Directives:
        return faults.read(asked.model, header, asked.messages) if self._directives else Directives()

    def _speed(self, told: Directives) -> float:
        speed = self._tokens_per_second if told.tokens_per_second is None else told.tokens_per_second
        return 0.0 if told.burst else speed

    def _acts(
        self, asked: ChatRequest, said: str, conversation: str, told: Directives, exchange: Exchange
    ) -> Iterator[Act]:
        if told.fail_times is not None and self._attempt(conversation, told.fail_times):
            told = told.sound()
        before: list[Act] = [Pause(told.headers_s)] if told.headers_s else []
        if told.status is not None:
            return chain(before, faults.error_status(told, told.status))
        if told.hang_up:
            return chain(before, [HangUp()])
        model = asked.model
        if self._directives:
            model, asked = faults.model_name(model)[0], _without_directives(asked)
        whole = faults.reshape(reply(asked), told)
        before_it = said or interrupted(asked)
        answer = resumed(whole, before_it, told.overlap) if before_it else whole
        completion = wire.complete(answer, asked, said, reasoning=told.reasoning, fragment=told.fragment)
        exchange.prompt_tokens = completion.prompt_tokens
        usage = None if told.no_usage else faults.wrong(completion.usage) if told.wrong_usage else completion.usage
        name, created = f"chatcmpl-{conversation[:20]}{exchange.number:06d}", int(time.time())
        frames = Frames(name, created, model, include_usage=asked.include_usage)
        silence = self._first_token_s if told.first_token_s is None else told.first_token_s
        acts = (
            wire.streamed(completion, frames, usage if asked.include_usage else None, silence)
            if asked.stream
            else wire.whole(completion, frames, usage, silence)
        )
        return chain(before, faults.disturb(acts, told, frames) if told.cuts else acts)

    def _attempt(self, conversation: str, fail_times: int) -> bool:
        """Whether this attempt is to succeed: after so many failures one does, and the count begins anew."""
        failed = self._failed.pop(conversation, 0)
        if failed >= fail_times:
            return True
        self._failed[conversation] = failed + 1
        if len(self._failed) > 10_000:  # conversations that were given up; the oldest goes
            del self._failed[next(iter(self._failed))]
        return False


def _note(exchange: Exchange, asked: ChatRequest) -> None:
    exchange.model = asked.model
    exchange.roles = tuple(message.role for message in asked.messages)
    exchange.stream = bool(asked.stream)


def _without_directives(asked: ChatRequest) -> ChatRequest:
    """The request as the model reads it; the bytes of a text without directives are not touched."""
    messages = [
        msgspec.structs.replace(message, content=faults.without_directives(message.text))
        if message.role == "user" and "[[" in message.text
        else message
        for message in asked.messages
    ]
    return msgspec.structs.replace(asked, messages=messages)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for data in request.stream():
        body += data
        if len(body) > MAX_BODY_BYTES:
            raise Refused(f"The body is larger than {MAX_BODY_BYTES} bytes.", status=413)
    return bytes(body)


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path or method, in the wire's words."""
    assert isinstance(error, HTTPException)
    refused = Refused(f"{error.detail}: {request.method} {request.url.path}.", status=error.status_code)
    return Response(orjson.dumps(refused.body()), error.status_code, media_type="application/json")
