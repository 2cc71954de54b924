"""Ends a run whose model provider has gone silent: before the first chunk of a streamed call, or between two chunks.

One ``Watchdog`` a run, told by its ``Meter`` of calls and chunks. Each open call has a time by which it must be heard
of, and one timer sleeps until the earliest of them: a chunk costs a look at the clock. Any chunk is a sign of life, an
empty one too. A call that is not streamed knows only the run's deadline; one of which that cannot be known counts as
such until its first chunk. What is measured is the time between chunks as the graph reads them: a node that does
something else for that long in the middle of a stream is silent too.

Calls are told of on the event loop, or on a worker thread. All that decides runs on the loop; what a thread touches
are single operations on a dictionary and its records, which are atomic.
"""

import asyncio
import time
from contextlib import suppress
from inspect import currentframe
from typing import Any, NamedTuple
from uuid import UUID

from langchain_core.language_models import BaseChatModel, BaseLLM

from app.runs.scope import Ending, Scope


class Watchdog:
    """Watches over the calls of one run. Times are in seconds.

    Belongs to the loop that runs when it is made; ``clear`` is called on it, all else from any thread.
    """

    def __init__(self, scope: Scope, *, first_token_timeout_s: float = 60, token_timeout_s: float = 30) -> None:
        self._scope = scope
        self._first_token_timeout_s = first_token_timeout_s
        self._token_timeout_s = token_timeout_s
        self._calls: dict[UUID, _Silence] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """The calls that must be heard of by some time."""
        return len(self._calls)

    def opened(self, call: UUID) -> None:
        """A model is called. Must be called by LangChain's callback itself: how it is called is read off the stack."""
        way = _way()
        if way.streamed:
            in_task = way.in_task and asyncio.get_running_loop() is self._loop
            self._calls[call] = _Silence(time.monotonic() + self._first_token_timeout_s, in_task)
            self._look_soon()

    def heard(self, call: UUID) -> None:
        """A chunk came."""
        silence = self._calls.get(call)
        if silence is None:
            silence = self._calls[call] = _Silence(0, in_task=False)
        silence.due = time.monotonic() + self._token_timeout_s
        if not silence.begun:
            silence.begun = True
            self._look_soon()  # the only chunk that may bring the time forward

    def retried(self, wait_s: float) -> None:
        """The provider has refused a call, which is made again after ``wait_s``: those without a chunk start anew."""
        due = time.monotonic() + wait_s + self._first_token_timeout_s
        for silence in list(self._calls.values()):
            if not silence.begun:
                silence.due = due

    def closed(self, call: UUID) -> None:
        """A call is over."""
        self._calls.pop(call, None)

    def clear(self) -> None:
        """No call is open any more, whatever was told."""
        self._calls.clear()
        self._disarm()

    def _look_soon(self) -> None:
        with suppress(RuntimeError):  # a thread that was left behind, and the loop is closed
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """Look at those whose time is up; look again when the next one's is."""
        self._disarm()
        now = time.monotonic()
        for call, silence in list(self._calls.items()):
            if silence.due <= now:
                silence.due = now + self._first_token_timeout_s
                if not silence.in_task or _awaited(call, self._loop):
                    self._scope.end(Ending("timed_out", "token_timeout" if silence.begun else "first_token_timeout"))
        calls = list(self._calls.values())
        if calls:
            due = min(silence.due for silence in calls)
            self._timer = self._loop.call_later(due - now, self._look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Silence:
    """How long a call may still say nothing: until ``due``, of the monotonic clock."""

    __slots__ = ("begun", "due", "in_task")

    def __init__(self, due: float, in_task: bool) -> None:
        self.due = due
        self.begun = False
        self.in_task = in_task


class _Way(NamedTuple):
    """How a model is called: whether its answer is streamed, and whether a task of its own waits for it."""

    streamed: bool
    in_task: bool


_STREAMS = {method.__code__ for kind in (BaseChatModel, BaseLLM) for method in (kind.stream, kind.astream)}
_INVOKES = {BaseChatModel.generate.__code__: False, BaseChatModel.agenerate.__code__: True}
_TASK = BaseChatModel._agenerate_with_cache.__name__  # noqa: SLF001 - see _awaited; classes may override it
_CALLERS = 10
"""How many frames above a callback its model is looked for; it is five there."""


def _way() -> _Way:
    """How the model is called whose callback we are in.

    LangChain shows its callbacks neither the model nor what was asked of it. What it tells of the model's making says
    nothing of a user's own class, and nothing of a value that equals the default, such as the ``streaming=False`` that
    turns streaming off. So the one who knows is asked: the model, in the frame of its own method just above, which is
    about to put the same question to itself.
    """
    frame = currentframe()
    for _ in range(_CALLERS):
        if frame is None:
            break
        if frame.f_code in _STREAMS:
            return _Way(streamed=True, in_task=False)
        if frame.f_code in _INVOKES:
            return _invoked(frame.f_locals, in_task=_INVOKES[frame.f_code])
        frame = frame.f_back
    return _Way(streamed=False, in_task=False)


def _invoked(call: dict[str, Any], *, in_task: bool) -> _Way:
    # The handler of astream_events is there, and makes whatever can stream do so.
    options = {"stream": True, **call["kwargs"]}
    return _Way(call["self"]._should_stream(async_api=in_task, **options), in_task)  # noqa: SLF001


def _awaited(call: UUID, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a task is at this call. LangChain tells no callback of an ``ainvoke`` that was cancelled.

    A node may well do so, and go on: ``async with asyncio.timeout(5)``, then another model. Each call of ``agenerate``
    waits in a task of its own, whose first frame knows the call's id. (It has none either while other callbacks hold
    its start up.)
    """
    for task in asyncio.all_tasks(loop):
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is not None and frame.f_code.co_name == _TASK:
            manager = frame.f_locals.get("run_manager")
            if manager is not None and manager.run_id == call:
                return True
    return False
