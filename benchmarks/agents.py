"""The graphs that the benchmarks serve, by Millrace and by its peer alike: such as users write, on a plain ChatOpenAI.

Each is a factory without arguments, so that ``millrace serve NAME=agents:NAME`` takes it. The provider is the one that
the environment names; ``live``, which only makes load, talks to ``LOAD_BASE_URL``, so that what the provider's own
loop owes to the load is no part of what is measured.
"""

import asyncio
import gc
import os
import threading
import time
from collections import Counter
from typing import Any

from graph import answering, plain_model
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import BaseTool, tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from app.runs.executor import NodeExecutor
from chains.assistant import build_assistant
from chains.chat import build_chat

State = dict[str, Any]


def chat() -> Runnable[Any, Any]:
    """A prompt and a model: the built-in agent of that name, with a plain model."""
    return build_chat(plain_model())


def live() -> Runnable[Any, Any]:
    """One model node, for the load."""
    return answering(plain_model(os.environ.get("LOAD_BASE_URL")))


def nested() -> Runnable[Any, Any]:
    """A model in a subgraph's node."""
    graph = StateGraph(MessagesState)
    graph.add_node("inner", answering(plain_model()))
    graph.add_edge(START, "inner")
    return graph.compile()


def consulting() -> Runnable[Any, Any]:
    """A tool that asks a model what the user asked; the call comes from no model, so that one request tells all."""
    model = plain_model()

    @tool
    async def consult(question: str, config: RunnableConfig) -> str:
        """Ask a model."""
        return (await model.ainvoke(question, config)).text

    async def ask(state: MessagesState) -> State:
        call = {"name": "consult", "args": {"question": state["messages"][-1].text}, "id": "c1", "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_node("tools", ToolNode([consult]))
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "tools")
    return graph.compile()


NAP_MS = 200
"""How long the tools of the napping agents take."""


def napping() -> Runnable[Any, Any]:
    """A model with a tool that takes its time: the built-in assistant, with a plain model."""
    return build_assistant(plain_model(), [_nap()])


def napping_in_threads() -> Runnable[Any, Any]:
    """The same with a synchronous tool, which works in a thread."""
    return build_assistant(plain_model(), [_nap_in_thread()])


def napping_plainly() -> Runnable[Any, Any]:
    """The peer: LangGraph's own node for tools, as it comes."""
    return _with_tool(_nap())


def napping_plainly_in_threads() -> Runnable[Any, Any]:
    """The same with a synchronous tool."""
    return _with_tool(_nap_in_thread())


def blocking() -> Runnable[Any, Any]:
    """A model that is called by a synchronous node, so in a thread."""
    model = plain_model()

    def answer(state: MessagesState) -> State:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile()


def census() -> Runnable[Any, Any]:
    """What the server's process holds, as whoever runs in it can see: tasks, threads, and the threads at work."""

    async def count(_: str) -> State:
        gc.collect()
        executors = [one for one in gc.get_objects() if isinstance(one, NodeExecutor)]  # uvloop hides the loop's own
        names = Counter(thread.name.rpartition("-")[0] for thread in threading.enumerate())
        kept = names["node"] + names["lookup"]
        return {
            "tasks": len(asyncio.all_tasks()),
            "at_work": sum(one.running for one in executors),
            "threads": names.total() - kept,
        }

    return RunnableLambda(count)


def _with_tool(nap: BaseTool) -> Runnable[Any, Any]:
    model = plain_model().bind_tools([nap])

    async def answer(state: MessagesState) -> State:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", answer)
    graph.add_node("tools", ToolNode([nap]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()


def _nap() -> BaseTool:
    @tool
    async def nap(number: int) -> str:
        """Take a nap."""
        await asyncio.sleep(NAP_MS / 1000)
        return f"nap {number} is over"

    return nap


def _nap_in_thread() -> BaseTool:
    @tool
    def nap(number: int) -> str:
        """Take a nap."""
        time.sleep(NAP_MS / 1000)
        return f"nap {number} is over"

    return nap
