"""Agents for tests, such as users write: built on a provider's address, with no knowledge of Millrace."""

import asyncio
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

State = dict[str, Any]


def openai(base_url: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=base_url, api_key="none", model="simulated", max_retries=0, **options)  # type: ignore[arg-type]


def nested(base_url: str) -> Runnable[Any, Any]:
    """A model in a subgraph's node."""
    model = openai(base_url, stream_usage=True)

    async def think(state: MessagesState) -> State:
        return {"messages": [await model.ainvoke(state["messages"])]}

    inner = StateGraph(MessagesState)
    inner.add_node("think", think)
    inner.add_edge(START, "think")
    outer = StateGraph(MessagesState)
    outer.add_node("deep", inner.compile())
    outer.add_edge(START, "deep")
    return outer.compile()


def branches(base_url: str, count: int = 3) -> Runnable[Any, Any]:
    """Several models at once, in parallel branches."""
    model = openai(base_url, stream_usage=True)

    def branch(name: str) -> Any:
        async def run(state: MessagesState) -> State:
            answer = await model.ainvoke([*state["messages"], HumanMessage(f"as {name}: {state['messages'][0].text}")])
            return {"messages": [answer]}

        return run

    graph = StateGraph(MessagesState)
    for number in range(count):
        graph.add_node(f"b{number}", branch(f"b{number}"))
        graph.add_edge(START, f"b{number}")
    return graph.compile()


def tool_caller(tools: list[BaseTool], calls: list[dict[str, Any]]) -> Runnable[Any, Any]:
    """A graph that makes these calls, without a model."""

    async def ask(state: MessagesState) -> State:
        return {"messages": [AIMessage("", tool_calls=[{**call, "type": "tool_call"} for call in calls])]}

    async def tell(state: MessagesState) -> State:
        return {"messages": [AIMessage("; ".join(str(one.content) for one in state["messages"][2:]))]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_node("tools", ToolNode(tools, handle_tool_errors=True))
    graph.add_node("tell", tell)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "tools")
    graph.add_edge("tools", "tell")
    return graph.compile()


class Slow:
    """A tool that waits until it is let go, and knows whether it was cancelled."""

    def __init__(self) -> None:
        self.entered = 0
        self.cancelled = 0

        @tool
        async def wait(seconds: float = 60) -> str:
            """Wait."""
            self.entered += 1
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return "waited"

        self.tool = wait


def asks_model_in_tool(base_url: str) -> Runnable[Any, Any]:
    """A tool that calls a model of its own."""
    model = openai(base_url)

    @tool
    async def consult(question: str, config: RunnableConfig) -> str:
        """Ask the oracle."""
        return (await model.ainvoke(question, config)).text

    return tool_caller([consult], [{"name": "consult", "args": {"question": "[[tokens=5000]] hm?"}, "id": "c1"}])
