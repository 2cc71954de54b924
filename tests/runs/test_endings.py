"""Many runs at once that end in every way there is, at every point there is: each gives back all it held, once.

Each run has a scene of its own: its model says a word, or is about to, and waits there until the run has been ended.
What is drawn by lot is who ends how, where and beside whom; the seed of a failure repeats its lots.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, NamedTuple, TypeAlias, TypeVar

import httpx2 as httpx
import openai
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from runners import Halt, told
from scripted import Scripted, piece, say, words
from typing_extensions import override

from app.errors import Conflict, RunFailed, TooManyRequests, TooManyStreams, Unavailable, UpstreamBusy
from app.events.event import RunFinished
from app.events.request import RunRequest
from app.limits.door import Door
from app.limits.gate import Gate
from app.limits.policy import Limits, Policy
from app.runs.agent import Agent
from app.runs.executor import installed
from app.runs.run import Run
from app.runs.runnable import AgentRunnable, Caller, caller
from app.runs.runner import Brought, Runner, Timing
from app.runs.scope import Attachment
from chains.answering import serve
from chains.retries import Retries

T = TypeVar("T")
Begun: TypeAlias = tuple[Run, Callable[[], object], "asyncio.Task[None] | None"]
"""A run, how its reader leaves, and the task that calls it, if it is called."""

USERS = ("ann", "ben", "cleo", "dan", "eve")
STREAMS, READERS, PLACES, AT_ONCE = 3, 4, 4, 24
SOON_S, LOOK_S = 0.05, 0.02

POINTS = ("in line", "before a token", "in mid-answer", "in a tool")
STARTS = ("start", "background", "thread")
CALLS = ("ainvoke", "astream", "astream_events", "astream_log", "abatch")
AGENTS = ("graph", "threads", "branches", "ours", "chain")
OURS = ("ours", "chain")
WITH_TOOL = ("graph", "threads", "ours")


class Ending(NamedTuple):
    """What a run may come to by it, and which runs can end so."""

    statuses: set[str]
    ways: tuple[str, ...] = (*STARTS, *CALLS)
    agents: tuple[str, ...] = AGENTS


ENDINGS = {
    "is let go on": Ending({"completed"}),
    "is cancelled": Ending({"cancelled"}),
    "is cancelled twice": Ending({"cancelled"}),
    "loses its reader": Ending({"cancelled"}),
    "loses its reader, and a grace": Ending({"cancelled"}, STARTS),
    "runs out of time": Ending({"timed_out"}, STARTS),
    "has a silent provider": Ending({"timed_out", "completed"}, STARTS),  # a tool may be silent
    "has a provider that fails": Ending({"failed", "completed"}),  # models of ours try again
    "has a provider that refuses": Ending({"failed", "completed"}),
    "cancels itself": Ending({"failed", "completed"}),  # in a thread nothing does
    "has a callback that raises": Ending({"failed"}, ("start",)),
    "is paused, and cancelled": Ending({"cancelled"}, STARTS[:2], OURS),
    "is paused, and goes on": Ending({"completed", "cancelled"}, STARTS[:2], OURS),  # or had to wait for too long
    "is paused, and left": Ending({"cancelled"}, STARTS[:2], OURS),
    "is paused, goes on, and is cancelled": Ending({"cancelled"}, STARTS[:2], OURS),
}
DISTURBED = {"upstream_busy", "superseded", "shutdown"}
"""What may come of a run through others."""


class Lot(NamedTuple):
    """What was drawn for one run."""

    user: str
    ending: str
    way: str
    agent: str
    point: str

    @classmethod
    def draw(cls, chance: random.Random) -> "Lot":
        ending = chance.choice(list(ENDINGS))
        way, agent = chance.choice(ENDINGS[ending].ways), chance.choice(ENDINGS[ending].agents)
        if way == "thread" and agent == "chain":
            agent = "ours"
        point = chance.choice(POINTS if agent in WITH_TOOL else POINTS[:-1])
        return cls(chance.choice(USERS), ending, way, agent, point)


class Held(threading.Event):
    """A step at which a thread waits; an event loop passes it by."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()

    @override
    def wait(self, timeout: float | None = None) -> bool:
        self.reached.set()
        return super().wait(timeout)


class Scene:
    """Where one run waits to be ended, and the models that bring it there."""

    def __init__(self, lot: Lot) -> None:
        self.halt, self.held = Halt(), Held()
        self.fails = lot.ending == "has a provider that fails"
        self._ours = lot.agent in OURS
        self._turns = self._script(lot)

    def model(self) -> Any:
        model = Scripted(turns=self._turns)
        return serve(model, retries=Retries(backoff_s=0, jitter_s=0)) if self._ours else model

    @property
    def reached(self) -> bool:
        return self.halt.reached.is_set() or self.held.reached.is_set()

    def open(self) -> None:
        self.halt.open.set()
        self.held.set()

    def _script(self, lot: Lot) -> list[Any]:
        again = words("one", " two")
        if lot.point == "in a tool":
            return [[say("", piece("wait", "{}", "c1", 0))], again]
        broken: dict[str, list[Any]] = {
            "has a provider that fails": [ConnectionError("gone")],
            "has a provider that refuses": [_too_many()],
            "cancels itself": [_gives_up],
        }
        here = broken.get(lot.ending, [self.halt, self.held])
        first = [say("one"), *here, say(" two")] if lot.point == "in mid-answer" else [*here, *again]
        return [first, again] if self._ours else [first]


async def _gives_up() -> None:
    raise asyncio.CancelledError


def _too_many() -> openai.RateLimitError:
    request = httpx.Request("POST", "http://provider/v1")
    response = httpx.Response(429, headers={"retry-after": "0"}, request=request)
    return openai.RateLimitError("slow down", response=response, body=None)


class Raises(BaseCallbackHandler):
    """A user's callback, at some moment of a call."""

    raise_error = True

    def __init__(self, moment: str) -> None:
        self._moment = moment

    @override
    def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self._now("start")

    @override
    def on_llm_new_token(self, *_: Any, **__: Any) -> None:
        self._now("token")

    @override
    def on_llm_end(self, *_: Any, **__: Any) -> None:
        self._now("end")

    def _now(self, moment: str) -> None:
        if moment == self._moment:
            raise ValueError("a callback's own")


class World:
    """A runner whose agents play the scene that a run's text names, and what came of it all."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.scenes: dict[str, Scene] = {}
        self.runs: list[Run] = []
        self.came_to: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.gate = Gate(PLACES, max_waiting=12, max_waiting_per_user=4)
        self.door = Door(Policy(Limits(max_streams=STREAMS, max_readers=READERS)))
        ours = {"served_model": True, "seamless": True}
        self.runner = Runner(
            {
                "graph": Agent("graph", self._graph(self._asks)),
                "threads": Agent("threads", self._graph(self._asks_in_thread)),
                "branches": Agent("branches", self._graph(self._asks, self._asks, self._asks_in_thread)),
                "ours": Agent("ours", self._graph(self._asks), **ours),  # type: ignore[arg-type]
                "chain": Agent("chain", RunnableLambda(self._pick), **ours),  # type: ignore[arg-type]
            },
            timing=Timing(queue_timeout_s=0.5, pause_timeout_s=0.3),
            door=self.door,
            gate=self.gate,
            strict=True,
        )

    # What is served

    def _scene(self, messages: list[AnyMessage]) -> Scene:
        return self.scenes[next(one.text for one in reversed(messages) if isinstance(one, HumanMessage))]

    async def _pick(self, text: str) -> Any:
        return self.scenes[text].model()

    async def _asks(self, state: MessagesState) -> dict[str, Any]:
        return {"messages": [await self._scene(state["messages"]).model().ainvoke(state["messages"])]}

    def _asks_in_thread(self, state: MessagesState) -> dict[str, Any]:
        return {"messages": [self._scene(state["messages"]).model().invoke(state["messages"])]}

    def _graph(self, *nodes: Any) -> Any:
        graph = StateGraph(MessagesState)
        for number, node in enumerate(nodes):
            graph.add_node(f"ask{number}", node)
            graph.add_edge(START, f"ask{number}")
        if len(nodes) == 1:
            graph.add_node("tools", self._in_a_tool)
            graph.add_conditional_edges("ask0", tools_condition)
            graph.add_edge("tools", "ask0")
        return graph.compile()

    async def _in_a_tool(self, state: MessagesState) -> Any:
        scene = self._scene(state["messages"])

        @tool
        async def wait() -> str:
            """Wait."""
            await scene.halt()
            if scene.fails:
                raise ConnectionError("gone")
            return "waited"

        return await ToolNode([wait]).ainvoke(state)

    # One run

    async def play(self, number: int, lot: Lot) -> None:
        """Start it as often as it takes, bring it to its point, end it there, and see what it came to."""
        texts = [f"{number}.{item}" for item in range(3 if lot.way == "abatch" else 1)]
        self.scenes.update({text: Scene(lot) for text in texts})
        run, leave, calling = await self._admitted(lambda: self._begin(lot, texts))
        self.runs.append(run)
        try:
            await self._end(run, leave, lot, self.scenes[texts[0]])
        finally:
            for text in texts:
                self.scenes[text].open()
        if calling is not None:
            with suppress(RunFailed, UpstreamBusy, asyncio.CancelledError):
                await calling
        last = (await told(run))[-1]
        leave()
        if not run.finished:  # it is paused, and for the next server
            return
        assert isinstance(last, RunFinished)
        self.came_to.update((last.status, str(last.reason)))
        assert last.status in ENDINGS[lot.ending].statuses or last.reason in DISTURBED, (lot, last)

    async def _admitted(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except (TooManyRequests, UpstreamBusy, Conflict) as error:
                self.refused[error.reason] += 1
                await asyncio.sleep(LOOK_S)

    async def _begin(self, lot: Lot, texts: list[str]) -> Begun:
        agent = self.runner.agent(lot.agent)
        if lot.way in CALLS:
            return await self._call(agent, lot, texts)
        raises = lot.ending == "has a callback that raises"
        run = await self.runner.start(
            agent,
            self._request(lot, texts[0]),
            user=lot.user,
            streams=lot.way != "background",
            brought=Brought(callbacks=[Raises(self.chance.choice(("start", "token", "end")))]) if raises else Brought(),
        )
        if lot.way != "background":
            return run, self.runner.attach(run).close, None
        return run, (await self._admitted(lambda: self._attach(run))).close, None

    async def _attach(self, run: Run) -> Attachment:
        return self.runner.attach(run)

    def _request(self, lot: Lot, text: str) -> RunRequest:
        options: dict[str, Any] = {"input": text, "on_disconnect": "cancel"}
        if lot.ending == "loses its reader, and a grace":
            options["disconnect_grace_s"] = SOON_S
        if lot.ending == "runs out of time":
            options["timeout_s"] = SOON_S
        if lot.ending == "has a silent provider":
            options |= {"first_token_timeout_s": SOON_S, "token_timeout_s": SOON_S}
        if lot.way == "thread":
            options["thread_id"] = f"{lot.user}'s with {lot.agent}"
            options["multitask_strategy"] = self.chance.choice(("reject", "enqueue", "interrupt"))
        return RunRequest(**options)

    async def _call(self, agent: Agent, lot: Lot, texts: list[str]) -> Begun:
        """As LangServe's routes do: by a task that is cancelled when the client leaves."""
        who, served, go_on = Caller(lot.user), AgentRunnable(self.runner, agent), self.chance.random() < 0.5

        async def call() -> None:
            caller.set(who)
            try:
                if lot.way == "abatch":
                    outputs = await served.abatch(texts, return_exceptions=go_on)
                    if not who.runs:
                        raise outputs[0]
                elif lot.way == "ainvoke":
                    await served.ainvoke(texts[0])
                else:
                    async with aclosing(getattr(served, lot.way)(texts[0])) as items:
                        async for _ in items:
                            pass
            finally:
                who.close()

        calling = asyncio.create_task(call())
        await asyncio.wait((calling, who.started), return_when=asyncio.FIRST_COMPLETED)
        if not who.runs:
            await calling  # which raises what has refused it
        run = await self.runner.get(who.runs[0], lot.user)
        assert isinstance(run, Run)
        return run, calling.cancel, calling

    # Its end

    async def _end(self, run: Run, leave: Callable[[], object], lot: Lot, scene: Scene) -> None:
        in_line = lot.point == "in line"
        await until(lambda: run.finished or scene.reached or (in_line and _in_line(run)))
        match lot.ending:
            case "is cancelled":
                await self.runner.cancel(run)
            case "is cancelled twice":
                await asyncio.gather(self.runner.cancel(run), self.runner.cancel(run))
            case "loses its reader" | "loses its reader, and a grace":
                leave()
                await run.done.wait()
            case "runs out of time":
                await run.done.wait()
            case "has a silent provider" if lot.point != "in a tool":
                await run.done.wait()
            case paused if paused.startswith("is paused"):
                await self._pause(run, leave, lot, scene)
            case _:
                scene.open()

    async def _pause(self, run: Run, leave: Callable[[], object], lot: Lot, scene: Scene) -> None:
        pausing = asyncio.create_task(self.runner.pause(run))
        await asyncio.sleep(0)
        if lot.point == "in a tool":  # where a pause waits for the next call
            scene.open()
        await pausing
        if "left" in lot.ending:
            leave()
        if "goes on" in lot.ending:
            await self._admitted(lambda: self.runner.resume(run))
        if "cancelled" in lot.ending:
            await self.runner.cancel(run)


def _in_line(run: Run) -> bool:
    return run.passage is not None and bool(run.passage._waiting)


@asynccontextmanager
async def world(seed: int) -> AsyncIterator[World]:
    """All of it, and nothing is left of it."""
    with installed() as executor:
        before = asyncio.all_tasks()
        one = World(random.Random(seed))
        await one.runner.open()
        idle = asyncio.all_tasks()
        try:
            async with asyncio.timeout(60):
                yield one
            await until(lambda: (one.runner.live, executor.running) == (0, 0))
            await until(lambda: asyncio.all_tasks() <= idle)
            assert (one.door.streams, one.door.readers) == (0, 0)
            assert (one.gate.under_way, one.gate.waiting) == (0, 0)
            assert [(run.threads, run.scope.readers) for run in one.runs] == [(0, 0)] * len(one.runs)
            for user in USERS:
                with ExitStack() as slots:
                    for _ in range(STREAMS):
                        slots.enter_context(one.door.admit(user))
                    with pytest.raises(TooManyStreams):
                        one.door.admit(user)
        finally:
            await one.runner.close()
    await until(lambda: asyncio.all_tasks() <= before)


async def until(condition: Callable[[], bool]) -> None:
    """Wait, as many do here at once: so it looks less often than the fixture, and is no task."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(LOOK_S)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_ends_runs_nothing_of_them_is_left(seed: int) -> None:
    at_once = asyncio.Semaphore(AT_ONCE)

    async def play(number: int, lot: Lot) -> None:
        async with at_once:
            await one.play(number, lot)

    async with world(seed) as one, asyncio.TaskGroup() as group:
        for number in range(80):
            group.create_task(play(number, Lot.draw(one.chance)))
    assert {"completed", "cancelled", "failed", "timed_out"} <= one.came_to.keys()
    assert one.refused["too_many_streams"] > 0


@pytest.mark.parametrize("seed", range(3))
async def test_a_server_that_stops_among_them_leaves_nothing_of_them_either(seed: int) -> None:
    async def play(number: int, lot: Lot) -> None:
        with suppress(Unavailable):  # it takes no more, nor does it let a paused run go on
            await one.play(number, lot)

    async with world(seed) as one, asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(play(number, Lot.draw(one.chance)))
        await until(lambda: one.door.streams >= len(USERS) and one.gate.waiting > 0)
        await one.runner.close()
    assert one.came_to["shutdown"] > 0
