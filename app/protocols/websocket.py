"""The words of the WebSocket ``/ws``: what a client may say in a frame, and what it is told.

Each way a frame is one JSON object. A client's has a ``type``; it is read strictly, since a field that is silently
ignored is a cancel that never happens. The server's has ``stream_id``, ``event`` and ``data``; an event of a run has
its ``id`` too, and its ``data`` are the log's own bytes, the same as go over SSE. ``"final": true`` stands in the last
frame of a stream whose end is not told by ``run.finished``.
"""

from typing import Annotated, Any, Literal

import msgspec

from app.errors import BadRequest, MillraceError
from app.events.event import Event
from app.events.request import RunRequest
from app.protocols import native

StreamId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]

MAX_OFFSET = 10**18 - 1
"""As many digits as ``Last-Event-ID`` may have."""


class Command(msgspec.Struct, tag_field="type", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said to one stream."""

    stream_id: StreamId


class Attach(Command, tag="attach", frozen=True, kw_only=True):
    """Follow a run: what came after the offset ``after``, then what comes."""

    run_id: str
    after: Any = None

    def offset(self) -> int:
        """``after`` as an offset; 0 when it is left out. Raises ``BadRequest``."""
        if self.after is None:
            return 0
        if type(self.after) is not int or not 0 <= self.after <= MAX_OFFSET:
            raise BadRequest("after must be a whole number: the id of the last frame you have", code="bad_event_id")
        return self.after


class Cancel(Command, tag="cancel", frozen=True):
    """End the stream's run now."""


class Pause(Command, tag="pause", frozen=True):
    """Let the stream's run stand still."""


class Continue(Command, tag="continue", frozen=True):
    """Let a paused run go on."""


class Detach(Command, tag="detach", frozen=True):
    """Stop following the run."""


class Ping(msgspec.Struct, tag_field="type", tag="ping", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Is anybody there?"""

    stream_id: StreamId | None = None


class Start(RunRequest, tag_field="type", tag="start", frozen=True, kw_only=True):
    """Start a run and follow it: a run request with the agent's name."""

    stream_id: StreamId
    agent: str

    def request(self) -> RunRequest:
        """The run request alone."""
        return RunRequest(**{field: getattr(self, field) for field in RunRequest.__struct_fields__})


ClientFrame = Start | Attach | Cancel | Pause | Continue | Detach | Ping


class BadFrame(Exception):
    """A frame that is refused as it stands. ``opens``: it was to open the stream ``stream_id``."""

    def __init__(self, error: MillraceError, stream_id: str | None = None, *, opens: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.stream_id = stream_id
        self.opens = opens


class _Address(msgspec.Struct):
    """What can be read of a frame that is otherwise wrong."""

    type: Any = None
    stream_id: Any = None


_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_addresses = msgspec.json.Decoder(_Address)


def parse(message: str | bytes, max_bytes: int) -> ClientFrame:
    """A client's frame. Raises ``BadFrame``, with the ``stream_id`` where it can be read."""
    if isinstance(message, bytes):
        raise BadFrame(_bad("send JSON in text frames; this one is binary"))
    if len(message) > max_bytes or len(body := message.encode("utf-8", "surrogatepass")) > max_bytes:
        raise BadFrame(_bad(f"a frame may have {max_bytes} bytes at the most"))
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong(body, str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadFrame(_bad("the frame is not JSON")) from None


def encode(stream_id: str, offset: int, event: Event, data: bytes) -> bytes:
    """An event of a run; ``data`` is its JSON, as the log has it."""
    return b'{"stream_id":%b,"id":%d,"event":"%b","data":%b}' % (
        msgspec.json.encode(stream_id),
        offset,
        event.type.encode(),
        data,
    )


def error(stream_id: str | None, problem: MillraceError, *, final: bool = False) -> bytes:
    """What is wrong with something the client said. ``final``: the stream is over, or never was."""
    data = {**problem.body()["error"], "retryable": problem.retryable}
    return _own(stream_id, "error", data, final=final)


def end(stream_id: str, reason: Literal["detached", "finished"]) -> bytes:
    """The last frame of a stream that the client left, or whose run had been read to its end before."""
    return _own(stream_id, "end", {"reason": reason}, final=True)


def pong(stream_id: str | None) -> bytes:
    """The answer to a ping."""
    return _own(stream_id, "pong", {})


def _own(stream_id: str | None, event: str, data: Any, *, final: bool = False) -> bytes:
    frame = {"stream_id": stream_id, "event": event, "data": data}
    return msgspec.json.encode({**frame, "final": True} if final else frame)


def _bad(message: str) -> BadRequest:
    return BadRequest(message, code="bad_frame")


def _wrong(body: bytes, problem: str) -> BadFrame:
    """JSON, but no frame. Of one that was to open a stream the fields are judged as an HTTP request's are."""
    stream_id, kind = _address(body)
    opens = stream_id is not None and kind in ("start", "attach")
    if opens and kind == "start":
        return BadFrame(native.invalid(problem, "the frame"), stream_id, opens=True)
    return BadFrame(_bad(f"the frame is not understood: {problem[:300]}"), stream_id, opens=opens)


def _address(body: bytes) -> tuple[str | None, Any]:
    try:
        address = _addresses.decode(body)
        return msgspec.convert(address.stream_id, StreamId), address.type
    except (msgspec.DecodeError, RecursionError):
        return None, None
