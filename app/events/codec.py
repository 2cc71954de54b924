"""The one JSON form of events, and of whatever Python values graphs and tools put into them.

``encode`` and ``decode`` are inverse for every event. The bytes are one line that is safe in any text protocol:
no CR, LF or NUL, and the other characters that some readers take for a line's end (U+0085, U+2028, U+2029) are
escaped. ``plain`` never fails and never shows a ``repr``: what has no JSON form is named by its type.
"""

import base64
import dataclasses
import datetime
import decimal
import enum
import math
import pathlib
import uuid
from collections.abc import Mapping, Sequence, Set
from typing import Any

import msgspec
from pydantic import BaseModel

from app.events.event import TYPES, Event

MAX_DEPTH = 64
"""Deeper values are cut: no reader needs them, and recursion must end."""

MAX_BYTES_VALUE = 256 * 1024
"""Binary values over this size travel without their bytes."""

_encoder = msgspec.json.Encoder()
_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def encode(event: Event) -> bytes:
    """The event's ``data`` as one line of UTF-8 JSON."""
    return one_line(_encoder.encode(event))


def decode(type_: str, data: bytes) -> Event:
    """The event that ``encode`` was given. Raises ``msgspec.ValidationError`` for what is no event."""
    if type_ not in TYPES:
        raise msgspec.ValidationError(f"there is no event type {type_!r}")
    return msgspec.json.decode(data, type=TYPES[type_])


def dumps(value: Any) -> bytes:
    """Any value as one line of UTF-8 JSON, by ``plain``."""
    return one_line(_encoder.encode(plain(value)))


def one_line(data: bytes) -> bytes:
    """JSON in which nothing can be taken for a line's end. JSON itself has escaped CR, LF and NUL already."""
    for raw, escaped in _LINE_ENDS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def text(value: str) -> str:
    """The string with lone surrogates replaced by U+FFFD: they have no UTF-8, and providers do send them."""
    if value.isascii():
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def plain(value: Any, depth: int = 0) -> Any:
    """Any Python value in JSON's types: dict, list, str, int, float, bool, None.

    Messages and pydantic models become their fields, bytes ``{"media_type", "base64"}``, integers beyond 64 bits
    strings, NaN and infinities null, and what has no JSON form ``{"type": its class name}``.
    """
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return plain(value.value, depth)
        case str():
            return text(value)
        case int():
            return int(value) if -(2**63) <= value < 2**64 else str(value)
        case float():
            return float(value) if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        return {"type": "…"}
    match value:
        case bytes() | bytearray() | memoryview():
            return _binary(bytes(value))
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case uuid.UUID() | decimal.Decimal() | pathlib.PurePath():
            return str(value)
        case BaseModel():
            return plain(_fields(value), depth)
        case msgspec.Struct():
            return plain(msgspec.structs.asdict(value), depth)
        case Mapping():
            return {_key(key): plain(item, depth + 1) for key, item in value.items()}
        case Sequence() | Set():
            return [plain(item, depth + 1) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name), depth + 1) for name in names}
    return {"type": type(value).__name__}


def _fields(model: BaseModel) -> Any:
    try:
        return model.model_dump()
    except Exception:  # noqa: BLE001 - a user's model may raise anything; the stream must not end for it
        return {"type": type(model).__name__}


def _key(key: Any) -> str:
    return (
        text(key) if isinstance(key, str) else str(plain(key)) if isinstance(key, int | float) else type(key).__name__
    )


def _binary(value: bytes) -> dict[str, Any]:
    shown: dict[str, Any] = {"media_type": "application/octet-stream"}
    if len(value) > MAX_BYTES_VALUE:
        return {**shown, "base64": None, "size": len(value)}
    return {**shown, "base64": base64.b64encode(value).decode("ascii")}
