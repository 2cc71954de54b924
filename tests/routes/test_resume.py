"""Coming back to a run: any number of readers, from anywhere, and every wrong place to come back to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import httpx
import pytest
from httpx_sse import aconnect_sse
from proxy import proxying
from scripted import Gate, Scripted, say, words
from serving import Served, serving

Until = Callable[[Callable[[], bool]], Awaitable[None]]

ENTRIES = 25
"""What the gated run comes to: its start, a message of 20 tokens in its two ends, what they cost, its end."""


class Halves:
    """A run of two halves; the test lets each go."""

    def __init__(self) -> None:
        self.first, self.second = Gate(), Gate()
        told = words(*(f"{number} " for number in range(20)))
        self.agent = Scripted(turns=[[self.first, *told[:10], self.second, *told[10:]]])


@pytest.fixture
def halves() -> Halves:
    return Halves()


@pytest.fixture
def server(halves: Halves) -> Iterator[Served]:
    waits = Scripted(turns=[[say("It "), asyncio.Event().wait]])
    with serving({"halves": halves.agent, "waits": waits}) as one:
        yield one


@pytest.fixture
async def own(server: Served) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=20, limits=limits) as one:
        yield one


async def start(client: httpx.AsyncClient, agent: str, **options: object) -> str:
    answer = await client.post(f"/agents/{agent}/runs", json={"input": "Tell me.", **options})
    return str(answer.json()["run_id"])


async def ids(client: httpx.AsyncClient, run_id: str, after: int) -> list[int]:
    """The ids of what a reader is told, to the run's end."""
    async with aconnect_sse(client, "GET", f"/runs/{run_id}/events", headers={"Last-Event-ID": str(after)}) as source:
        return [int(event.id) async for event in source.aiter_sse()]


async def test_any_number_of_readers_from_anywhere_each_get_their_rest_once(
    server: Served, own: httpx.AsyncClient, halves: Halves, until: Until
) -> None:
    run_id = await start(own, "halves")
    run = server.run(run_id)
    early = [asyncio.create_task(ids(own, run_id, after)) for after in (0, 0, 1)]
    await until(lambda: run.scope.readers == 3)
    halves.first.open()
    await until(lambda: run.last_event_id == 12)
    between = [asyncio.create_task(ids(own, run_id, after)) for after in range(13)]
    await until(lambda: run.scope.readers == 16)
    halves.second.open()
    await until(lambda: run.finished)
    late = [asyncio.create_task(ids(own, run_id, after)) for after in range(ENTRIES)]
    for after, told in zip(
        (0, 0, 1, *range(13), *range(ENTRIES)), await asyncio.gather(*early, *between, *late), strict=True
    ):
        assert told == list(range(after + 1, ENTRIES + 1))
    assert run.last_event_id == ENTRIES


async def test_a_storm_of_readers_that_come_and_are_cut_off_leaves_the_run_as_it_was(
    server: Served, own: httpx.AsyncClient, halves: Halves, until: Until
) -> None:
    run_id = await start(own, "halves")
    run = server.run(run_id)
    with proxying(server.url) as proxy:
        for round_ in range(3):
            async with httpx.AsyncClient(base_url=proxy.url, timeout=20) as guest:
                readers = [asyncio.create_task(ids(guest, run_id, 0)) for _ in range(20)]
                await until(lambda: run.scope.readers == 20)
                if round_ == 1:
                    halves.first.open()
                proxy.cut("reset" if round_ % 2 else "close")
                broken = await asyncio.gather(*readers, return_exceptions=True)
                assert all(isinstance(one, httpx.TransportError) for one in broken)
                await until(lambda: run.scope.readers == 0)
    halves.second.open()
    assert await ids(own, run_id, 0) == list(range(1, ENTRIES + 1))


async def test_the_header_wins_over_the_address_which_a_reconnecting_browser_repeats(
    own: httpx.AsyncClient, halves: Halves
) -> None:
    halves.first.open()
    halves.second.open()
    run_id = await start(own, "halves")
    await own.get(f"/runs/{run_id}/result", params={"wait": "true"})
    path = f"/runs/{run_id}/events?after=3"
    assert "\nid: 4\n" in (await own.get(path)).text.replace("retry: 1000", "")
    assert "\nid: 9\n" in (await own.get(path, headers={"Last-Event-ID": "8"})).text.replace("retry: 1000", "")
    assert (await own.get(path, headers={"Last-Event-ID": str(ENTRIES)})).status_code == 204
    assert (await own.get(path, headers={"Last-Event-ID": "x"})).status_code == 400


@pytest.mark.parametrize("value", ["x", "-1", "4", "99999999999999999", "1" * 5000])
@pytest.mark.parametrize("way", ["header", "query"])
async def test_who_comes_with_a_wrong_id_is_no_reader_and_changes_nothing(
    server: Served, own: httpx.AsyncClient, until: Until, value: str, way: str
) -> None:
    # Told to end with its last reader: a refused one that counted as a reader would take the run with it.
    run_id = await start(own, "waits", on_disconnect="cancel")
    run = server.run(run_id)
    await until(lambda: run.last_event_id == 3)  # the fourth, too, lies in the future
    before = run.row()
    for _ in range(3):
        if way == "header":
            answer = await own.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": value})
        else:
            answer = await own.get(f"/runs/{run_id}/events", params={"after": value})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_event_id")
    assert run.scope.readers == 0
    assert run.scope.ending is None
    assert run.row() == before


async def test_an_id_of_another_run_that_is_longer_is_refused(own: httpx.AsyncClient, halves: Halves) -> None:
    halves.first.open()
    halves.second.open()
    longer, shorter = await start(own, "halves"), await start(own, "waits")
    await own.get(f"/runs/{longer}/result", params={"wait": "true"})
    answer = await own.get(f"/runs/{shorter}/events", headers={"Last-Event-ID": str(ENTRIES)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_event_id")
    assert "the newest is" in answer.json()["error"]["message"]


async def test_a_megabyte_for_an_id_is_refused_and_the_server_goes_on(server: Served, own: httpx.AsyncClient) -> None:
    run_id = await start(own, "waits")
    for value in ("1" * 1_048_576, "x" * 1_048_576):
        try:
            answer = await own.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": value})
            assert answer.status_code in (400, 431)
        except httpx.TransportError:
            pass  # refused while it was still being sent
    assert server.run(run_id).scope.readers == 0
    assert (await own.get("/health/ready")).status_code == 200


async def test_a_run_that_is_unknown_is_404_whatever_the_id(own: httpx.AsyncClient) -> None:
    for value in ("0", "7", "x"):
        answer = await own.get("/runs/none/events", headers={"Last-Event-ID": value})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_run")


async def test_an_expired_runs_events_are_gone_and_its_row_is_not(halves: Halves, until: Until) -> None:
    halves.first.open()
    halves.second.open()
    with serving({"halves": halves.agent}, run_retention_s=1) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            run_id = await start(client, "halves")
            path = f"/runs/{run_id}/events"
            async with asyncio.timeout(20):
                while (await client.get(path)).status_code == 200:
                    await asyncio.sleep(0.02)
            for after in ("0", "5"):
                answer = await client.get(path, headers={"Last-Event-ID": after})
                assert (answer.status_code, answer.json()["error"]["code"]) == (410, "run_expired")
            # Whoever has read it all is not told of a loss.
            assert (await client.get(path, headers={"Last-Event-ID": str(ENTRIES)})).status_code == 204
            assert (await client.get(f"/runs/{run_id}/result")).status_code == 410
            row = (await client.get(f"/runs/{run_id}")).json()
            assert (row["status"], row["last_event_id"]) == ("completed", ENTRIES)


async def test_a_reader_that_comes_between_two_events_waits_for_the_next(
    server: Served, own: httpx.AsyncClient, halves: Halves, until: Until
) -> None:
    run_id = await start(own, "halves")
    halves.first.open()
    run = server.run(run_id)
    await until(lambda: run.last_event_id == 12)
    async with own.stream("GET", f"/runs/{run_id}/events", headers={"Last-Event-ID": "12"}) as response:
        lines = response.aiter_lines()
        assert await anext(lines) == "retry: 1000"
        halves.second.open()
        said = [json.loads(line[6:])["text"] async for line in lines if line.startswith("data: ") and '"text"' in line]
    assert "".join(said) == "".join(f"{number} " for number in range(10, 20))


async def test_what_the_log_no_longer_has_is_one_gap_from_where_the_reader_was(until: Until) -> None:
    told = [*words(*("many words " * 10 for _ in range(600))), say("The end.")]
    with serving({"long": Scripted(turns=[told])}, run_max_bytes=64 * 1024) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            run_id = await start(client, "long")
            await until(lambda: server.run(run_id).finished)
            for after in (0, 2, 100, 300):
                path, sent = f"/runs/{run_id}/events", {"Last-Event-ID": str(after)}
                async with aconnect_sse(client, "GET", path, headers=sent) as source:
                    events = [event async for event in source.aiter_sse()]
                gaps = [event for event in events if event.event == "gap"]
                assert len(gaps) == 1
                gap = gaps[0].json()
                at = events.index(gaps[0])
                assert gap["from"] == (int(events[at - 1].id) if at else after) + 1
                assert gap["to"] == int(gaps[0].id) == int(events[at + 1].id) - 1
                assert gap["dropped"] == gap["to"] - gap["from"] + 1
                # Coming back from behind the gap there is none any more.
                rest = await ids(client, run_id, gap["to"])
                assert rest == [int(event.id) for event in events[at + 1 :]]
            result = (await client.get(f"/runs/{run_id}/result")).json()
    assert result["text"] == "many words " * 6_000 + "The end."
