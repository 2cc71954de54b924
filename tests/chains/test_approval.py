"""The agent that asks before it acts, with a model that says what the test tells it to."""

import copy
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command
from scripted import Scripted, piece, say, words

from chains.approval import build_approval
from tools.clock import build_clock
from tools.send_email import build_send_email

CONFIG: RunnableConfig = {"configurable": {"thread_id": "t"}}
ARGS = '{"to": "ada@example.com", "subject": "Build", "body": "It is green."}'


def agent(outbox: Path, *turns: Any) -> CompiledStateGraph[Any, Any, Any, Any]:
    graph = build_approval(Scripted(turns=list(turns)), [build_send_email(outbox), build_clock()])
    graph.checkpointer = InMemorySaver()
    return graph


def letters(outbox: Path) -> list[Path]:
    return sorted((outbox / "new").glob("*"))


async def asked(graph: CompiledStateGraph[Any, Any, Any, Any], given: Any = None) -> Any:
    state = await graph.ainvoke(given or {"messages": [HumanMessage("write to Ada")]}, CONFIG)
    found = state.get("__interrupt__", ())
    return found[0].value if found else state["messages"]


@pytest.mark.parametrize(("answer", "count"), [("approve", 1), ("reject", 0)])
async def test_a_letter_is_written_when_a_person_says_so_and_not_otherwise(
    tmp_path: Path, answer: str, count: int
) -> None:
    graph = agent(tmp_path, [say("", piece("send_email", ARGS, "c0", 0))], words("As ", "you wish."))
    question = await asked(graph)
    assert question["action_requests"][0]["args"]["to"] == "ada@example.com"
    assert letters(tmp_path) == []
    *_, result, last = await asked(graph, Command(resume=answer))
    assert (len(letters(tmp_path)), result.status) == (count, "success" if count else "error")
    assert last.text == "As you wish."


async def test_a_call_that_cannot_be_made_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    broken = [say("", piece("send_email", '{"to": "ada@example.com"}', "c0", 0))]
    messages = await asked(agent(tmp_path, broken, words("I do not know what to write.")))
    assert [type(one) for one in messages[1:]] == [AIMessage, ToolMessage, AIMessage]
    assert messages[2].status == "error"


async def test_a_broken_call_beside_a_sound_one_is_not_run_by_the_approval(tmp_path: Path) -> None:
    two = [say("", piece("send_email", ARGS, "c0", 0), piece("send_email", '{"to": "eve', "c1", 1))]
    graph = agent(tmp_path, two, words("Done."))
    question = await asked(graph)
    assert [one["call_id"] for one in question["action_requests"]] == ["c0"]
    messages = await asked(graph, Command(resume="approve"))
    assert len(letters(tmp_path)) == 1
    results = {one.tool_call_id: one.status for one in messages if isinstance(one, ToolMessage)}
    assert results == {"c0": "success", "c1": "error"}


async def test_what_needs_no_approval_runs_at_once(tmp_path: Path) -> None:
    *_, last = await asked(agent(tmp_path, [say("", piece("clock", "{}", "c0", 0))], words("Late.")))
    assert last.text == "Late."


async def test_an_approval_that_was_lost_with_its_server_writes_no_second_letter_when_it_is_given_again(
    tmp_path: Path,
) -> None:
    graph = agent(tmp_path, [say("", piece("send_email", ARGS, "c0", 0))], words("Done."))
    await asked(graph)
    before = copy.deepcopy(graph.checkpointer)
    await asked(graph, Command(resume="approve"))
    graph.checkpointer = before  # what was kept when the server was killed: the question, and nothing after it
    assert (await graph.aget_state(CONFIG)).interrupts
    *_, result, last = await asked(graph, Command(resume="approve"))
    assert "is in the outbox already" in result.content
    assert (len(letters(tmp_path)), last.text) == (1, "Done.")
