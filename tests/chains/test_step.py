"""Nodes and edges that are called where their graph is."""

import threading
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.graph import END, START, MessagesState, StateGraph

from app.runs.executor import blocking_nodes
from chains.step import Step


def graph_of(*steps: Step[Any, Any]) -> Any:
    """A graph of one node; who comes after the first decides where it leads."""
    node, way = steps
    graph = StateGraph(MessagesState)
    graph.add_node("one", node)
    graph.add_edge(START, "one")
    graph.add_conditional_edges("one", way, [END])
    return graph.compile()


async def test_a_graph_calls_them_in_its_own_thread() -> None:
    threads: list[threading.Thread] = []

    def node(_: MessagesState) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return {"messages": []}

    def way(_: MessagesState) -> str:
        threads.append(threading.current_thread())
        return END

    await graph_of(Step(node), Step(way)).ainvoke({"messages": []})
    assert threads == [threading.current_thread()] * 2


async def test_what_they_call_has_their_config() -> None:
    def seen(_: Any) -> Any:
        return ensure_config().get("metadata")

    async def aseen(_: Any) -> Any:
        return ensure_config().get("metadata")

    config = RunnableConfig(metadata={"a": 1})
    assert Step(seen).invoke(0, config) == {"a": 1}
    assert await Step(seen).ainvoke(0, config) == {"a": 1}
    assert await Step(seen, aseen).ainvoke(0, config) == {"a": 1}
    assert ensure_config().get("metadata") == {}


async def test_a_graph_tells_of_the_node_and_of_nothing_in_it() -> None:
    graph = graph_of(Step(lambda _: {"messages": []}), Step(lambda _: END))
    events = [raw async for raw in graph.astream_events({"messages": []}, version="v2")]
    assert [raw["event"] for raw in events if raw["name"] == "one"] == [
        "on_chain_start",
        "on_chain_stream",
        "on_chain_end",
    ]
    assert blocking_nodes(graph) == []
