"""What is served under a name: a runnable, and what must be known of it before it runs.

Everything here is worked out once, when the server starts: the schemas, whether a plain text may be sent, what the
tools are called for people. The runnable handed in is never changed: a graph that was compiled with a checkpointer
is served as a copy without one, since a run without a thread has nowhere to keep its state.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnablePassthrough, RunnableSequence
from langchain_core.tools import BaseTool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel
from pydantic import BaseModel, ValidationError
from typing_extensions import is_typeddict

from app.errors import InvalidInput

Graph = CompiledStateGraph[Any, Any, Any, Any]

ROLES = frozenset(("user", "human", "assistant", "ai", "system", "developer", "tool"))
"""The roles a client may give a message."""

MAX_INPUT_DEPTH = 100
"""Deeper input is refused: what walks it is recursive."""


OBJECT = "structured_response"
"""The key of a graph's output that holds its answer as an object; LangChain's ``create_agent`` calls it so."""


class Agent:
    """A served runnable.

    ``configurable`` names the fields of ``config.configurable`` that clients may set. ``served_model``: all its models
    are Millrace's own, so its runs can be paused and bounded by ``max_tokens``; ``seamless``: its provider goes on with
    an answer as if it had never stopped. ``asks_person``: one of its tools waits for a person, who answers on a thread.
    """

    def __init__(
        self,
        name: str,
        runnable: Runnable[Any, Any],
        *,
        description: str = "",
        model: str | None = None,
        configurable: Sequence[str] = (),
        served_model: bool = False,
        seamless: bool = False,
    ) -> None:
        self.name = name
        self.description = description
        self.model = model
        self.configurable = frozenset(configurable)
        self.served_model = served_model
        self.seamless = seamless
        self.runnable = _served(runnable)
        self.is_graph = isinstance(self.runnable, CompiledStateGraph)
        tools = list(_tools(self.runnable))
        self.labels = {tool.name: _label(tool) for tool in tools}
        self.asks_person = self.is_graph and any((tool.metadata or {}).get("needs_approval") for tool in tools)
        self.input_schema = _input_schema(self.runnable)
        self.output_schema = _output_schema(self.runnable)
        self.takes_messages = "messages" in self.input_schema.get("properties", {})
        self._input_model = _input_model(self.runnable)
        self._takes_parts = _takes_parts(self.runnable)
        self._graphs: dict[int, Graph] = {}

    @property
    def has_threads(self) -> bool:
        """Whether it is a graph whose conversation can be kept."""
        return self.is_graph and self.takes_messages

    def graph(self, saver: BaseCheckpointSaver[Any]) -> Graph:
        """The graph, with its checkpoints kept there. Only where ``is_graph``."""
        graph = self._graphs.get(id(saver))
        if graph is None:
            assert isinstance(self.runnable, CompiledStateGraph)
            graph = self._graphs[id(saver)] = self.runnable.copy({"checkpointer": saver})
        return graph

    @property
    def answers_object(self) -> bool:
        """Whether its answer is an object: a graph says so by a key of its output, a chain by its model's form."""
        return not self.is_graph or OBJECT in self.output_schema.get("properties", ())

    @property
    def takes_text(self) -> bool:
        """Whether a plain text is an input: as a user's message, or because the runnable takes strings."""
        return self.takes_messages or _takes_string(self.input_schema)

    def describe(self) -> dict[str, Any]:
        """One row of ``GET /agents``."""
        return {
            "name": self.name,
            "description": self.description,
            "model": self.model,
            "input_schema": self.input_schema,
            "output_schema": self.output_schema,
            "capabilities": {
                "text_input": self.takes_text,
                "messages": self.takes_messages,
                "tools": sorted(self.labels),
                "threads": self.has_threads,
                "pause": self.served_model,
                "max_tokens": self.served_model,
                "configurable": sorted(self.configurable),
            },
        }

    def prepare(self, value: Any) -> Any:
        """The runnable's input from a client's: a text, ``{"messages": […]}``, or an object of the input schema.

        Raises ``InvalidInput`` naming the field.
        """
        if value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip()):
            raise _wrong("input", "is empty; send a text, a list of messages, or an object of the agent's input schema")
        refuse_constructors(value)
        if isinstance(value, str):
            value = self._from_text(value)
        elif isinstance(value, Mapping) and self.takes_messages and "messages" in value:
            value = {**value, "messages": read_messages(value["messages"])}
        self._validate(value)
        return value

    def _from_text(self, text: str) -> Any:
        if self.takes_messages:
            return {"messages": [HumanMessage(text)]}
        if _takes_string(self.input_schema):
            return text
        raise _wrong("input", f"must be an object: {self.name} takes no plain text; GET /agents shows its input schema")

    def _validate(self, value: Any) -> None:
        if self._input_model is None:
            if self.input_schema.get("type") == "object" and not isinstance(value, Mapping):
                raise _wrong("input", "must be an object")
            return
        try:
            self._input_model.model_validate(value)
        except ValidationError as error:
            problems = _problems(error, may_miss=self._takes_parts and self._knows_a_key(value))
            if problems:
                raise InvalidInput("the input does not fit the agent's schema", detail=problems) from None
        except Exception:  # noqa: BLE001 - a user's validator may raise anything
            raise _wrong("input", "does not fit the agent's schema") from None

    def _knows_a_key(self, value: Any) -> bool:
        return isinstance(value, Mapping) and not value.keys().isdisjoint(self.input_schema.get("properties", ()))


def _served(runnable: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """The runnable, in a form that tells LangChain's event stream of its input and output.

    LangChain's own do so. A user's class need not; and the start of a text-completion model is not told to the event
    stream while there is a callback that runs inline, as ours does (langchain-core 1.7).
    """
    if isinstance(runnable, Pregel):
        return runnable.copy({"checkpointer": None})
    theirs = type(runnable).__module__.startswith(("langchain", "langgraph", "langserve"))
    if isinstance(runnable, BaseChatModel | BaseTool) or (theirs and not isinstance(runnable, BaseLLM)):
        return runnable
    return RunnableSequence(runnable, RunnablePassthrough(), name=runnable.get_name())


def read_messages(value: Any) -> list[AnyMessage]:
    """Messages as clients write them: ``{"role", "content"}``, LangChain's ``{"type", "content"}``, or a pair.

    A single message or a text stands for a list of one. Raises ``InvalidInput`` naming the message.
    """
    many = value if isinstance(value, list | tuple) and not _is_pair(value) else [value]
    if not many:
        raise _wrong("input.messages", "is empty")
    return [_read_message(one, f"input.messages[{index}]") for index, one in enumerate(many)]


def _read_message(value: Any, field: str) -> AnyMessage:
    if isinstance(value, BaseMessage):
        return value  # type: ignore[return-value]
    if _is_pair(value):
        value = {"role": value[0], "content": value[1]}
    elif isinstance(value, str):
        value = {"role": "user", "content": value}
    if not isinstance(value, Mapping):
        raise _wrong(field, "must be an object with role and content")
    role = value.get("role", value.get("type"))
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong(f"{field}.role", f"must be one of {', '.join(sorted(ROLES))}")
    content = value.get("content")
    if content in ("", [], None) and role in ("user", "human"):
        raise _wrong(f"{field}.content", "is empty")
    if not isinstance(content, str | list | None):
        raise _wrong(f"{field}.content", "must be a text or a list of content blocks")
    try:
        message = convert_to_messages([{**value, "content": content or ""}])[0]
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError):
        raise _wrong(field, f"is no valid {role} message") from None
    if message.id is None and isinstance(message, AIMessage):
        message.id = str(uuid4())  # else a graph that hands the history on would seem to have said it
    return message  # type: ignore[return-value]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str) and value[0] in ROLES


def _wrong(field: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{field} {problem}", detail=[{"field": field, "message": problem}])


def _problems(error: ValidationError, *, may_miss: bool) -> list[dict[str, str]]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {"field": ".".join(("input", *map(str, one["loc"]))), "message": one["msg"]}
        for one in found
        if not (may_miss and one["type"] == "missing" and len(one["loc"]) == 1)
    ][:20]


def refuse_constructors(value: Any, field: str = "input", depth: int = 0) -> None:
    """``{"lc": 1, "type": "constructor"}`` is revived into objects by some of LangChain's loaders (CVE-2025-68664).

    Raises ``InvalidInput``, also for what is nested too deep to be looked through.
    """
    if depth > MAX_INPUT_DEPTH:
        raise _wrong(field, f"is nested deeper than {MAX_INPUT_DEPTH} levels")
    if isinstance(value, Mapping):
        if "lc" in value and "type" in value:
            raise _wrong(field, "holds a serialized LangChain object (a key 'lc'); send plain JSON")
        for item in value.values():
            refuse_constructors(item, field, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_constructors(item, field, depth + 1)


def _input_schema(runnable: Runnable[Any, Any]) -> dict[str, Any]:
    # Types that pydantic cannot describe are common in users' states (on Python 3.11 every typing.TypedDict is one).
    # The agent runs all the same; what is known of a graph then is the names of its state.
    try:
        return runnable.get_input_jsonschema()
    except Exception:  # noqa: BLE001
        return _state_schema(runnable, "input_schema")


def _output_schema(runnable: Runnable[Any, Any]) -> dict[str, Any]:
    try:
        return runnable.get_output_jsonschema()
    except Exception:  # noqa: BLE001
        return _state_schema(runnable, "output_schema")


def _state_schema(runnable: Runnable[Any, Any], which: str) -> dict[str, Any]:
    if not isinstance(runnable, CompiledStateGraph):
        return {}
    builder = runnable.builder
    names = builder.schemas.get(getattr(builder, which), {})
    return {"type": "object", "title": runnable.get_name(), "properties": {name: {"title": name} for name in names}}


def _input_model(runnable: Runnable[Any, Any]) -> type[BaseModel] | None:
    try:
        model = runnable.get_input_schema()
    except Exception:  # noqa: BLE001
        return None
    return model if issubclass(model, BaseModel) else None


def _takes_parts(runnable: Runnable[Any, Any]) -> bool:
    """LangGraph takes any part of a state that is a TypedDict, though its schema calls every key required."""
    return isinstance(runnable, CompiledStateGraph) and is_typeddict(runnable.builder.input_schema)


def _takes_string(schema: Mapping[str, Any]) -> bool:
    if schema.get("type") == "string":
        return True
    if any(_takes_string(one) for one in schema.get("anyOf", ())):
        return True
    return not schema.keys() & {"type", "properties", "anyOf", "allOf", "$ref", "enum", "const"}


def _tools(runnable: Runnable[Any, Any]) -> Iterator[BaseTool]:
    if not isinstance(runnable, Pregel):
        return
    graphs = [runnable, *(graph for _, graph in runnable.get_subgraphs(recurse=True))]
    for graph in graphs:
        for node in graph.nodes.values() if isinstance(graph, Pregel) else ():
            if isinstance(node.bound, ToolNode):
                yield from node.bound.tools_by_name.values()


def _label(tool: BaseTool) -> str:
    label = (tool.metadata or {}).get("label")
    return label if isinstance(label, str) else default_label(tool.name)


def default_label(name: str) -> str:
    """What a reader is shown for a tool without a label of its own."""
    return f"Calling {name}…"
