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
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import msgspec
from pydantic import BaseModel

from app.events.event import TYPES, Event

MAX_DEPTH = 64
"""Deeper values are cut: no reader needs them, and recursion must end."""

MAX_VALUES = 250_000
"""More values than this are cut: what refers to itself all over would never end, and the event loop waits."""

MAX_BYTES_VALUE = 256 * 1024
"""Binary values over this size travel without their bytes."""

_CUT = {"type": "…"}
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
    if data.isascii():
        return data
    for raw, escaped in _LINE_ENDS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def text(value: str) -> str:
    """The string with lone surrogates replaced by U+FFFD: they have no UTF-8, and providers do send them."""
    if type(value) is not str:  # the encoder takes no subclasses, and LangChain's ``message.text`` is one
        value = str.__str__(value)
    if value.isascii():
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def plain(value: Any) -> Any:
    """Any Python value in JSON's types: dict, list, str, int, float, bool, None.

    Messages and pydantic models become their fields, bytes ``{"media_type", "base64"}``, integers beyond 64 bits
    strings, NaN and infinities null, and what has no JSON form ``{"type": its class name}``. What holds itself,
    lies deeper than ``MAX_DEPTH`` or comes after ``MAX_VALUES`` is cut: ``{"type": "…"}``.
    """
    return _Walk().plain(value, 0)


class _Walk:
    """One value's conversion: what holds the place it is at, and how many values may still come."""

    __slots__ = ("_above", "_left")

    def __init__(self) -> None:
        self._above: set[int] = set()
        self._left = MAX_VALUES

    def plain(self, value: Any, depth: int) -> Any:
        self._left -= 1
        try:
            match value:
                case None | bool():
                    return value
                case enum.Enum():
                    return self.plain(value.value, depth + 1)
                case str():
                    return text(value)
                case int():
                    return int(value) if -(2**63) <= value < 2**64 else str(value)
                case float():
                    return float(value) if math.isfinite(value) else None
            return self._inside(value, depth)
        except Exception:  # noqa: BLE001 - a user's class may raise anything; the stream must not end for it
            return {"type": type(value).__name__}

    def _inside(self, value: Any, depth: int) -> Any:
        if depth >= MAX_DEPTH or id(value) in self._above:
            return dict(_CUT)
        self._above.add(id(value))
        try:
            return self._opened(value, depth + 1)
        finally:
            self._above.discard(id(value))

    def _opened(self, value: Any, depth: int) -> Any:
        match value:
            case bytes() | bytearray() | memoryview():
                return _binary(bytes(value))
            case datetime.datetime() | datetime.date() | datetime.time():
                return value.isoformat()
            case uuid.UUID() | decimal.Decimal() | pathlib.PurePath():
                return text(str(value))
            case BaseModel():
                return self.plain(value.model_dump(warnings=False), depth)
            case msgspec.Struct():
                return self._object(msgspec.structs.asdict(value).items(), depth)
            case Mapping():
                return self._object(value.items(), depth)
            case Sequence() | Set():
                return self._array(value, depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value)]
            return self._object(((name, getattr(value, name)) for name in names), depth)
        return {"type": type(value).__name__}

    def _object(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for key, item in items:
            if self._left <= 0:
                shown["…"] = dict(_CUT)
                break
            shown[_key(key)] = self.plain(item, depth)
        return shown

    def _array(self, items: Iterable[Any], depth: int) -> list[Any]:
        shown: list[Any] = []
        for item in items:
            if self._left <= 0:
                shown.append(dict(_CUT))
                break
            shown.append(self.plain(item, depth))
        return shown


def _key(key: Any) -> str:
    return (
        text(key) if isinstance(key, str) else str(plain(key)) if isinstance(key, int | float) else type(key).__name__
    )


def _binary(value: bytes) -> dict[str, Any]:
    shown: dict[str, Any] = {"media_type": "application/octet-stream"}
    if len(value) > MAX_BYTES_VALUE:
        return {**shown, "base64": None, "size": len(value)}
    return {**shown, "base64": base64.b64encode(value).decode("ascii")}
