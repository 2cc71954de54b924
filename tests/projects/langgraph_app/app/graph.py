"""Model and tools in turn, until the model asks for no more tools."""

from langchain_core.messages import SystemMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from tools import TOOLS

from .model import build_model
from .prompts import system_prompt


async def model(state: MessagesState) -> dict:
    """Let the model answer, or ask for tools."""
    reply = await build_model().bind_tools(TOOLS).ainvoke([SystemMessage(system_prompt()), *state["messages"]])
    return {"messages": [reply]}


_builder = StateGraph(MessagesState)
_builder.add_node("model", model)
_builder.add_node("tools", ToolNode(TOOLS))
_builder.add_edge(START, "model")
_builder.add_conditional_edges("model", tools_condition)
_builder.add_edge("tools", "model")

graph = _builder.compile(name="support desk")
