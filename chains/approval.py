"""``approval``: the assistant's graph with a tool that has an effect on the world, which a person allows or forbids.

It is the assistant but for its words: what makes it wait is the tool's own mark (see ``chains.approving``). The answer
comes in a later request, so the conversation has a thread; whoever answers need not be the client that asked.
"""

from collections.abc import Sequence

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.graph import MessagesState
from langgraph.graph.state import CompiledStateGraph

from chains.assistant import build_assistant
from chains.toolnode import ToolLimits

SYSTEM = (
    "You are a helpful assistant that can write e-mails for the user. A person reviews each one before it goes out, "
    "and may change or reject it: do not ask for permission yourself. Say afterwards what was done, by the tool's "
    "result and not by what you asked for. If a call was rejected, do not make it again unless you are asked to. "
    "Answer in the language of the question."
)


def build_approval(
    model: BaseChatModel, tools: Sequence[BaseTool], limits: ToolLimits = ToolLimits()
) -> CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]:
    """The graph ``START → model → check → approve → tools → model … → END``, over ``{"messages": […]}``."""
    return build_assistant(model, tools, system=SYSTEM, limits=limits)
