"""The streams of one socket, without a network: who leaves whom, and when, whatever ends first."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from langchain_core.runnables import RunnableLambda
from scripted import Gate, Scripted, Step, say, words
from sockets import EVERYTHING, Client
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.eventlog.base import Lag
from app.events.request import RunRequest
from app.routes.websocket import MAX_COMMANDS, MAX_STREAMS, Session, Stream, WebSockets
from app.runs.agent import Agent
from app.runs.run import Run
from app.runs.runner import Runner
from app.transports.websocket import Socket

Until = Callable[[Callable[[], bool]], Awaitable[None]]

USER = "ada"


class Slowly(Runner):
    """A runner whose starts wait for the test."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.waiting = 0
        self.go = asyncio.Event()

    @override
    async def start(self, *args: Any, **fields: Any) -> Run:
        self.waiting += 1
        await self.go.wait()
        return await super().start(*args, **fields)


class Long:
    """A turn of many words, made as they are said: LangChain takes the ``repr`` of a model's fields at each call."""

    def __init__(self, gate: Gate, pieces: Sequence[str]) -> None:
        self._gate = gate
        self._pieces = pieces

    def __iter__(self) -> Iterator[Step]:
        yield from (say("first "), self._gate)
        yield from map(say, self._pieces)


def agents(**served: Any) -> dict[str, Agent]:
    return {name: Agent(name, runnable) for name, runnable in served.items()}


def waiting_agent(gate: Gate) -> Scripted:
    return Scripted(turns=[[*words("Hello"), gate, *words(" world")]])


@asynccontextmanager
async def opened(runner: Runner) -> AsyncIterator[Runner]:
    await runner.open()
    try:
        yield runner
    finally:
        await runner.close()


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """The app behind the sockets."""
    raise AssertionError(f"nothing is served at {scope['path']}")


@asynccontextmanager
async def connected(
    runner: Runner, room: int = EVERYTHING, user: str = USER, sockets: WebSockets | None = None
) -> AsyncIterator[tuple[Client, "asyncio.Future[None]"]]:
    client = Client(room, user=user)
    served = sockets or WebSockets(nowhere, runner=runner, max_frame_bytes=64 * 1024)
    task = asyncio.ensure_future(served(client.scope, client.receive, client.send))
    try:
        yield client, task
    finally:
        client.leave()
        async with asyncio.timeout(10):
            await asyncio.gather(task, return_exceptions=True)


def runs_of(runner: Runner) -> list[Run]:
    return list(runner._runs.values())


def ended(client: Client, stream_id: str) -> bool:
    last = [text for text in client.texts if '"run.finished"' in text or '"final":true' in text]
    return any(json.loads(text)["stream_id"] == stream_id for text in last)


def finished(client: Client) -> list[dict[str, Any]]:
    return [frame for frame in client.frames if frame["event"] == "run.finished"]


async def test_a_stream_tells_its_run_from_start_to_end_and_its_id_is_free_again(until: Until) -> None:
    async with (
        opened(Runner(agents(echo=RunnableLambda(str.upper)), strict=True)) as runner,
        connected(runner) as (client, _),
    ):
        for round_ in (1, 2):
            client.say("start", stream_id="a", agent="echo", input="hi")
            await until(lambda: len(finished(client)) == round_)  # noqa: B023 - awaited in this round
    started = [frame["data"]["run_id"] for frame in client.of("a") if frame["event"] == "run.started"]
    assert len(set(started)) == 2
    assert client.of("a")[0]["id"] == 1


@pytest.mark.parametrize("way", ["leaves", "is cancelled"])
async def test_when_the_socket_ends_every_stream_leaves_its_run_once(until: Until, way: str) -> None:
    gate = Gate()
    async with opened(Runner(agents(waits=waiting_agent(gate)), strict=True)) as runner:
        async with connected(runner) as (client, task):
            for number in range(20):
                policy = "cancel" if number % 2 else "continue"
                client.say("start", stream_id=str(number), agent="waits", input="hi", on_disconnect=policy)
            await until(lambda: len(runs_of(runner)) == 20 and all(run.scope.readers == 1 for run in runs_of(runner)))
            for run in runs_of(runner):
                client.say("attach", stream_id=f"{run.run_id} again", run_id=run.run_id)
            await until(lambda: all(run.scope.readers == 2 for run in runs_of(runner)))
            if way == "leaves":
                client.leave()
            else:
                task.cancel()
            await until(task.done)
            assert [run.scope.readers for run in runs_of(runner)] == [0] * 20
        gate.open()
        await until(lambda: runner.live == 0)
        assert sorted(run.status for run in runs_of(runner)) == ["cancelled"] * 10 + ["completed"] * 10


@pytest.mark.parametrize("way", ["leaves", "is cancelled", "detaches"])
async def test_a_run_whose_client_goes_while_it_starts_is_left_too(until: Until, way: str) -> None:
    async with opened(Slowly(agents(waits=waiting_agent(Gate())), strict=True)) as runner:
        assert isinstance(runner, Slowly)
        async with connected(runner) as (client, task):
            client.say("start", stream_id="a", agent="waits", input="hi")
            await until(lambda: runner.waiting == 1)
            if way == "leaves":
                client.leave()
            elif way == "is cancelled":
                task.cancel()
            else:
                client.say("detach", stream_id="a")
            await until(lambda: client.unread == 0)
            runner.go.set()
            await until(lambda: runner.live == 0 and len(runs_of(runner)) == 1)
            assert runs_of(runner)[0].status == "cancelled"
            if way == "detaches":
                await until(lambda: ended(client, "a"))
                assert client.of("a")[-1]["data"] == {"reason": "detached"}


async def test_a_slow_start_holds_up_neither_the_other_streams_nor_a_ping(until: Until) -> None:
    async with opened(Slowly(agents(echo=RunnableLambda(str.upper)), strict=True)) as runner:
        assert isinstance(runner, Slowly)
        run = await Runner.start(runner, runner.agent("echo"), RunRequest(input="hi"), user=USER, streams=False)
        async with connected(runner) as (client, _):
            client.say("start", stream_id="a", agent="echo", input="hi")
            await until(lambda: runner.waiting == 1)
            client.say("attach", stream_id="b", run_id=run.run_id)
            client.say("ping")
            await until(lambda: ended(client, "b") and any(frame["event"] == "pong" for frame in client.frames))
            assert client.of("a") == []
            runner.go.set()
            await until(lambda: ended(client, "a"))


async def test_a_cancel_said_while_the_run_starts_is_carried_out_when_it_has(until: Until) -> None:
    async with opened(Slowly(agents(waits=waiting_agent(Gate())), strict=True)) as runner:
        assert isinstance(runner, Slowly)
        async with connected(runner) as (client, _):
            client.say("start", stream_id="a", agent="waits", input="hi")
            client.say("cancel", stream_id="a")
            await until(lambda: client.unread == 0 and runner.waiting == 1)
            runner.go.set()
            await until(lambda: ended(client, "a"))
            assert client.of("a")[-1]["data"]["reason"] == "requested"


async def test_the_commands_and_streams_of_a_socket_have_bounds(until: Until) -> None:
    async with opened(Slowly(agents(waits=waiting_agent(Gate())), strict=True)) as runner:
        assert isinstance(runner, Slowly)
        async with connected(runner) as (client, _):
            for number in range(MAX_STREAMS + 2):
                client.say("start", stream_id=str(number), agent="waits", input="hi")
            for _ in range(MAX_COMMANDS + 1):
                client.say("cancel", stream_id="0")
            await until(lambda: len(client.frames) == 3)
            assert [(f["stream_id"], f["data"]["code"], f.get("final")) for f in client.frames] == [
                (str(MAX_STREAMS), "socket_full", True),
                (str(MAX_STREAMS + 1), "socket_full", True),
                ("0", "too_many_commands", None),
            ]
            runner.go.set()
            client.leave()
            await until(lambda: runner.live == 0 and len(runs_of(runner)) == MAX_STREAMS)


async def test_a_reader_who_takes_nothing_has_a_gap_and_the_run_and_others_go_on(until: Until) -> None:
    gate = Gate()
    pieces = [f"{number} " for number in range(400)]
    agent = Scripted(turns=[Long(gate, pieces)])
    async with (
        opened(Runner(agents(long=agent), lag=Lag(64, 1 << 20), strict=True)) as runner,
        connected(runner, room=0) as (slow, _),
        connected(runner) as (quick, _),
    ):
        slow.say("start", stream_id="a", agent="long", input="go")
        await until(lambda: len(runs_of(runner)) == 1)
        run = runs_of(runner)[0]
        quick.say("attach", stream_id="q", run_id=run.run_id)
        await until(lambda: len(quick.frames) > 2)
        gate.open()
        await until(lambda: ended(quick, "q"))
        assert slow.texts == []
        slow.take(EVERYTHING)
        await until(lambda: ended(slow, "a"))
    whole = "".join(frame["data"]["text"] for frame in quick.of("q") if frame["event"] == "token")
    assert whole == "first " + "".join(pieces)
    frames = slow.of("a")
    gaps = [frame for frame in frames if frame["event"] == "gap"]
    assert len(gaps) == 1
    assert gaps[0]["id"] == gaps[0]["data"]["to"]
    assert [frame["id"] for frame in frames] == sorted({frame["id"] for frame in frames})
    assert len(frames) < 150
    rest = "".join(f["data"]["text"] for f in frames if f["event"] == "token" and f["id"] > gaps[0]["id"])
    assert whole.endswith(rest)
    assert rest


async def test_in_a_drain_an_idle_socket_is_closed_at_once_and_another_after_its_last_stream(until: Until) -> None:
    gate = Gate()
    async with (
        opened(Runner(agents(waits=waiting_agent(gate)), strict=True)) as runner,
        connected(runner) as (idle, ending),
        connected(runner) as (busy, going),
    ):
        busy.say("start", stream_id="a", agent="waits", input="hi")
        await until(lambda: any(frame["event"] == "token" for frame in busy.frames))
        runner.draining.set()
        await until(ending.done)
        assert idle.closed is not None
        assert idle.closed[0] == 1012
        busy.say("start", stream_id="b", agent="waits", input="hi")
        await until(lambda: ended(busy, "b"))
        assert busy.of("b")[-1]["data"]["code"] == "draining"
        assert not going.done()
        gate.open()
        await until(going.done)
        assert busy.of("a")[-1]["event"] == "run.finished"
        assert busy.closed is not None
        assert busy.closed[0] == 1012


async def test_a_run_that_this_process_lets_go_of_closes_the_socket_for_a_restart(until: Until) -> None:
    async with opened(Runner(agents(waits=waiting_agent(Gate())), strict=True)) as runner:
        async with connected(runner) as (client, task):
            client.say("start", stream_id="a", agent="waits", input="hi", on_disconnect="continue")
            await until(lambda: any(frame["event"] == "token" for frame in client.frames))
            runs_of(runner)[0].abandon()
            await until(task.done)
            assert client.closed is not None
            assert client.closed[0] == 1012
        runner.stop()


async def test_an_error_of_ours_ends_its_stream_and_no_other(until: Until, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Runner):
        @override
        async def pause(self, run: Any) -> None:
            raise RuntimeError("a secret")

        @override
        async def get(self, run_id: str, user: str) -> Any:
            raise RuntimeError("a secret")

    gate = Gate()
    async with (
        opened(Broken(agents(waits=waiting_agent(gate)), strict=True)) as runner,
        connected(runner) as (client, _),
    ):
        client.say("start", stream_id="a", agent="waits", input="hi")
        client.say("pause", stream_id="a")
        client.say("attach", stream_id="b", run_id="any")
        await until(lambda: ended(client, "b") and any(frame["event"] == "error" for frame in client.of("a")))
        assert {frame["data"]["code"] for frame in client.frames if frame["event"] == "error"} == {"internal_error"}
        assert "secret" not in json.dumps(client.frames)
        gate.open()
        await until(lambda: ended(client, "a"))
        assert client.of("a")[-1]["data"]["status"] == "completed"
    assert "a secret" in caplog.text


async def test_a_flood_of_nonsense_is_answered_piece_by_piece_and_waits_for_its_reader(until: Until) -> None:
    async with (
        opened(Runner(agents(echo=RunnableLambda(str.upper)), strict=True)) as runner,
        connected(runner, room=10) as (client, _),
    ):
        for _ in range(1000):
            client.say_text("nonsense")
        await until(lambda: len(client.texts) == 10)
        for _ in range(100):
            await asyncio.sleep(0)
        assert client.unread > 900
        client.take(1000)
        with anyio.fail_after(10):
            await until(lambda: len(client.texts) == 1000)


async def test_another_users_run_does_not_exist(until: Until) -> None:
    async with (
        opened(Runner(agents(waits=waiting_agent(Gate())), strict=True)) as runner,
        connected(runner) as (mine, _),
        connected(runner, user="eve") as (foreign, _),
    ):
        mine.say("start", stream_id="a", agent="waits", input="hi")
        await until(lambda: len(runs_of(runner)) == 1)
        foreign.say("attach", stream_id="a", run_id=runs_of(runner)[0].run_id)
        await until(lambda: ended(foreign, "a"))
        assert foreign.of("a")[-1]["data"]["code"] == "unknown_run"
        assert runs_of(runner)[0].scope.readers == 1


async def test_all_sockets_of_a_server_hear_of_its_drain_and_one_that_comes_meanwhile_does_too(until: Until) -> None:
    async with opened(Runner(agents(waits=waiting_agent(Gate())), strict=True)) as runner:
        sockets = WebSockets(nowhere, runner=runner)
        async with (
            connected(runner, sockets=sockets) as (first, gone),
            connected(runner, sockets=sockets) as (second, one),
            connected(runner, sockets=sockets) as (third, other),
        ):
            await until(lambda: all(client.accepted is not None for client in (first, second, third)))
            first.leave()
            await until(gone.done)
            runner.draining.set()
            await until(lambda: one.done() and other.done())
            assert [client.closed and client.closed[0] for client in (first, second, third)] == [None, 1012, 1012]
            async with connected(runner, sockets=sockets) as (late, refused):
                await until(refused.done)
                assert late.closed is not None
                assert late.closed[0] == 1012


@pytest.mark.parametrize("way", ["leaves", "is drained"])
async def test_a_socket_that_has_ended_leaves_nothing_to_the_collector(until: Until, way: str) -> None:
    async with (
        opened(Runner(agents(echo=RunnableLambda(str.upper)), strict=True)) as runner,
        connected(runner) as (client, task),
    ):
        client.say("ping")
        client.say("start", stream_id="a", agent="echo", input="hi")
        await until(lambda: ended(client, "a"))
        gc.collect()
        gc.disable()
        try:
            if way == "leaves":
                client.leave()
            else:
                runner.draining.set()
            await until(task.done)
            await asyncio.sleep(0)
            assert not [one for one in gc.get_objects() if type(one) in (Session, Stream, Socket)]
        finally:
            gc.enable()
