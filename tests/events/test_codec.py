"""One JSON form: decode undoes encode, a line stays one line, and no Python value at all makes ``plain`` fail."""

import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import uuid
from collections import OrderedDict, UserDict, deque
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_origin

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from pydantic import BaseModel, RootModel, field_serializer

from app.events import codec
from app.events.event import TYPES, Custom, Event, Token

LINE_ENDS = set("\r\n\0\v\f\x1c\x1d\x1e\x85\u2028\u2029")

# What str.splitlines, EventSource and JavaScript take for a line's end is drawn often, not once in a million.
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(sorted(LINE_ENDS))))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


def of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return JSON
    if origin is Literal:
        return st.sampled_from(args)
    if origin is UnionType or NoneType in args:
        return st.one_of(*map(of, args))
    if origin is tuple:
        return st.lists(of(args[0]), max_size=3).map(tuple)
    if origin is list:
        return st.lists(of(args[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(TEXT, of(args[1]), max_size=3)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return events(hint)
    known = {int: st.integers(-(2**63), 2**64 - 1), str: TEXT, bool: st.booleans(), float: NUMBERS.map(float)}
    return st.none() if hint is NoneType else known[hint]


def events(cls: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{field.name: of(field.type) for field in msgspec.structs.fields(cls)})


def one_line(data: bytes) -> Any:
    """What the line says, having seen that it is one."""
    text = data.decode("utf-8")
    assert not LINE_ENDS & set(text)
    assert len(text.splitlines()) <= 1
    return json.loads(text)


@pytest.mark.parametrize("name", TYPES)
def test_decode_undoes_encode_for_every_event_and_the_line_is_one(name: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(events(TYPES[name]))
    def law(event: Event) -> None:
        data = codec.encode(event)
        one_line(data)
        assert codec.decode(name, data) == event

    law()


@pytest.mark.parametrize("name", ["token", "", "run.started\n", "Token", "gap "])
def test_what_is_no_event_is_refused(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        codec.decode(name, b'{"ts": "soon"}')


def test_a_decoded_event_may_carry_fields_of_a_later_version() -> None:
    data = b'{"ts":1,"text":"a","message_id":"m","colour":"red"}'
    assert codec.decode("token", data) == Token(ts=1, text="a", message_id="m")


# Values


class Coloured(enum.Enum):
    RED = "r"
    ODD = ("a", 1)


class Level(enum.IntEnum):
    LOW = 1


class Word(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no words")


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any = None


@dataclasses.dataclass(slots=True)
class Unfinished:
    missing: int = dataclasses.field(init=False)


class Struct(msgspec.Struct):
    value: Any


class Model(BaseModel):
    value: Any


class Refuses(BaseModel):
    value: int = 1

    @field_serializer("value")
    def never(self, value: int) -> int:
        raise RuntimeError("secret")


class Itself(BaseModel):
    def model_dump(self, **_: Any) -> Any:
        return self


class Hostile(dict[str, Any]):
    def items(self) -> NoReturn:
        raise RuntimeError("secret")


class HostileList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield 1
        raise RuntimeError("secret")


class Faceless:
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("secret")

    def __repr__(self) -> str:
        return "secret"


class Shy:
    def __repr__(self) -> str:
        raise RuntimeError("secret")


class Point(NamedTuple):
    x: Any
    y: Any


def released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


def generator() -> Iterator[int]:
    yield 1


ANY_TEXT = st.text(st.characters())  # lone surrogates too
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    ANY_TEXT,
    st.binary(max_size=20),
    ANY_TEXT.map(Word),
    st.uuids(),
    st.datetimes(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.sampled_from([*Coloured, *Level]),
    st.builds(AIMessage, ANY_TEXT),
    st.builds(lambda: AIMessage("hi").text),
    st.builds(lambda digits: 10**digits, st.integers(0, 6000)),
    ANY_TEXT.map(pathlib.PurePosixPath),
    st.builds(generator),
    st.builds(released),
    st.builds(Unfinished.__new__, st.just(Unfinished)),
    st.builds(Refuses),
    st.builds(Itself),
    st.builds(Faceless),
    st.builds(Shy),
    st.builds(Hostile, st.just({"a": 1})),
    st.builds(HostileList),
    st.sampled_from([int, Pair, Model, print, ..., NotImplemented, range(5), ValueError("secret")]),
)
HASHABLE = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.tuples(st.integers()) | st.binary()
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=4).map(OrderedDict),
        st.dictionaries(ANY_TEXT, inner, max_size=4).map(UserDict),
        st.sets(HASHABLE, max_size=4),
        st.builds(Pair, inner, inner),
        st.builds(Struct, inner),
        st.builds(Model, value=inner),
        st.builds(RootModel, inner),
        st.builds(Point, inner, inner),
    ),
    max_leaves=12,
)


def is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(is_plain, value.values()))
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_any_python_value_becomes_json_and_stays_one_line(value: Any) -> None:
    plain = codec.plain(value)
    assert is_plain(plain)
    data = codec.dumps(value)
    one_line(data)
    assert b"secret" not in data
    assert one_line(codec.encode(Custom(ts=1, name="x", data=plain)))["data"] == one_line(data)


@settings(deadline=None)
@given(ANYTHING)
def test_what_is_plain_stays_as_it_is(value: Any) -> None:
    plain = codec.plain(value)
    assert codec.plain(plain) == plain


@settings(deadline=None)
@given(JSON)
def test_json_is_left_alone(value: Any) -> None:
    assert codec.plain(value) == value
    assert one_line(codec.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (2**64, str(2**64)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (2**64 - 1, 2**64 - 1),
        (10**5000, {"type": "int"}),
        (Level.LOW, 1),
        (Coloured.RED, "r"),
        (Coloured.ODD, ["a", 1]),
        (b"abc", {"media_type": "application/octet-stream", "base64": "YWJj"}),
        (bytearray(b"abc"), {"media_type": "application/octet-stream", "base64": "YWJj"}),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.50"), "1.50"),
        (pathlib.PurePosixPath("a/b\udcff"), "a/b\ufffd"),
        (Word("word"), "word"),
        (AIMessage("hi").text, "hi"),
        (Pair(1, {2}), {"left": 1, "right": [2]}),
        (Struct(value=Pair(1)), {"value": {"left": 1, "right": None}}),
        (Model(value=Pair(1)), {"value": {"left": 1, "right": None}}),
        (RootModel([1]), [1]),
        (Point(1, 2), [1, 2]),
        (ValueError("secret"), {"type": "ValueError"}),
        (Pair, {"type": "type"}),
        (Faceless(), {"type": "Faceless"}),
        (Refuses(), {"type": "Refuses"}),
        ({"ok": 1, "bad": Hostile(a=1)}, {"ok": 1, "bad": {"type": "Hostile"}}),
        ({1: "a", 1.5: "b", b"c": "d"}, {"1": "a", "1.5": "b", "bytes": "d"}),
        ({"\ud800": "\udfff"}, {"\ufffd": "\ufffd"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_value_has_its_form(value: Any, expected: Any) -> None:
    assert codec.plain(value) == expected


def test_a_message_shows_its_fields() -> None:
    shown = codec.plain({"messages": [AIMessage("hi", tool_calls=[{"name": "f", "args": {"x": b"1"}, "id": "c"}])]})
    message = shown["messages"][0]
    assert (message["type"], message["content"]) == ("ai", "hi")
    assert message["tool_calls"][0]["args"]["x"]["base64"] == "MQ=="


def test_a_model_whose_fields_are_of_the_wrong_type_is_shown_without_a_warning() -> None:
    class Strict(BaseModel):
        number: int

    assert codec.plain(Strict.model_construct(number="x")) == {"number": "x"}


def test_bytes_beyond_the_bound_travel_without_themselves() -> None:
    shown = codec.plain(bytes(codec.MAX_BYTES_VALUE + 1))
    assert shown == {"media_type": "application/octet-stream", "base64": None, "size": codec.MAX_BYTES_VALUE + 1}
    assert codec.plain(bytes(codec.MAX_BYTES_VALUE))["base64"]


# Values without an end


def test_depth_is_cut_where_it_is_of_no_use_any_more() -> None:
    value: Any = "bottom"
    for _ in range(100_000):
        value = [value]
    data = codec.dumps(value)
    assert data.count(b"[") == codec.MAX_DEPTH
    while value != "bottom":  # let go of it level by level: the interpreter would recurse
        value = value[0]


def cyclic_list() -> Any:
    value: list[Any] = []
    value.extend([value, value, 1])
    return value


def cyclic_dict() -> Any:
    value: dict[str, Any] = {}
    value |= {"me": value, "again": [value, value]}
    return value


def cyclic_objects() -> Any:
    people = [Pair(name) for name in range(30)]
    for one in people:
        one.right = people
    return people


def cyclic_model() -> Any:
    value = Model(value=None)
    value.value = [value, value]
    return value


def shared() -> Any:
    value: Any = [1]
    for _ in range(50):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "make", [cyclic_list, cyclic_dict, cyclic_objects, cyclic_model, shared, lambda: range(10**15), lambda: [0] * 10**7]
)
def test_a_value_that_would_never_end_is_cut(make: Any) -> None:
    data = codec.dumps(make())
    one_line(data)
    assert len(data) < 16 * 1024 * 1024


def test_what_holds_itself_shows_where() -> None:
    value: dict[str, Any] = {"a": 1}
    value["self"] = value
    assert codec.plain(value) == {"a": 1, "self": {"type": "…"}}


def test_the_same_value_twice_is_no_cycle() -> None:
    one = {"a": 1}
    assert codec.plain([one, one]) == [one, one]


# Text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain", "plain"),
        ("é\u2028😀", "é\u2028😀"),
        ("\ud83d\ude00", "😀"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
    ],
)
def test_halves_of_a_pair_are_joined_and_lone_ones_replaced(raw: str, clean: str) -> None:
    assert codec.text(raw) == clean


@settings(deadline=None)
@given(ANY_TEXT)
def test_clean_text_has_a_utf8_form_and_stays_as_it_is(raw: str) -> None:
    clean = codec.text(raw)
    clean.encode()
    assert codec.text(clean) == clean


def test_a_string_of_a_class_of_its_own_becomes_a_plain_one() -> None:
    assert type(codec.text(AIMessage("hi").text)) is str
    assert type(codec.text(Word("é"))) is str
