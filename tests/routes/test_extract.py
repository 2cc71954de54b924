"""``extract`` over real HTTP: an object that is told field by field, and errors that say what they are."""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any, get_args

import httpx
import jsonschema_rs
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from langchain_core.messages import HumanMessage
from langserve import RemoteRunnable
from orders import ORDER, SCHEMA, TEXT, leaves
from serving import Served

from chains.extract import Method

METHODS: tuple[Method, ...] = get_args(Method)
CITY = {"title": "City", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


async def run(client: httpx.AsyncClient, value: Any, **more: Any) -> list[ServerSentEvent]:
    async with aconnect_sse(client, "POST", "/agents/extract/runs", json={"input": value, **more}) as source:
        source.response.raise_for_status()
        return [event async for event in source.aiter_sse()]


def named(events: list[ServerSentEvent], name: str) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in events if event.event == name]


def refusals(events: list[ServerSentEvent]) -> list[tuple[int, int]]:
    told = [one["data"] for one in named(events, "custom") if one["name"] == "object.refused"]
    return [(one["attempt"], one["attempts"]) for one in told]


async def result(client: httpx.AsyncClient, events: list[ServerSentEvent]) -> Any:
    run_id = named(events, "run.started")[0]["run_id"]
    return (await client.get(f"/runs/{run_id}/result")).json()


def loosened(schema: Any) -> Any:
    """The schema of what may be there so far: texts may go on, and nothing has to be there."""
    if isinstance(schema, dict):
        return {key: loosened(value) for key, value in schema.items() if key not in ("required", "minItems", "format")}
    return [loosened(item) for item in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize(
    ("method", "cut"),
    [*itertools.product(METHODS, ("", "[[lump=1]] ")), ("json_schema", "[[byte_by_byte=1]] ")],
)
async def test_an_object_of_thirty_fields_is_told_field_by_field(
    client: httpx.AsyncClient, method: Method, cut: str
) -> None:
    events = await run(client, asked(f"{cut}[[burst=1]] {TEXT}", schema=SCHEMA, method=method))
    fields = [(tuple(one["path"]), one["value"]) for one in named(events, "object.field")]
    assert fields == list(leaves(ORDER))
    assert len(fields) >= 30
    partials = [one["value"] for one in named(events, "object.partial")]
    so_far = jsonschema_rs.validator_for(loosened(SCHEMA))
    assert all(so_far.is_valid(partial) for partial in partials)
    assert partials[-1] == ORDER
    whole = await result(client, events)
    assert (whole["status"], whole["object"]) == ("completed", ORDER)
    assert {"token", "tool.pending", "tool.args"}.isdisjoint(event.event for event in events)


@pytest.mark.parametrize("method", METHODS)
async def test_an_object_that_comes_byte_by_byte_is_told_the_same(client: httpx.AsyncClient, method: Method) -> None:
    properties = {"name": {"type": "string"}, "home": {"type": "object", "properties": {"floor": {"type": "integer"}}}}
    schema = {"title": "Person", "type": "object", "properties": properties, "required": ["name", "home"]}
    events = await run(client, asked("[[byte_by_byte=1]] Name: Ada, floor: 17", schema=schema, method=method))
    fields = [(one["path"], one["value"]) for one in named(events, "object.field")]
    assert fields == [(["name"], "Ada"), (["home", "floor"], 17)]
    assert (await result(client, events))["object"] == {"name": "Ada", "home": {"floor": 17}}


@pytest.fixture
async def remote(served: Served) -> AsyncIterator[Any]:
    one: Any = RemoteRunnable(f"{served.url}/agents/extract", timeout=20)
    try:
        yield one
    finally:
        await one.async_client.aclose()
        one.sync_client.close()


@pytest.mark.parametrize("method", METHODS)
async def test_langserves_stream_yields_the_same_partial_objects(
    remote: Any, client: httpx.AsyncClient, method: Method
) -> None:
    value: Any = {"messages": [HumanMessage(f"[[burst=1]] {TEXT}")], "schema": SCHEMA, "method": method}
    chunks = [chunk["extract"]["structured_response"] async for chunk in remote.astream(value)]
    events = await run(client, asked(f"[[burst=1]] {TEXT}", schema=SCHEMA, method=method))
    assert chunks == [*(one["value"] for one in named(events, "object.partial")), ORDER]
    assert (await remote.ainvoke(value))["structured_response"] == ORDER


async def test_a_plain_text_gives_its_facts(client: httpx.AsyncClient) -> None:
    events = await run(client, "Ada Lovelace met Charles Babbage.")
    found = (await result(client, events))["object"]
    assert [one["name"] for one in found["people"]] == ["Ada Lovelace", "Charles Babbage"]
    assert named(events, "object.partial")[-1]["value"] == found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["trailing_comma", "mismatched", "cut_string", "wrong_type", "empty"])
async def test_an_answer_that_is_broken_once_ends_in_the_right_one(
    client: httpx.AsyncClient, method: Method, kind: str
) -> None:
    events = await run(client, asked(f"[[bad_json={kind} burst=1]] {TEXT}", schema=SCHEMA, method=method))
    assert named(events, "run.finished")[0]["status"] == "completed"
    assert (await result(client, events))["object"] == ORDER
    nodes = [one["node"] for one in named(events, "node.started")]
    certain = kind in ("trailing_comma", "mismatched")
    assert nodes == (["extract"] if certain else ["extract", "correct"])
    assert refusals(events) == ([] if certain else [(1, 2)])
    assert not named(events, "token")
    assert len(named(events, "message.started")) == len(nodes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["cut_string", "wrong_type", "empty"])
async def test_an_answer_that_stays_broken_ends_in_the_named_error_and_the_thread_goes_on(
    client: httpx.AsyncClient, method: Method, kind: str
) -> None:
    thread_id = f"broken-{kind}-{method}"
    bad = asked(f"[[bad_json={kind}&call=all burst=1]] {TEXT}", schema=SCHEMA, method=method)
    events = await run(client, bad, thread_id=thread_id)
    (error,) = named(events, "error")
    assert (error["code"], error["retryable"]) == ("invalid_object", False)
    assert error["message"].startswith("The model's answer does not fit the schema Order: ")
    assert events[-1].event == "run.finished"
    assert named(events, "run.finished")[0]["status"] == "failed"
    assert refusals(events) == [(1, 2), (2, 2)]
    assert not named(events, "token")
    assert len(named(events, "message.started")) == 2
    if kind == "cut_string":  # what there is
        assert (await result(client, events))["object"]["customer"] == ORDER["customer"]
    events = await run(client, asked("Ada lives there", schema=CITY, method=method), thread_id=thread_id)
    assert (await result(client, events))["object"] == {"name": "Ada"}


@pytest.mark.parametrize("method", METHODS)
async def test_max_tokens_that_are_too_few_are_told_as_such(client: httpx.AsyncClient, method: Method) -> None:
    events = await run(client, asked(f"[[burst=1]] {TEXT}", schema=SCHEMA, method=method), max_tokens=30)
    (error,) = named(events, "error")
    assert error["code"] == "invalid_object"
    assert "cut off at the limit of tokens" in error["message"]


async def test_a_second_text_on_a_thread_has_an_object_of_its_own(client: httpx.AsyncClient) -> None:
    for name in ("Ada", "Grace"):
        events = await run(client, asked(f"{name} lives there", schema=CITY), thread_id="two-texts")
        assert (await result(client, events))["object"] == {"name": name}
    events = await run(client, "Alan lives there", thread_id="two-texts")
    assert (await result(client, events))["object"]["people"][0]["name"] == "Alan"
    said = (await client.get("/threads/two-texts")).json()["messages"]
    assert [one["type"] for one in said] == ["human", "ai"] * 3
    assert json.loads(said[1]["content"]) == {"name": "Ada"}


@pytest.mark.parametrize(
    ("more", "field", "said"),
    [
        ({"schema": {"type": "array"}}, "input.schema", "must describe an object"),
        ({"schema": {"type": "object"}}, "input.schema", "properties"),
        ({"schema": {"properties": {"a": {"$ref": "https://example.com/a"}}}}, "input.schema", "its own parts"),
        ({"schema": {"properties": {"a": {"$ref": "#/properties/a"}}}}, "input.schema", "refers to itself"),
        ({"schema": {"properties": {"a": {"type": "text"}}}}, "input.schema", "properties.a.type"),
        ({"schema": "Order"}, "input.schema", "dictionary"),
        ({"method": "telepathy"}, "input.method", "json_mode"),
    ],
)
async def test_a_schema_that_cannot_be_used_is_refused_before_a_model_is_asked(
    served: Served, client: httpx.AsyncClient, more: dict[str, Any], field: str, said: str
) -> None:
    before = len(served.simulator.requests)
    answer = await client.post("/agents/extract/runs", json={"input": asked("Ada", **more)})
    assert answer.status_code == 422
    (problem,) = answer.json()["error"]["detail"]
    assert problem["field"] == field
    assert said in problem["message"]
    remote = await client.post("/agents/extract/invoke", json={"input": asked("Ada", **more)})
    assert remote.status_code == 422
    assert len(served.simulator.requests) == before


async def test_agents_show_what_may_be_asked(client: httpx.AsyncClient) -> None:
    rows = (await client.get("/agents")).json()["agents"]
    row = next(one for one in rows if one["name"] == "extract")
    assert row["input_schema"]["required"] == ["messages"]
    assert {"schema", "method"} <= row["input_schema"]["properties"].keys()
    assert "structured_response" in row["output_schema"]["properties"]
    assert row["capabilities"]["text_input"]
    assert row["capabilities"]["threads"]
