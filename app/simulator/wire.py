"""The answer in the words of the OpenAI wire: a reply cut to the request's bounds, counted, and spelt out as acts.

An act is one thing the server does on the connection: ``Start`` (status and headers), ``Send`` (bytes, and how many
tokens of the answer they carry). What the frames look like is decided here; when they go out, elsewhere.

Pure. Within one response every chunk has the same id, time and model, so all but the token itself is rendered once.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, TypeAlias

import orjson

from app.simulator import tokens
from app.simulator.request import ChatRequest, Refused
from app.simulator.script import Call, Reply

DONE = b"data: [DONE]\n\n"
FRAGMENT = 5  # characters of tool arguments in one chunk


class Start(NamedTuple):
    """The status line and the headers."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]


class Send(NamedTuple):
    """Bytes of the body (none for a token that is only generated, not shown yet), with the tokens they carry."""

    data: bytes
    tokens: int = 0


class Pause(NamedTuple):
    """Silence of that many seconds in mid-answer."""

    seconds: float


class Stall(NamedTuple):
    """Silence until the client leaves."""


class Reset(NamedTuple):
    """The connection is torn down (TCP reset)."""


class HangUp(NamedTuple):
    """The connection is closed where it stands."""


Act: TypeAlias = Start | Send | Pause | Stall | Reset | HangUp

STREAM = Start(200, ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")))


class Completion(NamedTuple):
    """A reply in tokens: what is streamed, and counted, one by one."""

    reasoning: Sequence[str]
    text: Sequence[str]
    calls: Sequence[tuple[Call, Sequence[str]]]
    finish_reason: str
    prompt_tokens: int

    @property
    def tokens(self) -> int:
        """All that was generated: reasoning, text and fragments of arguments."""
        return len(self.reasoning) + len(self.text) + sum(len(fragments) for _, fragments in self.calls)

    @property
    def usage(self) -> dict[str, Any]:
        """The wire's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": len(self.reasoning)},
        }


def prompt_tokens(request: ChatRequest, said: str = "") -> int:
    """The tokens of all contents, and three for each message."""
    contents = [message.text for message in request.messages] + ([said] if said else [])
    return sum(tokens.count(text) + 3 for text in contents)


def complete(
    reply: Reply, request: ChatRequest, said: str = "", *, reasoning: int = 0, fragment: int = FRAGMENT
) -> Completion:
    """Cut ``reply`` at the request's stop texts and token limit, and into tokens.

    ``said``: the words of the answer that the request ended with. ``reasoning``: so many tokens of it first.
    ``fragment``: characters of tool arguments in one chunk.
    """
    text, thoughts = reply.text, [f"{'' if at == 0 else ' '}thought" for at in range(reasoning)]
    stopped = min((at for stop in request.stops if stop and (at := text.find(stop)) >= 0), default=len(text))
    left = _Allowance(request.token_limit)
    thoughts = left.take(thoughts)
    pieces = left.take(tokens.pieces(text[:stopped]))
    calls = [(call, left.take(_fragments(call.arguments, fragment))) for call in reply.calls]
    reason = "length" if left.exceeded else "tool_calls" if calls else "stop"
    return Completion(thoughts, pieces, calls, reason, prompt_tokens(request, said))


class _Allowance:
    """The token limit, used up from front to back."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self.exceeded = False

    def take(self, wanted: list[str]) -> list[str]:
        if self._left is None:
            return wanted
        taken = wanted[: self._left]
        self._left -= len(taken)
        self.exceeded |= len(taken) < len(wanted)
        return taken


def _fragments(arguments: str, size: int) -> list[str]:
    return [arguments[at : at + size] for at in range(0, len(arguments), size)]


class Frames:
    """Renders one response; what all its chunks share is rendered once."""

    def __init__(self, id: str, created: int, model: str, *, include_usage: bool) -> None:  # noqa: A002
        self._head: dict[str, Any] = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._usage: dict[str, Any] = {"usage": None} if include_usage else {}
        self._before, self._after = self.choice({"content": "\0"}).split(b'"\\u0000"')
        self._reasoning_before = self._before.replace(b'{"content":', b'{"reasoning_content":')

    def choice(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """Any chunk of the one choice there is."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return frame({**self._head, "choices": [choice], **self._usage})

    def text(self, token: str) -> bytes:
        """One token of text."""
        return self._before + orjson.dumps(token) + self._after

    def reasoning(self, token: str) -> bytes:
        """One token of reasoning."""
        return self._reasoning_before + orjson.dumps(token) + self._after

    def call(self, index: int, call: Call) -> bytes:
        """The start of a tool call: its id and name, and no arguments yet."""
        named = {"id": call.id} if call.id is not None else {}
        function = {"name": call.name, "arguments": ""}
        return self.choice({"tool_calls": [{"index": index, **named, "type": "function", "function": function}]})

    def fragment(self, index: int, arguments: str) -> bytes:
        """A piece of a tool call's arguments."""
        return self.choice({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})

    def nothing(self) -> bytes:
        """A chunk without a choice."""
        return frame({**self._head, "choices": [], **self._usage})

    def whole(self, message: dict[str, Any], finish_reason: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        """The body of the response that is not streamed."""
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        counted = {"usage": usage} if usage is not None else {}
        return {**self._head, "object": "chat.completion", "choices": [choice], **counted}

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk with the usage, after the last choice."""
        return frame({**self._head, "choices": [], "usage": usage})


def frame(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def streamed(
    completion: Completion, frames: Frames, usage: dict[str, Any] | None, first_token_s: float = 0.0
) -> Iterator[Act]:
    """The streamed response: its headers at once, its chunks after a silence; ``usage`` None: no usage chunk."""
    yield STREAM
    yield Pause(first_token_s)
    content = None if completion.calls else ""
    yield Send(frames.choice({"role": "assistant", "content": content}))
    for token in completion.reasoning:
        yield Send(frames.reasoning(token), 1)
    for token in completion.text:
        yield Send(frames.text(token), 1)
    yield from _streamed_calls(completion, frames)
    yield Send(frames.choice({}, completion.finish_reason))
    if usage is not None:
        yield Send(frames.usage(usage))
    yield Send(DONE)


def _streamed_calls(completion: Completion, frames: Frames) -> Iterator[Act]:
    """All starts, then the arguments in turn: parallel calls arrive interleaved, told apart by their index."""
    for index, (call, _) in enumerate(completion.calls):
        yield Send(frames.call(index, call))
    for row in zip_longest(*(fragments for _, fragments in completion.calls)):
        for index, arguments in enumerate(row):
            if arguments is not None:
                yield Send(frames.fragment(index, arguments), 1)


def whole(
    completion: Completion, frames: Frames, usage: dict[str, Any] | None, first_token_s: float = 0.0
) -> Iterator[Act]:
    """The response in one piece: its tokens take their time, then headers and body come."""
    yield Pause(first_token_s)
    for _ in range(completion.tokens):
        yield Send(b"", 1)
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(fragments)}}
        for call, fragments in completion.calls
    ]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls else "".join(completion.text),
        "refusal": None,
        **({"tool_calls": calls} if calls else {}),
        **({"reasoning_content": "".join(completion.reasoning)} if completion.reasoning else {}),
    }
    yield from json_body(200, frames.whole(message, completion.finish_reason, usage))


def json_body(status: int, body: object, headers: Sequence[tuple[bytes, bytes]] = ()) -> Iterator[Act]:
    """A complete JSON response."""
    data = orjson.dumps(body)
    length = str(len(data)).encode()
    yield Start(status, ((b"content-type", b"application/json"), (b"content-length", length), *headers))
    yield Send(data)


def refusal(error: Refused, *, retry_after: float | None = None) -> Iterator[Act]:
    """An HTTP error with the wire's error object."""
    headers = [(b"retry-after", f"{retry_after:g}".encode())] if retry_after is not None else []
    return json_body(error.status, error.body(), headers)


def models(created: int) -> dict[str, Any]:
    """The body of ``GET /v1/models``."""
    model = {"id": "simulated", "object": "model", "created": created, "owned_by": "millrace"}
    return {"object": "list", "data": [model]}
