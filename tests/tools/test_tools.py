import asyncio
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException
from pydantic import ValidationError

import tools
from tools.calculator import build_calculator
from tools.clock import build_clock
from tools.search_documents import build_search_documents
from tools.send_email import build_send_email
from tools.weather import build_weather

ROOM = {
    "calculator": build_calculator(),
    "clock": build_clock(),
    "search_documents": build_search_documents(Path(__file__).parent),
    "send_email": build_send_email(Path("never-written")),
    "weather": build_weather(),
}


async def ask(tool: BaseTool, first: object, **others: object) -> Any:
    """Call the tool as a model does, with this as its first argument and something for those that it needs besides."""
    needed = tool.get_input_jsonschema().get("required", [])
    args = {**dict.fromkeys(needed, "something"), next(iter(tool.args)): first, **others}
    return await tool.ainvoke({"type": "tool_call", "id": "call", "name": tool.name, "args": args})


every_tool = pytest.mark.parametrize("tool", ROOM.values(), ids=ROOM)


def test_every_file_of_the_room_is_held_to_these_rules() -> None:
    assert {module.name for module in pkgutil.iter_modules(tools.__path__)} == set(ROOM)


def test_the_map_of_the_room_names_every_file() -> None:
    assert all(f"``{name}.py``" in (tools.__doc__ or "") for name in ROOM)


@pytest.mark.parametrize(("name", "tool"), ROOM.items(), ids=ROOM)
def test_a_tool_is_called_like_its_file(name: str, tool: BaseTool) -> None:
    assert tool.name == name


@every_tool
def test_a_tool_says_what_it_is_for(tool: BaseTool) -> None:
    assert len(tool.description) > 40
    assert "Args:" not in tool.description


@every_tool
def test_a_tool_has_a_label_for_the_person_who_waits(tool: BaseTool) -> None:
    label = (tool.metadata or {})["label"]
    assert label[0].isupper()
    assert label.endswith("…")


@every_tool
def test_every_argument_is_typed_and_described(tool: BaseTool) -> None:
    assert tool.args
    for argument in tool.args.values():
        assert argument["type"] == "string"
        assert len(argument["description"]) > 20


def test_two_tools_of_one_kind_share_nothing() -> None:
    assert build_calculator().metadata is not build_calculator().metadata


@every_tool
@pytest.mark.parametrize("wrong", [5, None, ["a"], {"a": 1}, b"\xff", "\ud800"], ids=ascii)
async def test_an_argument_of_another_type_is_refused(tool: BaseTool, wrong: object) -> None:
    with pytest.raises((ValidationError, ToolException)):
        await ask(tool, wrong)


@every_tool
async def test_a_huge_argument_is_refused_in_a_short_message(tool: BaseTool) -> None:
    with pytest.raises(ToolException) as refused:
        await ask(tool, "9" * 5_000_000)
    assert len(str(refused.value)) < 500


@every_tool
async def test_arguments_nobody_asked_for_change_nothing(tool: BaseTool) -> None:
    with pytest.raises(ToolException):
        await ask(tool, "?" * 2000, folder="/", base_url="http://127.0.0.1:1", now="never", outbox="/")


async def test_tools_answer_a_models_calls_side_by_side() -> None:
    calls = [
        ("calculator", {"expression": "6 * 7"}),
        ("clock", {"zone": "Asia/Tokyo"}),
        ("clock", {}),
        ("search_documents", {"query": "zzz"}),
    ]
    answers = await asyncio.gather(
        *(
            ROOM[name].ainvoke({"type": "tool_call", "id": f"call-{number}", "name": name, "args": args})
            for number, (name, args) in enumerate(calls)
        )
    )
    assert all(isinstance(answer, ToolMessage) and answer.status == "success" for answer in answers)
    assert [answer.tool_call_id for answer in answers] == ["call-0", "call-1", "call-2", "call-3"]
    assert answers[0].content == "42"
