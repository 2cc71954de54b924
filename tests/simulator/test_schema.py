from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal

import orders
import pytest
from pydantic import BaseModel, Field

from app.simulator.schema import Filler, numbers, phrases


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Item(BaseModel):
    label: str
    price: Annotated[float, Field(gt=0, le=10)]
    count: Annotated[int, Field(ge=5, multiple_of=5)]


class Node(BaseModel):
    value: int
    children: list["Node"] = []
    parent: "Node | None" = None


class Everything(BaseModel):
    title: Annotated[str, Field(min_length=30, max_length=40)]
    colour: Colour
    kind: Literal["only"]
    item: Item
    items: list[Item]
    some: Annotated[list[int], Field(min_length=3, max_length=4)]
    pair: tuple[int, str]
    names: set[Colour]
    maybe: str | None
    either: int | list[str]
    table: dict[str, float]
    day: date
    yes: bool
    nothing: None
    tree: Node
    code: Annotated[str, Field(pattern=r"^[A-Z]-\d{3}$")]
    anything: Any


@pytest.mark.parametrize("text", ["", 'Paint 3 "tall walls" blue for 2.5 euros in Lisbon, order A-17.'])
@pytest.mark.parametrize("everything", [True, False])
def test_a_filled_document_is_valid_for_its_schema(text: str, everything: bool) -> None:
    document = Filler(text, everything=everything).fill(Everything.model_json_schema())
    Everything.model_validate(document)


def test_filling_is_deterministic() -> None:
    schema = Everything.model_json_schema()
    assert Filler("blue 7").fill(schema) == Filler("blue 7").fill(schema)


def test_the_text_gives_its_names_numbers_and_options_in_order() -> None:
    class Trip(BaseModel):
        origin: str
        destination: str
        nights: int
        budget: float
        cabin: Literal["economy", "business"]
        seat: Literal["aisle", "window"]

    text = "Book me from Lisbon to Ulan Bator for 3 nights, 1,200.50 at most, business, window."
    assert Filler(text).fill(Trip.model_json_schema()) == {
        "origin": "Lisbon",
        "destination": "Ulan Bator",
        "nights": 3,
        "budget": 1200.5,
        "cabin": "business",
        "seat": "window",
    }


def test_two_properties_with_the_same_options_take_them_in_turn() -> None:
    currency = {"enum": ["EUR", "USD", "JPY"]}
    schema = {"type": "object", "properties": {"source": currency, "target": currency}}
    assert Filler("5 USD to JPY").fill(schema) == {"source": "USD", "target": "JPY"}


def test_given_properties_are_kept_and_required_ones_added() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    assert Filler("", everything=False).fill(schema, {"a": "given"}) == {"a": "given", "b": 1}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"$ref": "#"}]},
        {"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "object", "properties": {name: {"$ref": "#"} for name in "abc"}, "required": ["a", "b", "c"]},
        {"type": "object", "properties": {name: {"type": "array", "items": {"$ref": "#"}} for name in "abcdefgh"}},
    ],
)
def test_a_schema_that_runs_in_a_circle_comes_to_an_end(schema: dict[str, Any]) -> None:
    Filler("").fill(schema)


def test_what_a_text_points_at() -> None:
    assert numbers("3 of 4.5, -2 and 1,000 but not A-17") == [3, 4.5, -2, 1000]
    assert phrases('What does "the big one" say about A-17 in New York? Tell Bob.') == [
        "the big one",
        "A-17",
        "New York",
        "Bob",
    ]


def test_what_the_text_gives_under_a_name_goes_to_the_property_of_that_name() -> None:
    assert Filler(orders.TEXT).fill(orders.SCHEMA) == orders.ORDER


def test_a_name_is_a_whole_word_and_its_value_is_used_once() -> None:
    text = {"type": "string"}
    schema = {"type": "object", "properties": {"nickname": text, "name": text, "unitPrice": {"type": "number"}}}
    filled = Filler("Name: Ada Lovelace; nickname: Countess, unit price $1,200.50. Bob has 7").fill(schema)
    assert filled == {"nickname": "Countess", "name": "Ada Lovelace", "unitPrice": 1200.5}


def test_digits_of_dates_addresses_and_telephones_are_no_numbers() -> None:
    kinds = {
        "on": {"format": "date"},
        "mail": {"format": "email"},
        "url": {"format": "uri"},
        "count": {"type": "number"},
    }
    text = "On 2026-03-14 ada7@example.com rang +44 20 7946 0018 about https://example.com/9, 5 times."
    assert Filler(text).fill({"type": "object", "properties": kinds}) == {
        "on": "2026-03-14",
        "mail": "ada7@example.com",
        "url": "https://example.com/9",
        "count": 5,
    }


def test_a_summary_is_the_words_that_the_text_begins_with() -> None:
    text = {"type": "string"}
    schema = {"type": "object", "properties": {"title": text, "summary": text, "name": text}}
    assert Filler("Ada went to sea. Bob stayed.").fill(schema) == {
        "title": "Ada went to sea",
        "summary": "Ada went to sea.",
        "name": "Ada",
    }


def test_bounds_that_nobody_could_meet_are_met_as_far_as_a_person_would_read() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "many": {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
            "long": {"type": "string", "minLength": 10**12},
            "tiny": {"type": "number", "multipleOf": 1e-320},
            "odd": {"type": "array", "items": {}, "minItems": "three"},
        },
    }
    filled = Filler("a text").fill(schema)
    assert set(filled) == {"many", "long", "tiny", "odd"}
    assert len(filled["many"]) <= 1000
    assert len(filled["long"]) <= 10_000


@pytest.mark.parametrize("pattern", [r"^\p{Lu}\w+$", "(?R)", "(?<=a+)b", "(", "^(a+)+$", r"\p{Nonsense}"])
def test_a_pattern_of_another_dialect_or_one_that_searches_for_ever_stops_nothing(pattern: str) -> None:
    text = f'"{"a" * 40}!" said Ada'
    assert Filler(text).fill({"type": "object", "properties": {"name": {"type": "string", "pattern": pattern}}})["name"]


def test_a_pattern_with_classes_of_letters_is_met() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "pattern": r"^\p{Lu}\p{Ll}+$"}}}
    assert Filler("Ada went home").fill(schema) == {"name": "Ada"}
