"""The built-in agents by name. To add one: a file in this room that builds it, and a line here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from chains.assistant import build_assistant
from chains.chat import build_chat

Build = Callable[[BaseChatModel, Sequence[BaseTool]], Runnable[Any, Any]]


class Builtin(NamedTuple):
    """How to build an agent, and what it is, in one sentence."""

    build: Build
    description: str


BUILTINS: Mapping[str, Builtin] = {
    "chat": Builtin(lambda model, tools: build_chat(model), "A prompt and a model: plain token streaming."),
    "assistant": Builtin(build_assistant, "A model with tools that run in parallel: arithmetic, time, weather, docs."),
}
