"""The threads in which a graph's synchronous nodes and tools run.

A thread cannot be stopped. When its run is cancelled it is left behind, and goes on until what it waits for returns.
So there is a bound to how many there are; what still waits for one is taken back; and nobody waits for those that were
left, neither the event loop's end nor the interpreter's. The loop looks up host names in threads of their own, which
nodes that hang cannot take away.

LangChain hands what is synchronous to the loop's default executor: that is the one which ``installed`` replaces.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.thread import _global_shutdown_lock, _threads_queues
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel, RunnableSequence, run_in_executor
from langchain_core.runnables.base import RunnableBindingBase
from langgraph.constants import START
from langgraph.pregel import Pregel
from typing_extensions import override

P = ParamSpec("P")
T = TypeVar("T")

LOOKUP_THREADS = 8

_LOOKUPS = frozenset(("getaddrinfo", "getnameinfo", "_getaddrinfo_debug"))
"""What asyncio calls in its default executor on its own account."""


class Occupant(Protocol):
    """Whoever answers for a thread: a run. Told on the event loop, once of each for each piece of work."""

    def enter(self) -> None:
        """Work was handed over."""

    def leave(self) -> None:
        """Its thread is done with it, or it was taken back before a thread had it."""


occupant: ContextVar[Occupant | None] = ContextVar("occupant", default=None)
"""Who answers for the threads that are asked for in this context."""


class NodeExecutor(ThreadPoolExecutor):
    """At most ``max_workers`` daemon threads, started as they are needed and kept for the next piece of work.

    What comes beyond them waits its turn; what is cancelled before it began never begins. It is a
    ``ThreadPoolExecutor`` in name, since asyncio takes no other kind, and shares nothing with it.
    """

    def __init__(self, max_workers: int = 64) -> None:
        super().__init__(max_workers)
        self._nodes = _Threads(max_workers, "node")
        self._lookups = _Threads(LOOKUP_THREADS, "lookup")

    @property
    def running(self) -> int:
        """Threads at work for nodes now, those that were left behind included."""
        return self._nodes.busy

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have ``fn`` called in a thread. Raises ``RuntimeError`` after ``shutdown``."""
        future: Future[T] = Future()
        lookup = getattr(fn, "__name__", None) in _LOOKUPS
        (self._lookups if lookup else self._nodes).put(future, partial(fn, *args, **kwargs))
        who = occupant.get()
        if who is not None and not lookup:
            who.enter()
            future.add_done_callback(partial(_leave, who, asyncio.get_running_loop()))
        return future

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more. Each thread ends after what is left for it; nobody waits for any, ``wait`` or not."""
        self._nodes.close()
        self._lookups.close()


def _leave(who: Occupant, loop: asyncio.AbstractEventLoop, _: object) -> None:
    with suppress(RuntimeError):  # the thread outlived the loop
        loop.call_soon_threadsafe(who.leave)


class _Threads:
    """Threads that take their work from one queue. As many as there is work, up to ``limit``."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._unfinished = 0
        self._closed = False

    @property
    def busy(self) -> int:
        return min(self._unfinished, self._started)

    def put(self, future: Future[Any], call: Callable[[], Any]) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the executor takes no more work: it was shut down")
            if self._started <= self._unfinished and self._started < self._limit:
                threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
                self._started += 1
            self._unfinished += 1
            self._work.put((future, call))

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in range(self._started):
                    self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._do(*work)
            del work  # else it would be kept until the next one comes

    def _do(self, future: Future[Any], call: Callable[[], Any]) -> None:
        result: Any = None
        error: BaseException | None = None
        begun = future.set_running_or_notify_cancel()
        try:
            result = call() if begun else None
        except BaseException as raised:  # noqa: BLE001 - a node may raise anything; whoever waits is told
            error = raised
        with self._lock:  # before the future is done: whoever waits for it may have more work for this thread
            self._unfinished -= 1
        if error is not None:
            future.set_exception(error)
        elif begun:
            future.set_result(result)
        del future, call, error  # the traceback holds this frame


@contextmanager
def installed(max_workers: int = 64) -> Iterator[NodeExecutor]:
    """Make a ``NodeExecutor`` the running loop's default executor, for as long as the context lasts."""
    loop = asyncio.get_running_loop()
    before: ThreadPoolExecutor | None = getattr(loop, "_default_executor", None)
    executor = NodeExecutor(max_workers)
    loop.set_default_executor(executor)
    try:
        yield executor
    finally:
        loop.set_default_executor(before or ThreadPoolExecutor(thread_name_prefix="asyncio"))
        executor.shutdown()
        if executor.running:
            _disown()


def _disown() -> None:
    """Let the interpreter's exit not wait for the threads of threads that were left behind.

    A synchronous node that calls ``batch`` or a graph's ``invoke`` starts an executor of its own. Its threads are
    daemons like the one that started them; ``concurrent.futures`` joins them at the exit all the same.
    """
    joined = cast("MutableMapping[threading.Thread, Any]", _threads_queues)
    with _global_shutdown_lock:
        for thread in [thread for thread in joined if thread.daemon]:
            del joined[thread]


def blocking_nodes(runnable: Runnable[Any, Any]) -> list[str]:
    """The nodes that a cancel does not stop at once, since they run in a thread: ``["plan", "desk:think"]``.

    Known are functions, sequences of them, and classes that have no ``ainvoke``; in subgraphs too. What is no graph
    is one node.
    """
    if not isinstance(runnable, Pregel):
        return [runnable.get_name()] if _blocks(runnable) else []
    found = []
    for name, node in runnable.nodes.items():
        if name == START:  # hands the input on, at once
            continue
        if isinstance(node.bound, Pregel):
            found += [f"{name}:{inner}" for inner in blocking_nodes(node.bound)]
        elif _blocks(node.bound):
            found.append(name)
    return found


def _blocks(runnable: Runnable[Any, Any]) -> bool:
    if isinstance(runnable, RunnableBindingBase):
        return _blocks(runnable.bound)
    if isinstance(runnable, RunnableSequence):
        return any(map(_blocks, runnable.steps))
    if isinstance(runnable, RunnableParallel):
        return any(map(_blocks, runnable.steps__.values()))
    if isinstance(runnable, RunnableLambda) or hasattr(runnable, "afunc"):  # LangGraph's own kind has one, or None
        func, afunc = getattr(runnable, "func", None), getattr(runnable, "afunc", None)
        in_thread = isinstance(afunc, partial) and afunc.func is run_in_executor
        return func is not None and (afunc is None or in_thread)
    return type(runnable).ainvoke is Runnable.ainvoke
