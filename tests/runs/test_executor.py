"""Synchronous nodes have threads of their own: bounded, taken back while they wait, left behind when they hang."""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphs import openai, tool_caller
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough, run_in_executor
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from runners import runner_of
from scripted import Scripted, words

from app.events.event import Event, RunFinished, Token
from app.events.request import RunRequest
from app.runs.executor import NodeExecutor, blocking_nodes, installed, occupant
from app.runs.run import Run
from app.runs.runner import Runner
from app.runs.scope import Ending
from app.simulator.server import Simulator

Until = Callable[[Callable[[], bool]], Awaitable[None]]
State = dict[str, Any]

REQUESTED = Ending("cancelled", "requested")


class Work:
    """What hangs in a thread until the test lets it go, and knows how often it was begun."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.free = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self, *_: Any) -> str:
        self.threads.append(threading.current_thread())
        self.begun.release()
        assert self.free.wait(30)
        return "done"

    async def entered(self, times: int = 1) -> None:
        """It hangs in that many threads more."""
        async with asyncio.timeout(20):
            while times:
                times -= self.begun.acquire(blocking=False)
                await asyncio.sleep(0.001)


@contextmanager
def executor(threads: int) -> Iterator[NodeExecutor]:
    with NodeExecutor(threads) as one:
        yield one


@pytest.fixture
def work() -> Iterator[Work]:
    one = Work()
    yield one
    one.free.set()


# The threads


def test_it_does_what_it_is_given_and_tells_what_comes_of_it() -> None:
    def fails() -> None:
        raise SystemExit("mine")

    with executor(2) as one:
        assert one.submit(divmod, 7, 2).result(10) == (3, 1)
        assert list(one.map(str, range(20))) == [str(number) for number in range(20)]
        with pytest.raises(SystemExit, match="mine"):
            one.submit(fails).result(10)
        with pytest.raises(TypeError):
            one.submit(partial(divmod)).result(10)


def test_threads_come_as_they_are_needed_are_kept_and_are_bounded(work: Work) -> None:
    with executor(3) as one:
        for _ in range(10):
            one.submit(work.threads.append, threading.current_thread()).result(10)
        first = one.submit(threading.current_thread).result(10)
        assert all(one.submit(threading.current_thread).result(10) is first for _ in range(10))
        assert first.daemon
        work.threads.clear()
        futures = [one.submit(work) for _ in range(8)]
        for _ in range(3):
            assert work.begun.acquire(timeout=10)
        assert one.running == 3
        assert not work.begun.acquire(blocking=False)
        work.free.set()
        assert [future.result(10) for future in futures] == ["done"] * 8
        assert len(set(work.threads)) == 3
        assert one.running == 0


def test_what_waits_for_a_thread_can_be_taken_back_and_never_begins(work: Work) -> None:
    with executor(1) as one:
        first = one.submit(work)
        waiting = [one.submit(work) for _ in range(3)]
        assert work.begun.acquire(timeout=10)
        assert not first.cancel()
        assert all(future.cancel() for future in waiting)
        last = one.submit(str, 7)
        work.free.set()
        assert last.result(10) == "7"
        assert len(work.threads) == 1


def test_nothing_of_what_was_done_stays_with_the_thread() -> None:
    class Big:
        pass

    def fails(_: object) -> None:
        raise ValueError

    with executor(1) as one:
        big = Big()
        seen = weakref.ref(big)
        one.submit(str, big).result(10)
        with pytest.raises(ValueError):  # noqa: PT011
            one.submit(fails, big).result(10)
        one.submit(int).result(10)
        del big
        gc.collect()
        assert seen() is None


def test_a_shutdown_waits_for_nobody_and_idle_threads_end(work: Work, eventually: Callable[..., None]) -> None:
    one = NodeExecutor(2)
    idle = one.submit(threading.current_thread).result(10)
    hung = one.submit(work)
    assert work.begun.acquire(timeout=10)
    other = one.submit(threading.current_thread).result(10)
    one.shutdown(wait=True)
    assert not hung.done()
    with pytest.raises(RuntimeError, match="shut down"):
        one.submit(int)
    eventually(lambda: not other.is_alive() or not idle.is_alive())
    work.free.set()
    assert hung.result(10) == "done"
    eventually(lambda: not any(thread.is_alive() for thread in (idle, other)))
    one.shutdown()


# In a loop


async def test_it_is_the_loops_own_for_a_while() -> None:
    before = await asyncio.to_thread(threading.current_thread)
    with installed(2) as one:
        assert (await asyncio.to_thread(threading.current_thread)).name.startswith("node-")
        assert (await run_in_executor(None, threading.current_thread)).daemon
    assert await asyncio.to_thread(threading.current_thread) is before
    with pytest.raises(RuntimeError):
        one.submit(int)


@pytest.mark.parametrize("debug", [True, False])
async def test_host_names_are_looked_up_however_many_nodes_hang(work: Work, debug: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(debug)
    with installed(2):
        hung = [loop.run_in_executor(None, work) for _ in range(5)]
        await work.entered(2)
        async with asyncio.timeout(20):
            found = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        assert found
        work.free.set()
        assert await asyncio.gather(*hung) == ["done"] * 5


class Guests:
    """Counts who came and who went, and on which thread it was told of it."""

    def __init__(self) -> None:
        self.present = 0
        self.came = 0
        self.told_on: set[int] = set()

    def enter(self) -> None:
        self.came += 1
        self.present += 1
        self.told_on.add(threading.get_ident())

    def leave(self) -> None:
        self.present -= 1
        self.told_on.add(threading.get_ident())


async def test_a_run_is_told_of_its_threads_and_when_each_has_ended(work: Work, until: Until) -> None:
    guests, loop = Guests(), asyncio.get_running_loop()

    async def run() -> None:
        occupant.set(guests)
        await asyncio.gather(*(loop.run_in_executor(None, work) for _ in range(4)))

    with installed(2) as one:
        task = asyncio.create_task(run())
        await work.entered(2)
        assert (guests.came, guests.present) == (4, 4)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: guests.present == 2)  # those that waited were taken back, two threads were left behind
        assert one.running == 2
        work.free.set()
        await until(lambda: guests.present == 0)
        assert guests.told_on == {threading.get_ident()}
        await asyncio.to_thread(int)
        assert guests.came == 4


def test_a_thread_may_outlive_its_loop(work: Work) -> None:
    guests = Guests()

    async def run() -> "asyncio.Future[str]":
        occupant.set(guests)
        with installed(1):
            future = asyncio.get_running_loop().run_in_executor(None, work)
            await asyncio.sleep(0)
            assert work.begun.acquire(timeout=10)
            return future

    asyncio.run(run())
    (thread,) = work.threads
    assert thread.is_alive()
    work.free.set()
    thread.join(10)
    assert not thread.is_alive()
    assert guests.present == 1


# Which nodes block


def test_the_nodes_that_a_cancel_does_not_stop_at_once_are_named() -> None:
    def sync(state: State) -> State:
        return state

    async def quick(state: State) -> State:
        return state

    @tool
    def blocking(text: str) -> str:
        """Block."""
        return text

    class Own(Runnable[Any, Any]):
        def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002
            return input

    inner: Any = StateGraph(MessagesState)
    inner.add_node("think", sync)
    inner.add_node("other", quick)
    inner.add_edge(START, "think")
    outer: Any = StateGraph(MessagesState)
    nodes: dict[str, Any] = {
        "desk": inner.compile(),
        "sync": sync,
        "quick": quick,
        "tools": ToolNode([blocking]),
        "both": RunnableLambda(sync, quick),
        "model": Scripted(turns=[words("a")]),
        "lambda": RunnableLambda(sync),
        "chain": RunnablePassthrough() | RunnableLambda(sync).with_config(tags=["x"]),
        "split": RunnablePassthrough() | {"a": RunnableLambda(quick), "b": RunnableLambda(sync)},
        "fine": RunnablePassthrough() | RunnableLambda(quick),
        "own": Own(),
    }
    for name, node in nodes.items():
        outer.add_node(name, node)
    outer.add_edge(START, "desk")
    graph = outer.compile()
    assert blocking_nodes(graph) == ["desk:think", "sync", "lambda", "chain", "split", "own"]
    assert blocking_nodes(RunnableLambda(sync)) == ["sync"]
    assert blocking_nodes(RunnableLambda(quick)) == []
    assert blocking_nodes(Scripted(turns=[])) == []


# Runs


async def start(runner: Runner, text: str = "hi") -> Run:
    request = RunRequest(input={"messages": [{"role": "user", "content": text}]})
    return await runner.start(runner.agent("one"), request, user="ann", streams=False)


async def finished(run: Run) -> list[Event]:
    """Its events, once it has come to its end, which it does soon."""
    async with asyncio.timeout(5):
        await run.done.wait()
    return [entry.event for entry in await run.subscribe(0).read()]


def graph(node: Any) -> Runnable[Any, Any]:
    built: Any = StateGraph(MessagesState)
    built.add_node("node", node)
    built.add_edge(START, "node")
    return built.compile()  # type: ignore[no-any-return]


def asks_blocking(provider: Simulator) -> Runnable[Any, Any]:
    one = openai(provider.base_url)

    def ask(state: MessagesState) -> State:
        return {"messages": [one.invoke(state["messages"])]}

    return graph(ask)


@pytest.fixture
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=200) as one:
        yield one


async def test_cancelled_before_its_first_token_a_synchronous_node_is_left_behind_and_hears_of_it_then(
    provider: Simulator, until: Until
) -> None:
    with installed(2) as one:
        async with runner_of(asks_blocking(provider)) as runner:
            run = await start(runner, "[[first_token_s=3]] hm")
            await until(lambda: any(exchange.model for exchange in provider.requests))
            run.scope.end(REQUESTED)
            events = await finished(run)
            assert isinstance(events[-1], RunFinished)
            assert run.status == "cancelled"
            assert (one.running, provider.requests[-1].ended) == (1, None)
            await until(lambda: one.running == 0)
            await until(lambda: provider.requests[-1].ended is not None)
            assert not provider.requests[-1].finished
            assert run.last_event_id == len(events)
            assert not any(isinstance(event, Token) for event in events)


async def test_cancelled_in_its_answer_a_synchronous_node_stops_at_the_next_chunk(
    provider: Simulator, until: Until
) -> None:
    with installed(2) as one:
        async with runner_of(asks_blocking(provider)) as runner:
            run = await start(runner, "[[tokens=2000]] go on")
            await until(lambda: run.ttft_ms is not None)
            run.scope.end(REQUESTED)
            await finished(run)
            await until(lambda: provider.requests[-1].ended is not None)
            await until(lambda: one.running == 0)
            assert provider.requests[-1].tokens_sent < 1000
            result = run.result()
            assert result["text"]
            assert result["usage"]["output_tokens"] >= len(result["text"].split()) // 2


async def test_cancelled_in_a_tool_that_blocks_the_run_ends_and_the_tool_is_left_behind(
    work: Work, until: Until
) -> None:
    @tool
    def block() -> str:
        """Block."""
        return work()

    with installed(2) as one:
        async with runner_of(tool_caller([block], [{"name": "block", "args": {}, "id": "c1"}])) as runner:
            run = await start(runner)
            await work.entered()
            run.scope.end(REQUESTED)
            await finished(run)
            assert (run.status, one.running) == ("cancelled", 1)
            work.free.set()
            await until(lambda: one.running == 0)


async def test_a_node_that_waits_for_a_thread_when_its_run_is_cancelled_never_begins(work: Work, until: Until) -> None:
    with installed(1):
        async with runner_of(graph(work)) as runner:
            first = await start(runner)
            await work.entered()
            second = await start(runner)
            await until(lambda: second.last_event_id >= 2)
            for run in (first, second):
                run.scope.end(REQUESTED)
                await finished(run)
            work.free.set()
            assert await asyncio.to_thread(int) == 0
            assert len(work.threads) == 1


async def test_while_every_thread_hangs_an_asynchronous_run_goes_on(work: Work, until: Until) -> None:
    async def quick(state: MessagesState) -> State:
        return {"messages": [AIMessage("ok")]}

    with installed(2) as one:
        async with runner_of(graph(work)) as hangs, runner_of(graph(quick)) as goes:
            hung = [await start(hangs) for _ in range(3)]
            await work.entered(2)
            run = await start(goes)
            await finished(run)
            assert run.result()["text"] == "ok"
            for each in hung:
                each.scope.end(REQUESTED)
                await finished(each)
            assert one.running == 2
            work.free.set()


# A process

HANGS = """
import threading
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langgraph.graph import START, MessagesState, StateGraph

def hang(state: MessagesState):
    threading.Event().wait()

def hang_in_threads_of_its_own(state: MessagesState):
    RunnableParallel(a=RunnableLambda(hang), b=RunnableLambda(hang)).invoke(state)

def hang_in_a_graph_of_its_own(state: MessagesState):
    built(hang, hang).invoke(state)

def built(*nodes):
    graph = StateGraph(MessagesState)
    for number, node in enumerate(nodes):
        graph.add_node(f"n{number}", node)
        graph.add_edge(START, f"n{number}")
    return graph.compile()

hangs = built(hang, hang_in_threads_of_its_own, hang_in_a_graph_of_its_own)
"""


def test_a_server_whose_nodes_hang_for_ever_stops_when_it_is_told_to_and_tells_its_readers(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "OPENAI_"))}
    command = [sys.executable, "-m", "app.cli", "serve", "hangs=hanging:hangs", "--port", "0"]
    env = kept | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "MILLRACE_DRAIN_GRACE_S": "0"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Uvicorn running on" in line:
                break
        url = "http://127.0.0.1:" + said[-1].split("http://127.0.0.1:")[1].split()[0]
        headers = {"Accept": "text/event-stream"}
        with (
            httpx.stream("POST", f"{url}/agents/hangs/runs", json={"input": "hi"}, headers=headers) as one,
            httpx.stream("POST", f"{url}/agents/hangs/runs", json={"input": "hi"}, headers=headers) as two,
        ):
            streams = [one.iter_lines(), two.iter_lines()]
            for lines in streams:
                for _ in range(3):
                    while next(lines) != "event: node.started":
                        pass
            process.send_signal(signal.SIGTERM)
            for lines in streams:
                assert '"status":"cancelled","reason":"shutdown"' in "\n".join(lines)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
