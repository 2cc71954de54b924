"""The node that runs tools: LangGraph's own, with bounds.

It runs those calls of the last AIMessage that have no result yet; whoever refuses a call before has answered it.
Every call it runs gets a result that the model can read, whatever the tool does: a failure, an exit, a cancel that
nobody asked for and a time limit are error results, and none takes the other calls with it.

- As many tools are at work at once as there are places: the run's ``tool_places`` for all its graphs together, where
  a server made the run, else ``ToolLimits.at_once`` for each invocation of the node. A tool that is called inside a
  tool takes none: it would wait for the one that waits for it.
- The wait for a call ends at its time limit. What the tool awaits is cancelled then; a thread is left behind, since
  nothing stops one.
- What the model is given of an output is cut; artifacts are left as they are, and so is what callbacks are told.

It never judges arguments and never asks a person. A cancel of the run, and LangGraph's own exceptions, pass through.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextvars import ContextVar, copy_context
from dataclasses import replace
from functools import wraps
from inspect import isroutine
from typing import Any, NamedTuple

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import AIMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool, ToolException
from langchain_core.utils.pydantic import get_fields
from langgraph.prebuilt import ToolNode
from langgraph.prebuilt.tool_node import ToolCallRequest, ToolCallWithContext
from langgraph.types import Command, Send
from typing_extensions import override

from chains.shortcut import CONTROL

RESULT_EVENT = "tool.result"
"""The custom event of a call that has its result before the node is over: ``{call_id, status, output}``."""

Output = ToolMessage | Command[Any]

_AT_WORK: ContextVar[bool] = ContextVar("millrace_tool_at_work", default=False)
"""Whether what runs in this context runs inside a tool."""

_PLACES: ContextVar[Any] = ContextVar("millrace_tool_places")
"""Where the calls of one invocation of the node wait: an asynchronous or a synchronous context manager."""


class ToolLimits(NamedTuple):
    """What bounds the tools of a graph.

    ``timeout_s``: seconds for each call, unless the tool's ``metadata["timeout_s"]`` says otherwise. ``output_chars``:
    how much of an output the model is given. ``at_once``: calls at work at the same time. ``attempts``: how often in a
    row a model may make calls that cannot be made before the run fails.
    """

    timeout_s: float = 60.0
    output_chars: int = 40_000
    at_once: int = 8
    attempts: int = 3


def build_tool_node(tools: Sequence[BaseTool], limits: ToolLimits = ToolLimits()) -> "BoundedToolNode":
    """The node: state with ``messages`` → ``{"messages": [ToolMessage, …]}``, in the order of the calls."""
    return BoundedToolNode(tools, limits)


def open_calls(messages: Sequence[Any]) -> list[ToolCall]:
    """The calls of the last AIMessage that have no result yet, in its order."""
    answered = set()
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            return [call for call in message.tool_calls if call["id"] not in answered]
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
    return []


def error_result(call: ToolCall, said: str) -> ToolMessage:
    """What the model is told of a call that came to nothing."""
    return ToolMessage(said, tool_call_id=call["id"] or "", name=call["name"], status="error")


def tool_failed(error: Exception) -> str:
    """What the model is told of a tool's failure: the tool's own words where it wrote them for a reader."""
    if isinstance(error, ToolException):
        return f"Error: {error}"
    if isinstance(error, OSError):
        return f"Error: the tool failed ({type(error).__name__})."
    with contextlib.suppress(Exception):  # a user's exception may fail even at this
        return f"Error: {type(error).__name__}: {error}"
    return f"Error: {type(error).__name__}"


class BoundedToolNode(ToolNode):
    """See the module. One object serves any number of runs."""

    def __init__(self, tools: Sequence[BaseTool], limits: ToolLimits) -> None:
        kept = [_contained(tool) for tool in tools]
        super().__init__(kept, handle_tool_errors=tool_failed, wrap_tool_call=self._call, awrap_tool_call=self._acall)
        self._limits = limits

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        calls = _calls(input)
        if not calls:
            return {"messages": []}
        token = _PLACES.set(contextlib.nullcontext() if _AT_WORK.get() else threading.Semaphore(self._limits.at_once))
        try:
            return super().invoke(calls, config, **kwargs)
        finally:
            _PLACES.reset(token)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        calls = _calls(input)
        if not calls:
            return {"messages": []}
        token = _PLACES.set(contextlib.nullcontext() if _AT_WORK.get() else self._places(config))
        try:
            return await super().ainvoke(calls, config, **kwargs)
        finally:
            _PLACES.reset(token)

    def tasks(self, state: Mapping[str, Any], node: str = "tools") -> list[Send]:
        """A task of LangGraph's for each open call of the state, for the ``node`` that this is.

        A tool that waits for a person (``interrupt``) waits for its own answer then, and those that are done are not
        run again; in one task, answers go by the order in which tools ask. Only tools that look at the state are given
        it, since whatever a task is given is kept with it.
        """
        return [Send(node, self._task(call, state)) for call in open_calls(state["messages"])]

    def _task(self, call: ToolCall, state: Mapping[str, Any]) -> Any:
        tool = self.tools_by_name.get(call["name"])
        if tool is None or not _is_injected(tool):
            return [call]
        return ToolCallWithContext({"__type": "tool_call_with_context", "tool_call": call, "state": state})

    def _places(self, config: RunnableConfig | None) -> asyncio.Semaphore:
        run = (config or {}).get("configurable", {}).get(CONTROL)
        return getattr(run, "tool_places", None) or asyncio.Semaphore(self._limits.at_once)

    def _timeout_s(self, request: ToolCallRequest) -> float | None:
        own = (request.tool.metadata or {}) if request.tool is not None else {}
        timeout_s: float | None = own.get("timeout_s", self._limits.timeout_s)
        return timeout_s

    # A call in the event loop

    async def _acall(self, request: ToolCallRequest, execute: Callable[[ToolCallRequest], Awaitable[Output]]) -> Output:
        async with _PLACES.get():
            output: Output = self._kept(request, await self._awaited(request, execute))
            return output

    async def _awaited(
        self, request: ToolCallRequest, execute: Callable[[ToolCallRequest], Awaitable[Output]]
    ) -> Output:
        # In a task of its own, since the wait must end also where the tool swallows the cancel.
        task = asyncio.create_task(_at_work(execute, request))
        task.add_done_callback(_retrieved)
        timeout_s = self._timeout_s(request)
        try:
            await asyncio.wait((task,), timeout=timeout_s)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait((task,))  # what cleans up after itself is done when the run is
            raise
        if task.done() and not task.cancelled():
            return task.result()
        late = task.cancel()  # else it was cancelled, by itself
        said = _too_slow(request, timeout_s) if late else tool_failed(_BrokeOff(asyncio.CancelledError()))
        await adispatch_custom_event(RESULT_EVENT, _event(request, said), config=request.runtime.config)
        return error_result(request.tool_call, said)

    # A call without one

    def _call(self, request: ToolCallRequest, execute: Callable[[ToolCallRequest], Output]) -> Output:
        with _PLACES.get():
            output: Output = self._kept(request, self._waited(request, execute))
            return output

    def _waited(self, request: ToolCallRequest, execute: Callable[[ToolCallRequest], Output]) -> Output:
        future: Future[Output] = Future()
        work = (_settle, future, execute, request)
        threading.Thread(target=copy_context().run, args=work, name="tool", daemon=True).start()
        timeout_s = self._timeout_s(request)
        wait((future,), timeout_s)
        if not future.done():
            said = _too_slow(request, timeout_s)
            dispatch_custom_event(RESULT_EVENT, _event(request, said), config=request.runtime.config)
            return error_result(request.tool_call, said)
        return future.result()

    # Outputs

    def _kept(self, request: ToolCallRequest, output: Any) -> Any:
        """The output as it is kept: under the call's own id, whatever the tool has written there, and cut."""
        if isinstance(output, ToolMessage) and output.tool_call_id != request.tool_call["id"]:
            output = output.model_copy(update={"tool_call_id": request.tool_call["id"] or ""})
        return self._cut(output)

    def _cut(self, output: Any) -> Any:
        match output:
            case ToolMessage():
                return cut(output, self._limits.output_chars)
            case list():
                return [self._cut(one) for one in output]
            case Command(update=dict(update)) if isinstance(update.get("messages"), list):
                return replace(output, update={**update, "messages": self._cut(update["messages"])})
            case _:
                return output


def _is_injected(tool: BaseTool) -> bool:
    """Whether LangGraph puts in some of its arguments."""
    if isinstance(tool.args_schema, dict):
        return False
    return bool(get_fields(tool.get_input_schema()).keys() - tool.args.keys())


def _calls(state: Any) -> Any:
    """The open calls of a state, in the form in which ToolNode takes calls; any other input as it is."""
    messages = state.get("messages") if isinstance(state, Mapping) else getattr(state, "messages", None)
    return state if messages is None else open_calls(messages)


# -- what a tool comes to ---------------------------------------------------------------------------------------------


class _BrokeOff(ToolException):
    """A tool raised what would end more than itself."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the tool broke off without a result ({type(error).__name__})")


def _contained(tool: BaseTool) -> BaseTool:
    """A copy of the tool that fails where it would end the program, or seem to be cancelled though nobody did.

    asyncio takes an exit out of whichever task raises it, and the event loop ends with it. LangChain gives a tool's
    coroutine a task of its own, so that it must be caught in there. A subclass of ``BaseTool`` is left as it is.
    """
    if not isinstance(tool, StructuredTool | Tool):
        return tool
    func, coroutine = tool.func, tool.coroutine

    def contained(*args: Any, **kwargs: Any) -> Any:
        assert func is not None
        try:
            return func(*args, **kwargs)
        except Exception:
            raise
        except BaseException as error:
            raise _BrokeOff(error) from error

    async def acontained(*args: Any, **kwargs: Any) -> Any:
        assert coroutine is not None
        try:
            return await coroutine(*args, **kwargs)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise _BrokeOff(error) from error
        except (Exception, GeneratorExit):  # the latter is how a coroutine is closed that nobody waits for
            raise
        except BaseException as error:
            raise _BrokeOff(error) from error

    # What is no function, such as a partial, LangChain could not look into any more.
    wrapped = {
        "func": wraps(func)(contained) if isroutine(func) else func,
        "coroutine": wraps(coroutine)(acontained) if isroutine(coroutine) else coroutine,
    }
    return tool.model_copy(update=wrapped)


async def _at_work(execute: Callable[[ToolCallRequest], Awaitable[Output]], request: ToolCallRequest) -> Output:
    _AT_WORK.set(True)
    return await execute(request)


def _settle(future: "Future[Output]", execute: Callable[[ToolCallRequest], Output], request: ToolCallRequest) -> None:
    _AT_WORK.set(True)
    try:
        future.set_result(execute(request))
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        future.set_exception(error)


def _retrieved(task: "asyncio.Task[Any]") -> None:
    """What a tool raises that nobody waits for any more is no complaint of the loop."""
    if not task.cancelled():
        task.exception()


def _too_slow(request: ToolCallRequest, timeout_s: float | None) -> str:
    return (
        f"Error: {request.tool_call['name']} had no result within {timeout_s:g} s, and is no longer waited for. It may "
        "have had an effect all the same. Ask for less at once, or answer without it."
    )


def _event(request: ToolCallRequest, said: str) -> dict[str, Any]:
    return {"call_id": request.tool_call["id"], "status": "error", "output": said}


# -- cutting ----------------------------------------------------------------------------------------------------------


def cut(message: ToolMessage, chars: int) -> ToolMessage:
    """``message`` with no more than ``chars`` characters of text, and a note where that is less than there was.

    Blocks that are no text, such as images, are kept whole: half of one is none.
    """
    blocks = [message.content] if isinstance(message.content, str) else message.content
    size = sum(len(_text(block)) for block in blocks)
    if size <= chars:
        return message
    note = (
        f"[Cut: these are the first {chars:,} of {size:,} characters. For the rest, call the tool again for less at "
        "once, or for another part.]"
    )
    if isinstance(message.content, str):
        return message.model_copy(update={"content": f"{message.content[:chars]}\n\n{note}"})
    plain = all(isinstance(block, str) for block in blocks)
    last = note if plain else {"type": "text", "text": note}
    return message.model_copy(update={"content": [*_first(blocks, chars), last]})


def _first(blocks: Sequence[str | dict[str, Any]], chars: int) -> Iterator[str | dict[str, Any]]:
    left = chars
    for block in blocks:
        text = _text(block)
        if not text:
            yield block
        elif left > 0:
            yield text[:left] if isinstance(block, str) else {**block, "text": text[:left]}
        left -= len(text)


def _text(block: str | dict[str, Any]) -> str:
    text = block if isinstance(block, str) else block.get("text")
    return text if isinstance(text, str) else ""
