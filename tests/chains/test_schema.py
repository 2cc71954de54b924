"""What a client's JSON schema may be, and how objects are judged by it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from orders import ORDER, SCHEMA

from chains.facts import Facts
from chains.schema import MAX_BYTES, MAX_PARTS, MAX_PATTERNS, MAX_PROBLEMS, BadSchema, Unfit, of_model, of_request

TEXT = {"type": "string"}


def with_a(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, **more}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = TEXT
    for _ in range(levels):
        schema = with_a(schema)
    return schema


def doubling(levels: int) -> dict[str, Any]:
    """Small to write, and twice as large with each level."""
    parts = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(levels)}
    return with_a({"$ref": "#/$defs/d0"}, **{"$defs": {**parts, f"d{levels}": TEXT}})


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server that would give a schema, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_an_object_that_fits_is_given_back_as_it_is() -> None:
    schema = of_request(SCHEMA)
    assert schema.fit(ORDER) is ORDER
    assert schema.name == "Order"
    assert schema.told["$defs"] == SCHEMA["$defs"]
    assert "$schema" not in schema.told


def test_what_does_not_fit_is_told_by_place_and_without_its_value() -> None:
    customer = {**ORDER["customer"], "name": 5}
    items = [{**ORDER["items"][0], "quantity": 0}]
    with pytest.raises(Unfit) as refused:
        of_request(SCHEMA).fit({**ORDER, "customer": customer, "items": items, "more": "secret"})
    assert refused.value.problems == (
        'customer.name: the value is not of type "string"',
        "items.0.quantity: the value is less than the minimum of 1",
        "Additional properties are not allowed ('more' was unexpected)",
    )


def test_problems_are_few_and_short() -> None:
    schema = of_request({"type": "object", "properties": {"x" * 500: TEXT, **{f"p{at}": TEXT for at in range(50)}}})
    with pytest.raises(Unfit) as refused:
        schema.fit(dict.fromkeys(["x" * 500, *(f"p{at}" for at in range(50))], 1))
    assert len(refused.value.problems) == MAX_PROBLEMS
    assert max(map(len, refused.value.problems)) == 200


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({}, "no properties"),
        ({"type": "object"}, 'no "properties"'),
        ({"type": "object", "properties": {}}, 'no "properties"'),
        ({"type": "array", "items": TEXT}, "must describe an object"),
        ({"type": ["object", "null"], "properties": {"a": TEXT}}, "must describe an object"),
        (with_a({"type": "txt"}), "properties.a.type"),
        (with_a({"pattern": "(["}), "properties.a.pattern"),
        (with_a({"pattern": "((a{100}){100}){100}"}), "properties.a.pattern"),
        (with_a({"minimum": "3"}), "properties.a.minimum"),
        (with_a(5), "properties.a"),
        (with_a({"$ref": "#/$defs/b"}), "not in it"),
        (with_a({"$ref": "other.json"}), "its own parts"),
        (with_a({"$ref": "#b"}, **{"$defs": {"b": {"$anchor": "b"}}}), "its own parts"),
        (with_a({"$dynamicRef": "#b"}), "use $ref"),
        (with_a({"$id": "urn:b", "properties": {}}), "$id of its own"),
        (with_a({"$ref": "#"}), "refers to itself"),
        (with_a({"$ref": "#/properties/a"}), "refers to itself"),
        (with_a({"$ref": "#/$defs/b"}, **{"$defs": {"b": {"items": {"$ref": "#/$defs/b"}}}}), "refers to itself"),
        ({"$schema": "http://json-schema.org/draft-04/schema#", **with_a(TEXT)}, "old draft"),
        ({"$schema": "https://example.com/mine", **with_a(TEXT)}, "not valid"),
        (with_a({"description": "x" * MAX_BYTES}), "larger than"),
        (nested(40), "nested deeper"),
        (nested(200), "nested"),
        (doubling(12), f"more than {MAX_PARTS} parts"),
        (doubling(18), "parts"),
        (doubling(40), "nested deeper"),
        ({"type": "object", "properties": {f"p{at}": {"pattern": "a"} for at in range(MAX_PATTERNS + 1)}}, "patterns"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_reason(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSchema) as refused:
        of_request(schema)
    message = str(refused.value)
    assert said.replace('"', "") in message.replace('"', "")
    assert len(message) < 300
    assert "\n" not in message


def test_a_reference_is_never_fetched(elsewhere: tuple[str, list[str]]) -> None:
    url, asked = elsewhere
    for schema in (
        with_a({"$ref": f"{url}/b.json"}),
        with_a({"$ref": "b.json"}, **{"$id": f"{url}/"}),
        with_a(TEXT, **{"$schema": f"{url}/meta"}),
        with_a({"$schema": f"{url}/meta", "type": "string"}),
    ):
        try:
            of_request(schema)
        except BadSchema:
            continue
    assert asked == []


def test_an_address_of_its_own_does_no_harm() -> None:
    schema = with_a({"$ref": "#/$defs/b"}, **{"$id": "https://example.com/b.json", "$defs": {"b": TEXT}})
    assert of_request(schema).fit({"a": "x"}) == {"a": "x"}
    assert "$id" not in of_request(schema).told


def test_properties_behind_a_reference_at_the_root_come_to_the_root() -> None:
    schema = of_request({"$ref": "#/$defs/Order", "$defs": {"Order": {"title": "Order", **with_a(TEXT)}}})
    assert schema.name == "Order"
    assert schema.told["properties"] == {"a": TEXT}
    with pytest.raises(Unfit):
        schema.fit({"a": 1})


def test_a_pattern_that_would_search_for_ever_gives_up() -> None:
    schema = of_request(with_a({"pattern": r"^(?=(a|aa)+$)(a|aa)+\1$"}))
    with pytest.raises(Unfit, match=r"a: "):
        schema.fit({"a": "a" * 4000 + "!"})


def test_look_around_is_understood() -> None:
    """As generators write it for decimals."""
    schema = of_request(with_a({"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}))
    assert schema.fit({"a": "12.30"}) == {"a": "12.30"}
    with pytest.raises(Unfit):
        schema.fit({"a": "cheap"})


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("An order (of 2026)", "An_order_of_2026"),
        ("", "answer"),
        ("Über", "ber"),
        ("x" * 99, "x" * 64),
        ("***", "answer"),
    ],
)
def test_the_name_is_one_that_providers_take(title: str, name: str) -> None:
    assert of_request({"title": title, **with_a(TEXT)}).name == name


def test_keys_that_would_be_taken_for_another_description_are_not_told() -> None:
    schema = {**with_a(TEXT), "name": "x", "parameters": {}, "input_schema": {}, "strict": True}
    assert of_request(schema).told.keys() == {"title", "description", "type", "properties"}


def test_a_model_of_ours_is_told_and_judged_alike() -> None:
    schema = of_model(Facts)
    assert (schema.name, schema.told["type"]) == ("Facts", "object")
    found = schema.fit({"title": "A", "summary": "B", "events": [{"what": "C", "day": "2026-01-15"}], "more": 1})
    assert found["events"] == [{"what": "C", "day": "2026-01-15", "said": None}]
    assert "more" not in found
    with pytest.raises(Unfit) as refused:
        schema.fit({"title": 1})
    assert refused.value.problems == ("title: Input should be a valid string", "summary: Field required")
    of_request(Facts.model_json_schema())
