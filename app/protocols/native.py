"""Millrace's own protocol: the events as they are. ``POST /agents/{agent}/runs`` in, SSE out.

The frame's ``id`` is the event's offset, so a reader that comes back says with ``Last-Event-ID`` what it has; the
field's syntax is the standard's (WHATWG HTML, "Server-sent events").
"""

import re
from typing import Any

import msgspec

from app.errors import BadRequest, InvalidInput
from app.events.event import Event
from app.events.request import RunRequest
from app.protocols.frame import Frame

_decoder = msgspec.json.Decoder(RunRequest)
_FIELD = re.compile(r"`\$\.?(?P<field>[^`]*)`")
_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]*)`")
_OFFSET = re.compile(r"[0-9]{1,18}", re.ASCII)


def parse(body: bytes) -> RunRequest:
    """A run request from its JSON. Raises ``BadRequest`` for what is not JSON, ``InvalidInput`` naming the field."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadRequest("the body is not JSON", code="invalid_json") from None


def parse_json(body: bytes) -> Any:
    """Any JSON, by the same strict reader. Raises ``BadRequest``."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadRequest("the body is not JSON", code="invalid_json") from None


def parse_offset(value: str | None) -> int:
    """``Last-Event-ID`` or ``?after=``: 0 when there is none. Raises ``BadRequest`` for what is no id."""
    if value is None or value == "":
        return 0
    if not _OFFSET.fullmatch(value):
        raise BadRequest("the last event's id must be a whole number, as in the stream's id lines", code="bad_event_id")
    return int(value)


def encode(offset: int, event: Event, data: bytes) -> tuple[Frame]:
    """The event's one frame."""
    return (Frame(str(offset), event.type, data),)


def invalid(problem: str, whole: str = "the body") -> InvalidInput:
    """What msgspec says of a run request, as an error that names the field."""
    unknown, found = _UNKNOWN.search(problem), _FIELD.search(problem)
    field = unknown["field"] if unknown else found["field"] if found else ""
    message = "is no field of a run request" if unknown else problem.split(" - at ", maxsplit=1)[0].replace("`", "")
    return InvalidInput(f"{field or whole}: {message}", detail=[{"field": field, "message": message}])
