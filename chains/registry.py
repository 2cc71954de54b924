"""The built-in agents by name. To add one: a file in this room that builds it, and a line here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from chains.approval import build_approval
from chains.assistant import build_assistant
from chains.chat import build_chat
from chains.extract import build_extract
from chains.research import build_research
from chains.toolnode import ToolLimits

Build = Callable[[BaseChatModel, Sequence[BaseTool], ToolLimits], Runnable[Any, Any]]


class Builtin(NamedTuple):
    """How to build an agent, what it is, in one sentence, and the names of its tools."""

    build: Build
    description: str
    tools: tuple[str, ...] = ()


BUILTINS: Mapping[str, Builtin] = {
    "chat": Builtin(lambda model, tools, limits: build_chat(model), "A prompt and a model: plain token streaming."),
    "assistant": Builtin(
        lambda model, tools, limits: build_assistant(model, tools, limits=limits),
        "A model with tools that run in parallel: arithmetic, time, weather, docs.",
        ("calculator", "clock", "weather", "search_documents"),
    ),
    "approval": Builtin(
        build_approval,
        "An assistant that writes e-mails, each of which a person approves, edits or rejects first.",
        ("send_email", "clock"),
    ),
    "research": Builtin(
        build_research,
        "A question split into several that are looked into at the same time, each with tools, and one answer of all.",
        ("search_documents", "calculator", "weather", "clock"),
    ),
    "extract": Builtin(
        lambda model, tools, limits: build_extract(model),
        "An object out of a text, by a JSON schema of yours or its general facts, filling in while the model writes.",
    ),
}
