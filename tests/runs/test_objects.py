"""A document that is still being written: what of it may be shown, and when each of its values is complete."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from app.runs.objects import Form, Growing, Path, Shape, form_of

ANYTHING = Shape(None)


class Line(BaseModel):
    article: str
    count: int


class Order(BaseModel):
    """An order."""

    customer: str
    status: "Status | None" = None
    lines: list[Line] = []


class Status(BaseModel):
    paid: bool
    note: str = ""


Order.model_rebuild()


class Told:
    """All that a reader is told of a document that comes in these pieces."""

    def __init__(self, pieces: list[str], shape: Shape = ANYTHING) -> None:
        self.fields: list[tuple[Path, Any]] = []
        self.partials: list[Any] = []
        growing = Growing(shape)
        for piece in pieces:
            self.fields += [(field.path, field.value) for field in growing.feed(piece)]
            self._note(growing.partial())
        self._note(growing.partial(last=True))

    def _note(self, value: Any) -> None:
        if value is not None:
            self.partials.append(value)

    @property
    def built(self) -> Any:
        """The object that the fields make."""
        root: Any = None
        for path, value in self.fields:
            root = _set(root, path, value)
        return root


def _set(holder: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    if isinstance(first, int):
        holder = [] if holder is None else holder
        if first == len(holder):
            holder.append(None)
    else:
        holder = {} if holder is None else holder
        holder.setdefault(first, None)
    holder[first] = _set(holder[first], rest, value)
    return holder


def told(text: str, schema: Any = None, *, size: int = 1) -> Told:
    shape = ANYTHING if schema is None else Shape(schema)
    return Told([text[at : at + size] for at in range(0, len(text), size)], shape)


def grew(before: Any, after: Any) -> bool:
    """Whether nothing that was shown has gone or changed, but for a text that became longer."""
    if isinstance(before, dict):
        return isinstance(after, dict) and all(key in after and grew(before[key], after[key]) for key in before)
    if isinstance(before, list):
        return isinstance(after, list) and len(after) >= len(before) and all(map(grew, before, after))
    if isinstance(before, str):
        return isinstance(after, str) and after.startswith(before)
    return type(before) is type(after) and bool(before == after)


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=12)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
documents = st.dictionaries(st.text(max_size=6), values, max_size=5)


@given(documents, st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=150, deadline=None)
def test_whatever_the_pieces_the_fields_make_the_object_and_nothing_shown_is_taken_back(
    document: dict[str, Any], random: Any, escaped: bool
) -> None:
    text = json.dumps(document, ensure_ascii=escaped)
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(12)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    heard = Told(pieces)
    assert heard.built == document
    assert heard.partials[-1] == document
    assert all(map(grew, heard.partials, heard.partials[1:]))


@given(documents, st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_every_beginning_of_a_document_shows_values_of_it_alone(document: dict[str, Any], part: float) -> None:
    text = json.dumps(document)
    for value in told(text[: int(part * len(text))], size=3).partials:
        assert grew(value, document)


def test_a_number_is_told_when_it_is_complete() -> None:
    heard = told('{"count": 17, "price": 2.50}')
    assert heard.fields == [(["count"], 17), (["price"], 2.5)]
    assert all(value.get("count", 17) == 17 for value in heard.partials)


def test_the_beginning_of_a_text_is_shown_before_its_end() -> None:
    heard = told('{"summary": "a long text that goes on and on for a while"}')
    assert len(heard.partials) > 2
    assert 0 < len(heard.partials[0]["summary"]) < 20


@pytest.mark.parametrize(
    "said",
    [
        {"enum": ["xxxxxxxxxxxxxxxxxxxx-1", "xxxxxxxxxxxxxxxxxxxx-2"]},
        {"type": "string", "pattern": "-1$"},
        {"const": "xxxxxxxxxxxxxxxxxxxx-1"},
        {"anyOf": [{"type": "null"}, {"type": "string", "enum": ["xxxxxxxxxxxxxxxxxxxx-1"]}]},
    ],
)
def test_a_text_that_only_its_end_makes_valid_is_shown_as_a_whole(said: Any) -> None:
    whole = {"kind": "xxxxxxxxxxxxxxxxxxxx-1"}
    heard = told(json.dumps(whole), {"type": "object", "properties": {"kind": said}})
    assert [value for value in heard.partials if value] == [whole]


SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "age", "missing"],
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "minItems": 4},
        "home": {"$ref": "#/$defs/home"},
        "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
        "free": {"type": "object", "additionalProperties": {"type": "integer"}},
        "any": {},
    },
    "$defs": {"home": {"type": "object", "properties": {"city/town": {"type": "string"}, "near": {"$ref": "#"}}}},
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"name": "Ada", "age": "old"}', {"name": "Ada"}),
        ('{"name": "Ada", "age": -1}', {"name": "Ada"}),
        ('{"name": "Ada", "foreign": {"a": [1]}, "age": 3}', {"name": "Ada", "age": 3}),
        ('{"name": ["Ada"], "age": 3}', {"age": 3}),
        ('{"name": "a name that is much too long for it"}', {}),
        ('{"tags": ["a", "B", "c"], "age": 3}', {"tags": ["a"], "age": 3}),
        ('{"home": {"city/town": "Rome", "near": {"name": "Eve", "age": "x"}}}',
         {"home": {"city/town": "Rome", "near": {"name": "Eve"}}}),
        ('{"pair": [1, "a", 2]}', {"pair": [1, "a"]}),
        ('{"free": {"a": 1, "b": "x", "c": 2}}', {"free": {"a": 1, "c": 2}}),
        ('{"any": [{"a": null}, 1.5]}', {"any": [{"a": None}, 1.5]}),
    ],
)  # fmt: skip
def test_what_the_schema_does_not_admit_is_not_shown(text: str, shown: Any) -> None:
    heard = told(text, SCHEMA)
    assert heard.partials[-1] == shown
    assert heard.built == (shown or None)
    for value in heard.partials:
        problems = [one.kind.name for one in jsonschema_rs.iter_errors(SCHEMA, value)]
        assert set(problems) <= {"required", "minItems"}


def test_the_schema_of_a_pydantic_model_is_followed_behind_its_references() -> None:
    text = '{"customer":"Ada","status":{"paid":"maybe","note":"soon"},"lines":[{"article":"pen","count":2.5}]}'
    heard = told(text, Order.model_json_schema())
    assert heard.partials[-1] == {"customer": "Ada", "status": {"note": "soon"}, "lines": [{"article": "pen"}]}


def test_an_empty_list_and_an_empty_object_are_fields() -> None:
    assert told('{"a": [], "b": {}, "c": [[]]}').fields == [(["a"], []), (["b"], {}), (["c", 0], [])]


def test_what_stands_around_the_document_is_passed_over() -> None:
    heard = told('Here it is:\n```json\n{"a": "b"}\n``` {"c": 1}')
    assert heard.fields == [(["a"], "b")]
    assert heard.partials == [{"a": "b"}]


def test_from_where_it_is_broken_on_nothing_more_is_shown() -> None:
    heard = told('{"a": 1, "b": 2,, "c": 3}')
    assert heard.fields == [(["a"], 1), (["b"], 2)]
    assert heard.partials[-1] == {"a": 1, "b": 2}


def test_a_document_that_is_cut_keeps_what_it_had() -> None:
    assert told('{"a": "complete", "b": "half a te').partials[-1] == {"a": "complete", "b": "half a te"}


def test_all_partials_together_are_linear_in_the_document() -> None:
    def cost(count: int) -> float:
        text = json.dumps({"lines": [f"line number {at}" for at in range(count)]})
        return sum(len(json.dumps(value)) for value in told(text, size=4).partials) / len(text)

    assert cost(4000) < 1.5 * cost(200) < 20


@pytest.mark.parametrize("schema", [{"$ref": "http://192.0.2.1/x.json"}, {"type": 7}, {"properties": 3}, {"anyOf": {}}])
def test_a_schema_that_cannot_be_read_hides_nothing_and_fetches_nothing(schema: Any) -> None:
    assert told('{"a": {"b": 1}}', {"type": "object", "properties": {"a": schema}}).partials[-1] == {"a": {"b": 1}}


def test_a_schema_with_an_address_of_its_own_is_followed_all_the_same() -> None:
    schema = {
        "$id": "https://example.com/x",
        "properties": {"a": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"type": "null"}},
    }
    assert told('{"a": 1, "b": 2}', schema).partials[-1] == {"b": 2}


def test_a_pattern_that_would_take_for_ever_does_not() -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    assert told(json.dumps({"a": "a" * 5000 + "!"}), schema, size=50).partials == [{}]


def test_deeper_than_anybody_reads_nothing_is_shown_and_nothing_breaks() -> None:
    depth = 5000
    heard = told('{"a":' * depth + "1" + "}" * depth, size=1000)
    assert heard.fields == []


def test_duplicate_keys_end_with_the_last_as_in_every_parser() -> None:
    assert told('{"a": 1, "a": 2}').built == {"a": 2}


# -- in which form an answer is asked for ----------------------------------------------------------------------------


def test_langchains_note_of_a_schema_is_understood_whatever_the_method() -> None:
    schema = {"type": "object", "properties": {}}
    for method, call in {"function_calling": True, "json_schema": False, "json_mode": False}.items():
        note = {"kwargs": {"method": method}, "schema": schema}
        assert form_of({"options": {"ls_structured_output_format": note}}) == Form(call, schema)


def test_the_response_format_of_the_openai_wire_is_understood() -> None:
    schema = convert_to_openai_tool(Order)["function"]["parameters"]
    asked = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema}}
    assert form_of({"invocation_params": {"response_format": asked}}) == Form(False, schema)
    assert form_of({"options": {"response_format": {"type": "json_object"}}}) == Form(False, None)


@pytest.mark.parametrize(
    "said",
    [{}, {"options": None}, {"options": {"response_format": {"type": "text"}}}, {"options": {"response_format": Order}},
     {"options": {"ls_structured_output_format": {"schema": None}}}, {"options": {"ls_structured_output_format": 3}}],
)  # fmt: skip
def test_any_other_call_answers_in_words(said: Any) -> None:
    assert form_of(said) is None
