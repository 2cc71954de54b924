"""Turns on a thread, as pure order; and a thread that a run left in the middle is made fit for its next turn."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send

from app.errors import Conflict
from app.eventlog.memory import MemoryLog
from app.events.request import RunRequest
from app.runs.agent import Agent
from app.runs.run import Run
from app.runs.scope import Ending, Scope
from app.runs.threads import MAX_QUEUED, Turns, is_broken, repair

AGENT = Agent("echo", RunnableLambda(lambda value: value))
CONFIG: Any = {"configurable": {"thread_id": "t"}}


@pytest.fixture(autouse=True)
async def loop() -> None:
    """A run belongs to a loop."""


def new_run(name: str) -> Run:
    request = RunRequest(input="hi", thread_id="t")
    return Run(
        name, agent=AGENT, request=request, user="ann", idempotency_key=None,
        log=MemoryLog(), scope=Scope("continue", 0), grammar=None,
    )  # fmt: skip


async def test_the_first_run_has_its_turn_at_once_and_the_others_in_their_order() -> None:
    turns, runs = Turns(), [new_run(name) for name in "abc"]
    for run in runs:
        turns.enter(run, "t", "enqueue")
    assert [run.turn.is_set() for run in runs] == [True, False, False]
    turns.leave(runs[0], "t")
    assert [run.turn.is_set() for run in runs] == [True, True, False]
    assert turns.busy("t") is runs[1]
    turns.leave(runs[2], "t")  # one that waits may go as well
    turns.leave(runs[1], "t")
    assert turns.busy("t") is None


async def test_threads_do_not_wait_for_each_other() -> None:
    turns, one, two = Turns(), new_run("a"), new_run("b")
    turns.enter(one, "t", "reject")
    turns.enter(two, "u", "reject")
    assert two.turn.is_set()


async def test_a_run_that_will_not_wait_is_refused_and_leaves_no_trace() -> None:
    turns, one, two = Turns(), new_run("a"), new_run("b")
    turns.enter(one, "t", "reject")
    with pytest.raises(Conflict, match="already runs"):
        turns.enter(two, "t", "reject")
    turns.leave(one, "t")
    turns.enter(two, "t", "reject")


async def test_only_so_many_may_wait() -> None:
    turns = Turns()
    for number in range(1 + MAX_QUEUED):
        turns.enter(new_run(f"r{number}"), "t", "enqueue")
    for strategy in ("enqueue", "interrupt"):
        with pytest.raises(Conflict, match="wait on this thread"):
            turns.enter(new_run("late"), "t", strategy)


async def test_an_interrupting_run_ends_the_one_that_runs_and_is_next() -> None:
    turns, old, waits, new = Turns(), new_run("a"), new_run("b"), new_run("c")
    turns.enter(old, "t", "reject")
    turns.enter(waits, "t", "enqueue")
    turns.enter(new, "t", "interrupt")
    assert old.scope.ending == Ending("cancelled", "superseded")
    assert not new.turn.is_set()
    turns.leave(old, "t")
    assert (new.turn.is_set(), waits.turn.is_set()) == (True, False)


# Repairs. The graphs are left where a run ended by not letting them go on: `interrupt_before`.


def asks(*calls: str, invalid: bool = False) -> AIMessage:
    made = [{"name": "t", "args": {}, "id": call, "type": "tool_call"} for call in calls]
    broken = [{"name": "t", "args": "{", "id": "bad", "type": "invalid_tool_call", "error": None}] if invalid else []
    return AIMessage("calling", id="m-1", tool_calls=made, invalid_tool_calls=broken)


def caller(message: AIMessage, *, branching_start: bool = False) -> StateGraph[Any, Any, Any, Any]:
    graph: Any = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [message]})
    graph.add_node("tools", lambda state: {"messages": [ToolMessage("ok", tool_call_id="c1")]})
    if branching_start:
        graph.add_conditional_edges(START, lambda state: "model" if len(state["messages"]) == 1 else 1 / 0)
    else:
        graph.add_edge(START, "model")
    graph.add_edge("model", "tools")
    graph.add_edge("tools", END)
    return graph  # type: ignore[no-any-return]


async def left_before(node: str, graph: StateGraph[Any, Any, Any, Any], *earlier: BaseMessage) -> Any:
    built = graph.compile(checkpointer=InMemorySaver(), interrupt_before=[node])
    await built.ainvoke({"messages": [*earlier, HumanMessage("hi", id="h-1")]}, CONFIG)
    return built


async def messages_of(graph: Any) -> list[BaseMessage]:
    state = await graph.aget_state(CONFIG)
    assert state.next == ()
    messages: list[BaseMessage] = state.values["messages"]
    return messages


@pytest.mark.parametrize("branching_start", [False, True])
async def test_each_open_call_gets_an_error_result_and_nothing_is_left_to_do(branching_start: bool) -> None:
    graph = await left_before("tools", caller(asks("c1", "c2", invalid=True), branching_start=branching_start))
    assert is_broken(await graph.aget_state(CONFIG))
    await repair(graph, CONFIG, said=(), why="It was stopped.")
    messages = await messages_of(graph)
    results = [message for message in messages if isinstance(message, ToolMessage)]
    assert [result.tool_call_id for result in results] == ["c1", "c2", "bad"]
    assert {(result.status, result.content) for result in results} == {("error", "Error: It was stopped.")}
    assert not is_broken(await graph.aget_state(CONFIG))


@pytest.mark.parametrize("calls", [("c1",), ("c1", "c2")])
async def test_a_call_has_no_result_by_that_of_an_earlier_turn_which_had_the_same_id(calls: tuple[str, ...]) -> None:
    """Some providers count their calls, and begin anew with each answer."""
    first = asks("c1", "c2").model_copy(update={"id": "m-0"})
    done = [ToolMessage("done", tool_call_id=one, id=f"t-{one}") for one in ("c1", "c2")]
    earlier = [HumanMessage("go", id="h-0"), first, *done, AIMessage("Done.", id="m-00")]
    graph = await left_before("tools", caller(asks(*calls)), *earlier)
    await repair(graph, CONFIG, said=(), why="It was stopped.")
    messages = await messages_of(graph)
    assert messages[: len(earlier)] == earlier
    results = [one for one in messages[len(earlier) :] if isinstance(one, ToolMessage)]
    assert [(one.tool_call_id, one.status) for one in results] == [(one, "error") for one in calls]
    assert not is_broken(await graph.aget_state(CONFIG))


async def test_a_thread_whose_repair_was_broken_off_is_known_though_an_earlier_turn_had_the_same_ids() -> None:
    graph = await left_before("tools", caller(asks("c1")))
    await graph.ainvoke(None, CONFIG)
    assert not is_broken(await graph.aget_state(CONFIG))
    await graph.aupdate_state(CONFIG, {"messages": [asks("c1").model_copy(update={"id": "m-2"})]}, as_node="tools")
    state = await graph.aget_state(CONFIG)
    assert state.next == ()
    assert is_broken(state)
    assert not is_broken(state, [ToolMessage("ok", tool_call_id="c1")])


async def test_what_was_said_is_appended_once_and_after_the_results() -> None:
    graph = await left_before("tools", caller(asks("c1")))
    said = [AIMessage("calling", id="m-1"), AIMessage("so far", id="m-2")]
    await repair(graph, CONFIG, said=said, why="no")
    await repair(graph, CONFIG, said=said, why="no")
    messages: list[AnyMessage] = await messages_of(graph)  # type: ignore[assignment]
    assert [(message.type, message.id) for message in messages if message.type != "tool"] == [
        ("human", "h-1"), ("ai", "m-1"), ("ai", "m-2"),
    ]  # fmt: skip
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]


async def test_the_results_of_tools_that_were_done_are_kept() -> None:
    """One of two parallel steps has a result and the other has none: LangGraph keeps the first beside the state."""

    async def tool(state: Any) -> Any:
        if state["call"] == "c2":
            raise ValueError("no")
        return {"messages": [ToolMessage("ok", tool_call_id=state["call"])]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [asks("c1", "c2")]})
    graph.add_node("tool", tool)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda state: [Send("tool", {"call": one}) for one in ("c1", "c2")], ["tool"])
    built = graph.compile(checkpointer=InMemorySaver())
    with pytest.raises(ValueError, match="no"):
        await built.ainvoke({"messages": [HumanMessage("hi")]}, CONFIG)
    await repair(built, CONFIG, said=(), why="It failed.")
    results = [one for one in await messages_of(built) if isinstance(one, ToolMessage)]
    assert {result.tool_call_id: result.status for result in results} == {"c1": "success", "c2": "error"}


async def test_a_thread_on_which_nothing_happened_is_left_alone() -> None:
    graph = caller(asks("c1")).compile(checkpointer=InMemorySaver())
    await repair(graph, CONFIG, said=(), why="no")
    assert (await graph.aget_state(CONFIG)).values == {}
