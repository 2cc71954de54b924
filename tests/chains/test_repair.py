"""Broken JSON: mended to what it was, or not at all."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.repair import MAX_CHARS, repaired, strict


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('{"place": "Oslo",}', {"place": "Oslo"}),
        ('{"days": [1, 2,], "place": "Oslo"}', {"days": [1, 2], "place": "Oslo"}),
        ('{"place": "Oslo"]', {"place": "Oslo"}),
        ('{"days": [1, 2}, "near": {"place": "Oslo"]}', {"days": [1, 2], "near": {"place": "Oslo"}}),
        ('{"place": "Oslo" "days": 2}', {"place": "Oslo", "days": 2}),
        ('```json\n{"place": "Oslo"}\n```', {"place": "Oslo"}),
        ('```\n{"place": "Oslo",}```\n', {"place": "Oslo"}),
        ("{'place': 'Oslo', 'snow': True, 'wind': None}", {"place": "Oslo", "snow": True, "wind": None}),
        ('{"say": "one\ntwo"}', {"say": "one\ntwo"}),
        ('{"say": "a \\"b\\", {c]",}', {"say": 'a "b", {c]'}),
        ('{"days": 18446744073709551615,}', {"days": 2**64 - 1}),
        ("", {}),
        (" \n", {}),
    ],
)
def test_what_stands_between_the_values_is_mended(text: str, meant: dict[str, Any]) -> None:
    assert repaired(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        '{"place": "Os',
        '{"place": "Oslo"',
        '{"days": 1',
        '{"days": [1, 2}',
        '{"place": "Oslo"}}',
        '{"place": "Oslo"}{"place": "Rome"}',
        '{"place": "Oslo", "place": "Rome",}',
        '{"days": NaN}',
        '{"days": Infinity,}',
        '{"days": 1e999}',
        '{"days": 18446744073709551616}',
        '{"days": ' + "9" * 5000 + "}",
        '{"days": ' + "[" * 100 + "]" * 100 + "}",
        '{"days": 1,, "place": "Oslo"}',
        '{, "place": "Oslo"}',
        '{"days": [1 2]}',
        '{"days": [1,,2]}',
        '{"days": [,]}',
        '{"days": 01,}',
        '{"days": [{"day": 1], "place": "Oslo"}}',
        '{"say": ["he said "" twice"]}',
        '{"say": "he said "no" to me"}',
        "{'say': 'it's',}",
        '{"pattern": "\\d+",}',
        '{"say": "\\ud800"}',
        '{"say": "\ud800",}',
        '{"place": Oslo}',
        '{"place" "Oslo"}',
        '{"days": 1} // of snow',
        "null",
        "[1]",
        '"Oslo"',
        "[" * 50_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        "```" * 20_000,
        '{"say": "' + "x" * MAX_CHARS + '",}',
    ],
)
def test_what_is_not_certain_is_not_mended(text: str) -> None:
    assert repaired(text) is None


def test_a_long_text_that_is_sound_is_read_all_the_same() -> None:
    text = json.dumps({"say": "x" * MAX_CHARS})
    assert strict(text) == {"say": "x" * MAX_CHARS}
    assert strict(f"{text},") is None


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
objects = st.dictionaries(st.text(), values, max_size=5)
MARKS = re.compile(r'"(?:[^"\\]|\\.)*"|(?P<mark>[}\]])')


def marks(text: str) -> list[int]:
    """Where the closing brackets are, outside strings."""
    return [match.start() for match in MARKS.finditer(text) if match["mark"]]


def trailing_comma(text: str, at: int) -> str:
    return f"{text[:at]},{text[at:]}"


def mismatched(text: str, at: int) -> str:
    return f"{text[:at]}{']' if text[at] == '}' else '}'}{text[at + 1 :]}"


def cut(text: str, at: int) -> str:
    return text[:at]


def missing(text: str, at: int) -> str:
    return f"{text[:at]}{text[at + 1 :]}"


@pytest.mark.parametrize("broken", [trailing_comma, mismatched, cut, missing])
@given(objects, st.data(), st.booleans())
def test_a_broken_object_is_mended_to_itself_or_refused(
    broken: Callable[[str, int], str], value: dict[str, Any], data: st.DataObject, ascii_only: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    found = repaired(broken(text, data.draw(st.sampled_from(marks(text)))))
    assert found is None or same(found, value)


@given(objects, st.data())
def test_an_object_that_was_cut_anywhere_is_never_mended(value: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(value)
    assert repaired(text[: data.draw(st.integers(1, len(text) - 1))]) is None


@given(objects)
def test_a_missing_comma_before_a_key_is_put_in_or_the_text_refused(value: dict[str, Any]) -> None:
    found = repaired(json.dumps(value, separators=("\n", ": ")))
    assert found is None or same(found, value)


@given(objects)
def test_pythons_way_to_write_an_object_is_read_as_it_was_meant_or_refused(value: dict[str, Any]) -> None:
    found = repaired(repr(value))
    assert found is None or same(found, value)


@given(objects)
def test_a_fence_is_taken_off(value: dict[str, Any]) -> None:
    found = repaired(f"```json\n{json.dumps(value)}\n```")
    assert found is not None
    assert same(found, value)


@given(st.text() | st.text(alphabet="{}[]\",:'1a \\n`tre"))
def test_any_text_has_an_answer(text: str) -> None:
    found = repaired(text)
    assert found is None or strict(json.dumps(found)) is not None


def same(found: dict[str, Any], value: dict[str, Any]) -> bool:
    """Equal to the letter: ``1``, ``1.0`` and ``true`` are three values."""
    return json.dumps(found) == json.dumps(value)
