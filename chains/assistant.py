"""``assistant``: a LangGraph graph in which a model and its tools take turns until the model has an answer.

``START → model → check → (approve →) tools → model … → END``, over ``{"messages": […]}``. The model node keeps calls as
they were written (``chains.transcript``). ``check`` alone judges them, and answers those that cannot be made
(``chains.checking``). ``approve``, there if one of the tools needs it, asks a person (``chains.approving``). ``tools``
runs what has no result yet, each call as a task of its own, in parallel (``chains.toolnode``). A model that makes
nothing of its errors is stopped in ``give_up``, by ``InvalidToolArgs``.

Each call gets a result, whatever becomes of it, and none takes the others with it.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from chains.approving import build_approve, needs_approval
from chains.checking import build_check, give_up, gives_up
from chains.step import Step
from chains.toolnode import ToolLimits, build_tool_node, open_calls
from chains.transcript import transcript

SYSTEM = (
    "You are a helpful assistant with tools. Use them where they know better than you; ask for everything you need "
    "at once, so that the tools run in parallel. If a tool fails, say so. Answer in the language of the question."
)

MAX_STEPS = 100
"""Steps of the graph, three or four a turn: a model that asks for tools for ever is stopped."""

Assistant = CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]
Update = dict[str, list[BaseMessage]]


def build_assistant(
    model: BaseChatModel, tools: Sequence[BaseTool], *, system: str = SYSTEM, limits: ToolLimits = ToolLimits()
) -> Assistant:
    """The graph of this model and these tools."""
    asks = any(needs_approval(tool) for tool in tools)
    runs = build_tool_node(tools, limits)

    def checked(state: MessagesState) -> Any:
        if gives_up(state["messages"], limits.attempts):
            return "give_up"
        return "approve" if asks and open_calls(state["messages"]) else approved(state)

    def approved(state: MessagesState) -> Any:
        return runs.tasks(state) or "model"

    graph = StateGraph(MessagesState)
    graph.add_node("model", _speak(model, tools, system))
    graph.add_node("check", build_check(tools, limits.attempts))
    graph.add_node("tools", runs)
    graph.add_node("give_up", Step(_give_up))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", Step(_spoken), ["check", END])
    graph.add_conditional_edges("check", Step(checked), ["tools", "model", "give_up", *(["approve"] if asks else [])])
    if asks:
        graph.add_node("approve", build_approve(tools))
        graph.add_conditional_edges("approve", Step(approved), ["tools", "model"])
    graph.add_edge("tools", "model")
    graph.add_edge("give_up", END)
    return graph.compile().with_config(recursion_limit=MAX_STEPS)


def _speak(model: BaseChatModel, tools: Sequence[BaseTool], system: str) -> Step[MessagesState, Update]:
    """The node in which the model speaks."""
    bound = model.bind_tools(tools) if tools else model

    def speak(state: MessagesState) -> Update:
        return {"messages": [transcript(list(bound.stream(_prompt(system, state))))]}

    async def aspeak(state: MessagesState) -> Update:
        return {"messages": [transcript([chunk async for chunk in bound.astream(_prompt(system, state))])]}

    return Step(speak, aspeak)


def _prompt(system: str, state: MessagesState) -> list[Any]:
    return [SystemMessage(system), *state["messages"]]


def _spoken(state: MessagesState) -> str:
    """Where the model's message leads: to the judging of its calls, if it makes any."""
    last = next(one for one in reversed(state["messages"]) if isinstance(one, AIMessage))
    return "check" if last.tool_calls or last.invalid_tool_calls else END


def _give_up(state: MessagesState) -> Update:
    give_up(state["messages"])
