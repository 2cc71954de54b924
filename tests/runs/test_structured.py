"""Answers that were asked for as an object: in every graph, through calls and through text."""

import json
from typing import Any
from urllib.parse import quote

import pytest
from graphs import openai
from langchain_core.language_models import BaseChatModel
from langgraph.graph import MessagesState
from pydantic import BaseModel, Field
from scripted import Scripted, piece, say
from telling import Told, model, row, told

from app.events.event import (
    MessageFinished,
    MessageStarted,
    ObjectField,
    ObjectPartial,
    Token,
    ToolPending,
)
from app.simulator.server import Simulator

METHODS = ("function_calling", "json_schema", "json_mode")


class Home(BaseModel):
    """Where somebody lives."""

    city: str
    floor: int


class Person(BaseModel):
    """Somebody."""

    name: str = Field(description="The name.")
    age: int
    tags: list[str]
    home: Home


ADA = {"name": "Ada Lovelace", "age": 36, "tags": ["poet", "engine"], "home": {"city": "London", "floor": 2}}
WRITTEN = json.dumps(ADA)
FIELDS = [
    (["name"], "Ada Lovelace"), (["age"], 36), (["tags", 0], "poet"), (["tags", 1], "engine"),
    (["home", "city"], "London"), (["home", "floor"], 2),
]  # fmt: skip


def noted(one: BaseChatModel, method: str, schema: Any = Person) -> Any:
    """The model as ``with_structured_output`` binds it: with LangChain's note of it."""
    return one.bind(ls_structured_output_format={"kwargs": {"method": method}, "schema": schema})


def as_call(text: str, size: int = 5) -> list[Any]:
    head = [say("", piece("Person", "", "c1", 0))]
    return [*head, *(say("", piece(None, text[at : at + size], None, 0)) for at in range(0, len(text), size))]


def as_text(text: str, size: int = 5) -> list[Any]:
    return [say(text[at : at + size]) for at in range(0, len(text), size)]


def turn(method: str, text: str = WRITTEN) -> list[Any]:
    return as_call(text) if method == "function_calling" else as_text(text)


def fields(run: Told) -> list[tuple[Any, Any]]:
    return [(one.path, one.value) for one in run.all(ObjectField)]


@pytest.mark.parametrize("method", METHODS)
async def test_an_object_is_told_in_place_of_the_call_or_the_text_that_it_is_written_in(method: str) -> None:
    run = await told(noted(model(turn(method)), method))
    assert fields(run) == FIELDS
    assert run.all(ObjectPartial)[-1].value == ADA
    assert not run.all(Token)
    assert not run.all(ToolPending)
    message = run.one(MessageStarted).message_id
    assert {one.message_id for one in run.all(ObjectField)} == {message}
    assert {one.message_id for one in run.all(ObjectPartial)} == {message}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the client's, where it parses by itself
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [Person, {"title": "Person", "description": "x", **Person.model_json_schema()}])
async def test_a_real_client_that_asks_for_a_schema_is_understood(method: str, schema: Any) -> None:
    with Simulator(tokens_per_second=0) as provider:
        client = openai(provider.base_url)
        said = f"[[say={quote(WRITTEN)}]] Who?" if method != "function_calling" else "Ada is 36"
        chain = client.with_structured_output(schema, method=method, include_raw=True)  # type: ignore[arg-type]  # a str
        run = await told(chain, said)
    assert run.error is None
    assert not run.all(Token)
    assert not run.all(ToolPending)
    assert ["name"] in [one.path for one in run.all(ObjectField)]


async def test_in_a_graph_an_object_carries_its_node_and_in_a_subgraph_its_namespace() -> None:
    async def plan(state: MessagesState) -> Any:
        await noted(model(turn("json_mode")), "json_mode").ainvoke(state["messages"])

    run = await told(row(outer=row(plan=plan)), {"messages": []})
    (namespace,) = {one.namespace for one in run.all(ObjectField)}
    assert run.all(ObjectField)[0].node == "plan"
    assert namespace[0].startswith("outer:")
    assert run.translator.object is None  # a subgraph's object is not the answer


async def test_an_answer_that_was_not_streamed_has_its_fields_all_the_same() -> None:
    one = Scripted(turns=[as_call(WRITTEN, 1000)], disable_streaming=True)
    run = await told(noted(one, "function_calling"))
    assert fields(run) == FIELDS


async def test_words_in_place_of_the_call_are_words() -> None:
    run = await told(noted(model([say("I would "), say("rather not.")]), "function_calling"))
    assert run.texts() == ["I would rather not."]
    assert not run.all(ObjectPartial)


async def test_a_second_call_beside_the_object_is_no_tool() -> None:
    pieces = (piece("Person", WRITTEN, "c1", 0), piece("Person", '{"name": "Eve"}', "c2", 1))
    run = await told(noted(model([say("", *pieces)]), "function_calling"))
    assert fields(run) == FIELDS
    assert not run.all(ToolPending)


async def test_what_does_not_fit_the_schema_is_not_shown() -> None:
    run = await told(noted(model(as_text('{"name": "Ada", "age": "very", "tags": ["x"]}')), "json_mode"))
    assert run.all(ObjectPartial)[-1].value == {"name": "Ada", "tags": ["x"]}


async def test_an_object_that_is_cut_is_kept_as_far_as_it_came() -> None:
    run = await told(
        noted(model([*as_text('{"name": "Ada Lovelace", "age": 36, "ta'), ValueError("gone")]), "json_mode")
    )
    assert run.error is not None
    assert run.translator.object == {"name": "Ada Lovelace", "age": 36}


async def test_two_objects_of_a_run_are_told_apart_by_their_messages() -> None:
    one = model(as_text('{"name": "Ada"}'), as_text('{"name": "Eve"}'))

    def ask() -> Any:
        async def run(_: Any) -> None:
            await noted(one, "json_mode").ainvoke("go")

        return run

    run = await told(row(first=ask(), second=ask()), {"messages": []})
    first, second = run.all(MessageStarted)
    told_of = [(event.message_id, event.value) for event in run.all(ObjectField)]
    assert told_of == [(first.message_id, "Ada"), (second.message_id, "Eve")]


async def test_an_objects_events_lie_between_its_messages_beginning_and_end() -> None:
    run = await told(noted(model(turn("json_schema")), "json_schema"))
    kinds = [type(event) for event in run.events]
    inside = kinds[kinds.index(MessageStarted) + 1 : kinds.index(MessageFinished)]
    assert set(inside) == {ObjectField, ObjectPartial}


async def test_half_a_surrogate_pair_waits_for_its_other_half() -> None:
    run = await told(noted(model([say('{"name": "\ud83d'), say('\ude00"}')]), "json_mode"))
    assert fields(run) == [(["name"], "😀")]


async def test_a_model_whose_tokens_are_not_for_the_reader_tells_no_object() -> None:
    run = await told(noted(model(turn("json_mode")), "json_mode").with_config(tags=["nostream"]))
    assert not run.all(ObjectField)
    assert not run.all(ObjectPartial)
