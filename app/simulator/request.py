"""What a client may ask: the chat-completions request, and the refusal of one that the real provider would refuse.

Reads what decides the answer (messages, tools, bounds, response format) and ignores the rest of the wire's fields.
Illegal conversations are refused here as the provider does it, because the callers' recovery depends on it: every
tool message answers an open tool call, and every tool call is answered before anything else is said.

Pure: bytes in, a ``ChatRequest`` out or ``Refused`` raised. Source: the request part of the chat-completions API.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant", "tool")

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Refused(Exception):
    """An HTTP error of the OpenAI wire: ``status`` and the error object's four fields."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


class CalledFunction(Struct):
    """Which tool an earlier answer asked for; ``arguments`` is JSON text as it was streamed, valid or not."""

    name: str
    arguments: str


class ToolCall(Struct):
    """One tool call of an earlier answer."""

    id: str
    function: CalledFunction
    type: str = "function"


class Message(Struct):
    """One message; ``content`` is a text, a list of typed parts, or null where calls stand instead."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The textual content alone; images and other parts say nothing here."""
        if isinstance(self.content, str):
            return self.content
        parts = (part.get("text") for part in self.content or ())
        return "\n".join(text for text in parts if isinstance(text, str))


class Function(Struct):
    """A tool the model may ask for; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    """A function in the wrapping the wire gives it."""

    function: Function
    type: str = "function"


class StreamOptions(Struct):
    """``include_usage`` asks for a last chunk with the usage."""

    include_usage: bool | None = None


class ChatRequest(Struct):
    """The body of ``POST /v1/chat/completions``, as far as it decides the answer."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def functions(self) -> list[Function]:
        """The tools offered, in the client's order."""
        return [tool.function for tool in self.tools or ()]

    @property
    def named_tool(self) -> str | None:
        """The tool that ``tool_choice`` insists on, if it names one."""
        return self.tool_choice["function"]["name"] if isinstance(self.tool_choice, dict) else None

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        """The most tokens the answer may have; None: no bound."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> list[str]:
        """The texts before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


def parse(body: bytes) -> ChatRequest:
    """Read and check a request body; raises ``Refused`` with the provider's status and error object."""
    try:
        request = msgspec.json.decode(body, type=ChatRequest)
    except msgspec.ValidationError as error:
        raise Refused(f"The request has a wrong type: {error}.") from None
    except RecursionError:
        raise Refused("The JSON of the request is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"The body of the request is not valid JSON: {error}.") from None
    _check_messages(request.messages)
    _check_tools(request)
    _check_options(request)
    return request


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise Refused("'messages' is empty: send at least one message.", param="messages")
    for at, message in enumerate(messages):
        if message.role not in ROLES:
            known = ", ".join(repr(role) for role in ROLES)
            raise Refused(
                f"Unknown role {message.role!r} in message {at}; it must be one of {known}.",
                param=f"messages[{at}].role",
                code="invalid_value",
            )
        if message.tool_calls is not None and not message.tool_calls:
            raise Refused("'tool_calls' is an empty list: leave it out.", param=f"messages[{at}].tool_calls")
        if message.content is None and not message.tool_calls:
            raise Refused("'content' is null: send a text or a list of parts.", param=f"messages[{at}].content")
    _check_order(messages)


def _check_order(messages: Sequence[Message]) -> None:
    """Refuse tool messages that answer no call, and calls that stay unanswered (counted: an id may come twice)."""
    open_calls: Counter[str] = Counter()
    for at, message in enumerate(messages):
        if message.role == "tool":
            _answer(open_calls, message.tool_call_id, at)
            continue
        _refuse_unanswered(open_calls)
        if message.tool_calls:
            if message.role != "assistant":
                raise Refused(f"Only an assistant message has 'tool_calls', not message {at}.", param="messages")
            open_calls = Counter(call.id for call in message.tool_calls)
    _refuse_unanswered(open_calls)


def _answer(open_calls: Counter[str], call_id: str | None, at: int) -> None:
    if not open_calls:
        raise Refused(
            f"Message {at} has role 'tool' and must follow an assistant message with 'tool_calls' that is still open.",
            param="messages",
        )
    if call_id is None or call_id not in open_calls:
        raise Refused(
            f"Message {at} has role 'tool', but its 'tool_call_id' {call_id!r} is none of the open 'tool_calls'.",
            param="messages",
        )
    open_calls.subtract([call_id])
    if not open_calls[call_id]:
        del open_calls[call_id]


def _refuse_unanswered(open_calls: Counter[str]) -> None:
    if open_calls:
        raise Refused(
            "An assistant message with 'tool_calls' must be followed by a tool message for each 'tool_call_id'; "
            f"these have none: {', '.join(sorted(open_calls))}.",
            param="messages",
        )


def _check_tools(request: ChatRequest) -> None:
    if request.tools is None:
        for option in ("tool_choice", "parallel_tool_calls"):
            if getattr(request, option) is not None:
                raise Refused(f"'{option}' is only allowed together with 'tools'.", param=option)
        return
    if not request.tools:
        raise Refused("'tools' is an empty list: leave it out.", param="tools")
    for at, tool in enumerate(request.tools):
        if tool.type != "function":
            raise Refused(f"Only function tools are known, not {tool.type!r}.", param=f"tools[{at}].type")
        if not _NAME.fullmatch(tool.function.name):
            raise Refused(
                f"The tool name {tool.function.name!r} must match ^[a-zA-Z0-9_-]{{1,64}}$.",
                param=f"tools[{at}].function.name",
            )
    _check_tool_choice(request)


def _check_tool_choice(request: ChatRequest) -> None:
    match request.tool_choice:
        case None | "none" | "auto" | "required":
            return
        case {"type": "function", "function": {"name": str(name)}}:
            if name not in {function.name for function in request.functions}:
                raise Refused(f"'tool_choice' names {name!r}, which is not in 'tools'.", param="tool_choice")
        case _:
            raise Refused(
                '\'tool_choice\' must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}.',
                param="tool_choice",
            )


def _check_options(request: ChatRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise Refused("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    for option in ("max_tokens", "max_completion_tokens"):
        limit = getattr(request, option)
        if limit is not None and limit < 1:
            raise Refused(f"'{option}' must be at least 1.", param=option)
    match request.response_format:
        case None | {"type": "text" | "json_object"}:
            return
        case {"type": "json_schema", "json_schema": {"name": str(), "schema": dict()}}:
            return
        case _:
            raise Refused(
                '\'response_format\' must be {"type": "text"}, {"type": "json_object"} or '
                '{"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}.',
                param="response_format",
            )
