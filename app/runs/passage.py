"""A run at the gate: has each of its model calls wait for its turn, and gives the place back when the call is over.

LangChain tells of a call before it is made, and waits for what it tells. So a callback that waits holds the call back,
whichever class of model makes it, a user's own included. How it can wait depends on who calls:

* a task of an event loop (``ainvoke``, ``astream``): ``Passage`` itself waits, being an asynchronous handler;
* a thread (a synchronous node): the run's ``Meter``, a synchronous handler, has the thread wait (``hold_back``);
* a synchronous call on the event loop, which an ``async def`` node should not make: nobody may wait there. It is let
  through, and counts.

No callback tells of a call that was cancelled. So a place belongs to the task or thread that makes the call, and is
given back when its calls are over, or when the task is cancelled, or at the latest by the run. Calls that it makes
while another of its is open share that place: one was cancelled and is made anew, or they are one in another. And a
call that is made within another by a task or thread of its own has a place of its own, but does not wait for it: to
wait while holding one is how everybody ends up waiting.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.messages.utils import count_tokens_approximately

from app.errors import UpstreamBusy
from app.limits.gate import Gate, Pass
from app.runs.scope import Scope

TELL_S = 1.0
"""How often a run that waits is told its place anew."""


class _Holder:
    """A task or thread with a place at the gate, and the calls it has open."""

    __slots__ = ("calls", "in_thread", "key", "open", "place")

    def __init__(self, key: object, place: Pass, *, in_thread: bool) -> None:
        self.key = key
        self.place = place
        self.calls: set[UUID] = set()
        self.in_thread = in_thread
        self.open = True

    def shut(self) -> None:
        """The place is given back. The task is let go of: its context has this, and of a circle nothing would go."""
        self.open = False
        self.key = None


_within: ContextVar[_Holder | None] = ContextVar("within", default=None)
"""The call that whatever happens in this context is part of, if it is still open. Tasks and threads inherit it."""


class Passage(AsyncCallbackHandler):
    """One run's way through the gate. ``told`` is called, on the run's loop, with each new place in line.

    Must come before the ``Meter`` among a run's callbacks, so that a call's time begins when it may.
    """

    run_inline = True
    raise_error = True

    def __init__(self, gate: Gate, user: str, scope: Scope, told: Callable[[int], None], *, timeout_s: float) -> None:
        self._gate = gate
        self._user = user
        self._scope = scope
        self._told = told
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._holders: dict[object, _Holder] = {}
        self._calls: dict[UUID, _Holder] = {}
        self._seen: set[UUID] = set()
        self._waited_s: dict[UUID, float] = {}
        self._charged: dict[UUID, int] = {}
        self._waiting: set[Pass] = set()

    async def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """A chat model is about to be called."""
        await self._enter(run_id, lambda: count_tokens_approximately(messages[0]) if messages else 0)

    async def on_llm_start(
        self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """A text-completion model is about to be called."""
        await self._enter(run_id, lambda: sum(map(len, prompts)) // 4)

    def hold_back(self, run_id: UUID, tokens: Callable[[], int]) -> None:
        """Have the calling thread wait for its place, if it is one that has none yet. Raises ``UpstreamBusy``.

        And ``CancelledError`` when the run is over first.
        """
        if run_id in self._seen:  # by the coroutine above, on an event loop
            return
        self._seen.add(run_id)
        try:
            key: object = asyncio.current_task()
        except RuntimeError:
            self._wait_in_thread(run_id, tokens)
        else:
            if not self._shares(run_id, key):
                place = self._gate.enter(self._user, self._tokens(tokens), waits=False)
                self._hold(run_id, key, place, in_thread=False)

    def waited_s(self, run_id: UUID) -> float:
        """How long the call stood in line, once."""
        return self._waited_s.pop(run_id, 0.0)

    def answered(self) -> None:
        """The provider has begun to answer a call, so it bears it."""
        self._gate.answered()

    def refused(self, run_id: UUID | None, retry_after_s: float | None) -> None:
        """The provider has refused a call as one too many; which one it was may not be known."""
        with self._lock:
            holder = self._calls.get(run_id) if run_id is not None else next(iter(self._holders.values()), None)
        if holder is not None:
            self._gate.refused(holder.place, retry_after_s)

    def spent(self, run_id: UUID, tokens: int) -> None:
        """What a call that is over came to; what it was charged when it began is part of that."""
        self._gate.charge(tokens - self._charged.pop(run_id, 0))

    def leave(self, run_id: UUID) -> None:
        """The call is over."""
        with self._lock:
            holder = self._calls.pop(run_id, None)
            if holder is None:
                return
            holder.calls.discard(run_id)
            if holder.calls:
                return
            self._holders.pop(holder.key, None)
            holder.shut()
        self._gate.leave(holder.place)

    def close(self) -> None:
        """The run's task is over: give back all but what its threads hold, and wake those that wait."""
        self._release(lambda holder: not holder.in_thread)
        for place in list(self._waiting):
            self._gate.leave(place)

    def close_threads(self) -> None:
        """The last thread of the run has ended."""
        self._release(lambda holder: holder.in_thread)

    # A place

    async def _enter(self, run_id: UUID, tokens: Callable[[], int]) -> None:
        if run_id in self._seen:  # by `hold_back`: LangChain runs this for the call of a thread too, after all else
            return
        self._seen.add(run_id)
        key = asyncio.current_task()
        assert key is not None
        if self._shares(run_id, key):
            return
        try:
            place = await self._turn(tokens)
        except BaseException:
            _close_unawaited()
            raise
        self._hold(run_id, key, place, in_thread=False)
        key.add_done_callback(self._drop)

    async def _turn(self, tokens: Callable[[], int]) -> Pass:
        self._scope.check()  # a task that outlives its run would never give its place back
        place = self._gate.enter(self._user, self._tokens(tokens), waits=not _nested())
        try:
            if not place.granted.done():
                await self._wait(place)
            place.granted.result()
        except BaseException:
            self._gate.leave(place)
            raise
        return place

    async def _wait(self, place: Pass) -> None:
        granted = asyncio.wrap_future(place.granted)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        position = 0
        self._waiting.add(place)
        try:
            while not granted.done():
                position = self._tell(place, position)
                left_s = deadline - asyncio.get_running_loop().time()
                if left_s <= 0:
                    raise self._late()
                await asyncio.wait((granted,), timeout=min(TELL_S, left_s))
        finally:
            self._waiting.discard(place)
            granted.cancel()  # does nothing to the place

    def _wait_in_thread(self, run_id: UUID, tokens: Callable[[], int]) -> None:
        key = threading.get_ident()
        if self._shares(run_id, key):
            return
        place = self._gate.enter(self._user, self._tokens(tokens), waits=not _nested())
        self._waiting.add(place)
        try:
            self._scope.check()  # after it was added: from here on whoever ends the run also wakes this thread
            position, left_s = 0, self._timeout_s
            while not place.granted.done():
                if left_s <= 0:
                    raise self._late()
                position = self._tell(place, position)
                try:
                    place.granted.result(min(TELL_S, left_s))
                except TimeoutError:
                    left_s -= TELL_S
            place.granted.result()
        except BaseException:
            self._gate.leave(place)
            raise
        finally:
            self._waiting.discard(place)
        self._hold(run_id, key, place, in_thread=True)

    def _tell(self, place: Pass, before: int) -> int:
        position = self._gate.position(place)
        if position and position != before:
            self._loop.call_soon_threadsafe(self._told, position)
        return position

    def _late(self) -> UpstreamBusy:
        return UpstreamBusy(
            f"The model provider is busy: this call has waited its {self._timeout_s:g} s. Try again in a moment.",
            retry_after_ms=1000,
        )

    def _tokens(self, tokens: Callable[[], int]) -> int:
        return tokens() if self._gate.counts_tokens else 0

    def _shares(self, run_id: UUID, key: object) -> bool:
        with self._lock:
            holder = self._holders.get(key)
            if holder is None:
                return False
            holder.calls.add(run_id)
            self._calls[run_id] = holder
            return True

    def _hold(self, run_id: UUID, key: object, place: Pass, *, in_thread: bool) -> None:
        with self._lock:
            holder = _Holder(key, place, in_thread=in_thread)
            holder.calls.add(run_id)
            self._holders[key] = self._calls[run_id] = holder
        _within.set(holder)
        self._waited_s[run_id] = place.waited_s
        if place.tokens:
            self._charged[run_id] = place.tokens

    def _drop(self, task: "asyncio.Task[Any]") -> None:
        # One that has come to its end with a call open has made a step of an answer that other tasks go on to read:
        # LangChain reads streams so where a chain has several parts.
        if task.cancelled():
            self._release(lambda holder: holder.key is task)

    def _release(self, wanted: Callable[[_Holder], bool]) -> None:
        with self._lock:
            gone = [holder for holder in self._holders.values() if wanted(holder)]
            for holder in gone:
                del self._holders[holder.key]
                holder.shut()
                for run_id in holder.calls:
                    self._calls.pop(run_id, None)
        for holder in gone:
            self._gate.leave(holder.place)


def _nested() -> bool:
    holder = _within.get()
    return holder is not None and holder.open


def _close_unawaited() -> None:
    """LangChain has made a coroutine for every handler before it awaits the first; close those that now never run."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name in ("on_chat_model_start", "on_llm_start"):
            for name in ("inline_tasks", "non_inline_tasks"):
                for one in frame.f_locals.get(name, ()):
                    if inspect.iscoroutine(one) and inspect.getcoroutinestate(one) == inspect.CORO_CREATED:
                        one.close()
        frame = frame.f_back
