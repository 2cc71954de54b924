"""``assistant``: a LangGraph graph in which a model and its tools take turns until the model has an answer.

The tools of one turn run in parallel. Each call gets a result, in the model's order; a tool that fails gives an
error result, which the model can read and answer to, and never takes the other calls with it. So does a call whose
arguments are not JSON: LangChain keeps such calls apart, and a graph that looks at ``tool_calls`` alone ends silently.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, ToolException
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode

SYSTEM = (
    "You are a helpful assistant with tools. Use them where they know better than you; ask for everything you need "
    "at once, so that the tools run in parallel. If a tool fails, say so. Answer in the language of the question."
)

MAX_STEPS = 50
"""Steps of the graph, two a turn: a model that asks for tools for ever is stopped."""


def build_assistant(
    model: BaseChatModel, tools: Sequence[BaseTool], *, system: str = SYSTEM
) -> CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]:
    """The graph ``START → model ⇄ tools | reject``, over ``{"messages": […]}``."""
    bound = model.bind_tools(tools)

    def call(state: MessagesState) -> dict[str, list[BaseMessage]]:
        return {"messages": [bound.invoke(_prompt(system, state))]}

    async def acall(state: MessagesState) -> dict[str, list[BaseMessage]]:
        return {"messages": [await bound.ainvoke(_prompt(system, state))]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", RunnableLambda(call, acall))
    graph.add_node("tools", ToolNode(tools, handle_tool_errors=tool_failed))
    graph.add_node("reject", reject)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", next_nodes, ["tools", "reject", END])
    graph.add_edge("tools", "model")
    graph.add_edge("reject", "model")
    return graph.compile().with_config(recursion_limit=MAX_STEPS)


def next_nodes(state: MessagesState) -> list[str]:
    """Where the model's message leads: to its calls, sound and broken, or to the end."""
    last = state["messages"][-1]
    assert isinstance(last, AIMessage)
    found = [("tools", last.tool_calls), ("reject", last.invalid_tool_calls)]
    return [node for node, calls in found if calls] or [END]


async def reject(state: MessagesState) -> dict[str, list[ToolMessage]]:
    """An error result for each call whose arguments cannot be read, so that the model can make it anew."""
    last = state["messages"][-1]
    assert isinstance(last, AIMessage)
    said = "Error: the arguments of this call are not valid JSON. Call the tool again with arguments that are."
    return {
        "messages": [
            ToolMessage(said, tool_call_id=call["id"] or "", name=call["name"] or "", status="error")
            for call in last.invalid_tool_calls
        ]
    }


def tool_failed(error: Exception) -> str:
    """What the model is told of a tool's failure: the tool's own words where it wrote them for a reader."""
    if isinstance(error, ToolException):
        return f"Error: {error}"
    if isinstance(error, OSError):
        return f"Error: the tool failed ({type(error).__name__})."
    return f"Error: {type(error).__name__}: {error}"


def _prompt(system: str, state: MessagesState) -> list[Any]:
    return [SystemMessage(system), *state["messages"]]
