"""The graph that every server serves in the comparisons: one model node, as a user would write it.

A plain ``ChatOpenAI`` at the provider that the environment names. Nothing of the house is imported, so that peers that
live in an environment of their own serve the very same file.
"""

import os
from typing import Any

from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import SecretStr


def answering(model: ChatOpenAI) -> Runnable[Any, Any]:
    """A graph of one node, which answers."""

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph.compile()


def plain_model(base_url: str | None = None) -> ChatOpenAI:
    """The provider that the environment names, or another one. Nothing is tried twice: a failure is to be seen."""
    return ChatOpenAI(
        base_url=base_url or os.environ.get("OPENAI_BASE_URL"),
        api_key=SecretStr("none"),
        model="simulated",
        stream_usage=True,
        max_retries=0,
    )
