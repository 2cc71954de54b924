"""A graph that is built by a factory which asks for the config, as LangGraph allows."""

from langchain_core.messages import SystemMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from app.model import build_model


async def make_graph(config: RunnableConfig) -> CompiledStateGraph:
    """Translate into the configured language; French when none is."""
    language = config["configurable"].get("language", "French")

    async def translate(state: MessagesState) -> dict:
        reply = await build_model().ainvoke([SystemMessage(f"Translate into {language}."), *state["messages"]])
        return {"messages": [reply]}

    builder = StateGraph(MessagesState)
    builder.add_node("translate", translate)
    builder.add_edge(START, "translate")
    builder.add_edge("translate", END)
    return builder.compile()
