"""The ledger: what is put is there after a restart, and nothing that fails in it reaches a run."""

import asyncio
import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from app.runs.ledger import MAX_UNWRITTEN, MEMORY, USAGE_RETENTION, Ledger, LedgerInUse, Usage
from app.runs.tally import MAX_UNWRITTEN as KEYS_WAITING
from app.runs.tally import CallSums, Key, RunSums
from app.telemetry.records import FinishedRun, ModelCall


@asynccontextmanager
async def opened(path: Path | str, **options: Any) -> AsyncIterator[Ledger]:
    ledger = Ledger(str(path), **options)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


def row(run_id: str, user: str = "ann", *, finished_at: float | None = None, **more: Any) -> dict[str, Any]:
    return {"run_id": run_id, "user": user, "created_at": 1.0, "finished_at": finished_at, **more}


async def test_rows_outlive_the_process(tmp_path: Path) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        ledger.put(row("a", finished_at=2e9, status="completed"))
    async with opened(tmp_path / "m.db") as ledger:
        assert await ledger.row("a") == row("a", finished_at=2e9, status="completed")
        assert await ledger.row("b") is None


async def test_a_row_is_known_before_it_is_written_and_the_newest_counts(tmp_path: Path) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        ledger.put(row("a", status="running"))
        ledger.put(row("a", status="completed"))
        found = await ledger.row("a")
        assert found is not None
        assert found["status"] == "completed"
        assert [one["status"] for one in await ledger.rows("ann", 10)] == ["completed"]


async def test_everybody_has_their_own_rows_newest_first_and_no_more_than_asked_for() -> None:
    async with opened(MEMORY) as ledger:
        for number in range(5):
            ledger.put({**row(f"r{number}"), "created_at": float(number)})
        ledger.put(row("other", "bob"))
        assert [one["run_id"] for one in await ledger.rows("ann", 3)] == ["r4", "r3", "r2"]
        assert [one["run_id"] for one in await ledger.rows("bob", 3)] == ["other"]


async def test_runs_that_a_stopped_process_left_unfinished_are_lost_but_not_the_paused_ones(tmp_path: Path) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        ledger.put(row("lost", status="running", reason=None))
        ledger.put(row("paused", status="paused", reason=None))
        ledger.put(row("done", finished_at=2e9, status="completed", reason=None))
        await ledger.hold("paused", b"state")
    async with opened(tmp_path / "m.db") as ledger:
        rows = {one["run_id"]: one for one in await ledger.rows("ann", 10)}
        assert (rows["lost"]["status"], rows["lost"]["reason"]) == ("failed", "server_lost")
        assert rows["lost"]["finished_at"] > 1e9
        assert rows["paused"]["status"] == "paused"
        assert rows["done"]["status"] == "completed"
        assert await ledger.held() == [b"state"]
        await ledger.release("paused")
        assert await ledger.held() == []


async def test_old_rows_are_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        ledger.put(row("old", finished_at=1000.0))
    async with opened(tmp_path / "m.db") as ledger:
        assert await ledger.row("old") is None


async def test_the_first_claim_of_a_thread_counts() -> None:
    async with opened(MEMORY) as ledger:
        assert await ledger.thread("t") is None
        claims = await asyncio.gather(*(ledger.claim("t", user, "chat") for user in ("ann", "bob", "eve")))
        assert len({claim.user for claim in claims}) == 1
        before = await ledger.thread("t")
        await ledger.touch("t")
        after = await ledger.thread("t")
        assert before is not None
        assert after is not None
        assert after.updated_at >= before.updated_at


async def test_a_file_belongs_to_one_server_at_a_time(tmp_path: Path) -> None:
    async with opened(tmp_path / "m.db"):
        with pytest.raises(LedgerInUse, match="in use by another server"):
            await Ledger(str(tmp_path / "m.db")).open()
    async with opened(tmp_path / "m.db"):
        pass


async def test_a_file_that_nobody_asked_for_by_name_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path / "m.db"), opened(tmp_path / "m.db", demanded=False) as second:
        second.put(row("a"))
        assert second.path == MEMORY
        assert [one["run_id"] for one in await second.rows("ann", 1)] == ["a"]
    assert "MILLRACE_DATABASE_URL" in caplog.text


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.db").write_text("not a database, but long enough to be taken for one " * 100)
    with pytest.raises(sqlite3.DatabaseError):
        await Ledger(str(tmp_path / "m.db")).open()


async def test_a_disk_that_fails_costs_a_line_in_the_log_and_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        with sqlite3.connect(tmp_path / "m.db") as other:
            other.execute("DROP TABLE runs")
        with caplog.at_level(logging.ERROR):
            for number in range(MAX_UNWRITTEN + 5):
                ledger.put(row(f"r{number}"))
            while "cannot be written" not in caplog.text:
                await asyncio.sleep(0)
        assert await ledger.row(f"r{MAX_UNWRITTEN}") is not None
        with sqlite3.connect(tmp_path / "m.db") as other:
            other.execute("CREATE TABLE runs (run_id PRIMARY KEY, user, created_at, finished_at, row) WITHOUT ROWID")
        other.close()
        assert len(await ledger.rows("ann", 20_000)) == MAX_UNWRITTEN  # the oldest were forgotten


async def test_before_it_is_open_it_remembers_what_is_put() -> None:
    ledger = Ledger()
    ledger.put(row("a"))
    assert await ledger.row("a") == row("a")
    assert await ledger.row("b") is None
    assert await ledger.rows("ann", 1) == [row("a")]
    await ledger.close()


async def put(ledger: Ledger, number: int) -> None:
    config: Any = {"configurable": {"thread_id": f"t{number}", "checkpoint_ns": ""}}
    await ledger.saver.aput(config, empty_checkpoint(), {}, {})


async def test_a_checkpoint_whose_run_is_cancelled_meanwhile_keeps_nobody_else_out(tmp_path: Path) -> None:
    """LangGraph's saver writes in one step and commits in another."""
    async with opened(tmp_path / "m.db") as ledger:
        for number in range(100):
            writing = asyncio.create_task(put(ledger, number))
            await asyncio.sleep(number / 100_000)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            async with asyncio.timeout(2):  # of the five seconds for which a lock is waited for
                await ledger.claim(f"t{number}", "ann", "one")


async def test_readers_keep_no_writer_out(tmp_path: Path) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        for number in range(200):
            ledger.put(row(f"r{number}"))
        for number in range(100):
            everything = [ledger.claim(f"t{number}", "ann", "one"), put(ledger, number), ledger.thread("t0")]
            await asyncio.gather(ledger.rows("ann", 200), *everything, ledger.hold(f"r{number}", b"x"), ledger.held())


# What users have spent


NOON = datetime(2026, 5, 4, 12, tzinfo=UTC).timestamp()
DAY = date(2026, 5, 4)


def call(user: str = "ann", *, at: float = NOON, cost: float | None = 0.25, **more: Any) -> ModelCall:
    facts: dict[str, Any] = {
        "agent": "chat",
        "model": "gpt-5-mini",
        "provider": "openai",
        "status": "completed",
        "input_tokens": 100,
        "output_tokens": 10,
    }
    return ModelCall("run", user=user, started_at=at - 1, ended_at=at, cost_usd=cost, **{**facts, **more})


def ended(user: str = "ann", *, at: float = NOON, **more: Any) -> FinishedRun:
    facts: dict[str, Any] = {"agent": "chat", "status": "completed", "reason": None, "cost_usd": 0.25}
    facts |= {"input_tokens": 100, "output_tokens": 10}
    return FinishedRun(
        "run", user=user, thread_id=None, created_at=at - 1, finished_at=at, duration_s=1, **{**facts, **more}
    )


async def calls_of(ledger: Ledger, user: str = "ann", since: date = date.min) -> dict[Key, CallSums]:
    """What the user's calls came to, by key."""
    found: dict[Key, CallSums] = {}
    for key, sums in (await ledger.usage(user, since)).calls:
        found[key] = CallSums(*map(sum, zip(found.get(key, CallSums()), sums, strict=True)))
    return found


async def total_of(ledger: Ledger, user: str = "ann") -> CallSums:
    return CallSums(*map(sum, zip(CallSums(), *(await calls_of(ledger, user)).values(), strict=True)))


def written(path: Path, query: str = "SELECT sum(calls), sum(cost_nano_usd) FROM usage_by_call") -> tuple[Any, ...]:
    """What is in the file, for whoever opens it."""
    with closing(sqlite3.connect(path)) as other:
        found: tuple[Any, ...] = other.execute(query).fetchone()
    return found


async def test_what_was_spent_is_summed_by_user_day_agent_and_model_and_outlives_the_process(tmp_path: Path) -> None:
    tomorrow = NOON + 86_400
    for number in range(3):  # servers, one after the other
        async with opened(tmp_path / "m.db") as ledger:
            ledger.spend(call(reasoning_tokens=4, cached_tokens=50, queue_s=0.5, estimated=True))
            ledger.spend(call())
            ledger.spend(call(cost=None))
            ledger.spend(call(agent="assistant"))
            ledger.spend(call(model="gpt-5"))
            ledger.spend(call(at=tomorrow))
            ledger.spend(call("bob", cost=1.0))
            found, times = await calls_of(ledger), number + 1
            assert found[Key("ann", "2026-05-04", "chat", "gpt-5-mini")] == CallSums(
                calls=3 * times,
                input_tokens=300 * times,
                output_tokens=30 * times,
                reasoning_tokens=4 * times,
                cached_tokens=50 * times,
                cost_nano_usd=500_000_000 * times,
                unpriced=times,
                estimated=times,
                queue_ms=500 * times,
            )
            assert len(found) == 4
            assert set(await calls_of(ledger, since=DAY + timedelta(1))) == {
                Key("ann", "2026-05-05", "chat", "gpt-5-mini")
            }
            assert await ledger.spent(DAY) == {"ann": (550 * times, 1.0 * times), "bob": (110 * times, 1.0 * times)}
            assert await ledger.spent(DAY - timedelta(1)) == {}
    assert written(tmp_path / "m.db") == (21, 3 * 2_250_000_000)


async def test_runs_are_summed_by_how_they_ended(tmp_path: Path) -> None:
    for _ in range(2):
        async with opened(tmp_path / "m.db") as ledger:
            ledger.count(ended())
            ledger.count(ended(status="cancelled", saved_tokens=40, saved_usd=0.125))
            ledger.count(ended(status="cancelled", cost_usd=None, saved_usd=None))
    async with opened(tmp_path / "m.db") as ledger:
        assert {key.kind: sums for key, sums in (await ledger.usage("ann", DAY)).runs} == {
            "completed": RunSums(2, 200, 20, 500_000_000, 0, 0, 0),
            "cancelled": RunSums(4, 400, 40, 500_000_000, 2, 80, 250_000_000),
        }


async def test_a_day_is_utcs_and_the_one_of_the_end() -> None:
    midnight = datetime(2026, 5, 5, tzinfo=UTC).timestamp()
    async with opened(MEMORY) as ledger:
        ledger.spend(call(at=midnight - 0.001))
        ledger.spend(call(at=midnight))
        assert {key.day for key in await calls_of(ledger)} == {"2026-05-04", "2026-05-05"}


async def test_what_was_spent_is_written_at_once_when_the_writer_is_idle(
    tmp_path: Path, until: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        for number in range(1, 4):
            ledger.spend(call())
            await until(lambda number=number: written(tmp_path / "m.db")[0] == number)  # type: ignore[misc]


async def test_a_disk_that_fails_neither_loses_nor_doubles_what_was_spent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, until: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    path = tmp_path / "m.db"
    async with opened(path) as ledger:
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("ALTER TABLE usage_by_call RENAME TO elsewhere")
        for _ in range(100):
            ledger.spend(call())
        await until(lambda: "cannot be written" in caplog.text)
        ledger.spend(call())
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("ALTER TABLE elsewhere RENAME TO usage_by_call")
        assert (await total_of(ledger)).calls == 101
        await until(lambda: written(path)[0] == 101)  # with nothing that would wake the writer
        assert (await total_of(ledger)).calls == 101
    assert written(path) == (101, 101 * 250_000_000)


async def test_what_a_failing_disk_keeps_waiting_is_bounded_and_stays_the_users(tmp_path: Path) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        with closing(sqlite3.connect(tmp_path / "m.db")) as other, other:
            other.execute("ALTER TABLE usage_by_call RENAME TO elsewhere")
        for number in range(KEYS_WAITING + 500):
            ledger.spend(call("bob" if number % 2 else "ann", model=f"m{number}"))
        await asyncio.sleep(0.01)  # the writer tries, and puts back
        assert len(ledger._calls._unwritten) <= KEYS_WAITING + 2
        with closing(sqlite3.connect(tmp_path / "m.db")) as other, other:
            other.execute("ALTER TABLE elsewhere RENAME TO usage_by_call")
        for user in ("ann", "bob"):
            assert (await total_of(ledger, user)).calls == KEYS_WAITING // 2 + 250
            assert (await calls_of(ledger, user))[Key(user, "2026-05-04", "other", "other")].calls == 250
    assert written(tmp_path / "m.db")[0] == KEYS_WAITING + 500


@pytest.mark.parametrize("cancelled_after", range(12))
async def test_a_write_whose_task_is_cancelled_is_counted_once(tmp_path: Path, cancelled_after: int) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        for _ in range(20):
            ledger.spend(call())
            writing = asyncio.create_task(ledger._write_usage())
            for _ in range(cancelled_after):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        assert (await total_of(ledger)).calls == 20
    assert written(tmp_path / "m.db")[0] == 20


async def test_whoever_asks_while_it_is_written_is_told_all_of_it_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "m.db") as ledger:
        for number in range(1, 200):
            ledger.spend(call(model=f"m{number % 7}"))
            if number % 3 == 0:
                await asyncio.sleep(0)
            assert (await total_of(ledger)).calls == number
            assert (await ledger.spent(DAY))["ann"][0] == 110 * number


async def test_sums_end_where_sqlites_integers_do(tmp_path: Path) -> None:
    most = 2**63 - 1
    for _ in range(2):
        async with opened(tmp_path / "m.db") as ledger:
            ledger.spend(call(input_tokens=most - 1, cost=1e300))
            ledger.spend(call(input_tokens=10**40, output_tokens=-5, cost=float("nan"), queue_s=float("nan")))
    async with opened(tmp_path / "m.db") as ledger:
        total = await total_of(ledger)
        assert (total.calls, total.input_tokens, total.cost_nano_usd, total.queue_ms) == (4, most, most, 0)
        assert total.output_tokens == 20
    assert written(tmp_path / "m.db", "SELECT typeof(input_tokens) FROM usage_by_call") == ("integer",)


async def test_no_name_keeps_what_others_spent_from_being_written(tmp_path: Path) -> None:
    names = ["\udc80", "a\0b", "x" * 10_000, "", "'; DROP TABLE runs; --", "模型", '"\\']
    async with opened(tmp_path / "m.db") as ledger:
        for name in names:
            ledger.spend(call(model=name))
            ledger.spend(call(user=name))
    async with opened(tmp_path / "m.db") as ledger:
        assert (await total_of(ledger)).calls == len(names)
        for name in names:
            assert (await total_of(ledger, name)).calls == 1


async def test_a_file_of_the_version_before_is_opened_and_goes_on(tmp_path: Path) -> None:
    """As its ledger made it: without the tables of what was spent."""
    with closing(sqlite3.connect(tmp_path / "m.db")) as other, other:
        other.executescript("""
            PRAGMA journal_mode=WAL;
            CREATE TABLE runs (
                run_id TEXT PRIMARY KEY, user TEXT NOT NULL,
                created_at REAL NOT NULL, finished_at REAL, row TEXT NOT NULL
            ) WITHOUT ROWID;
            CREATE INDEX runs_of_user ON runs (user, created_at);
            CREATE TABLE threads (
                thread_id TEXT PRIMARY KEY, user TEXT NOT NULL, agent TEXT NOT NULL,
                created_at REAL NOT NULL, updated_at REAL NOT NULL
            ) WITHOUT ROWID;
            CREATE TABLE paused (run_id TEXT PRIMARY KEY, data BLOB NOT NULL);
            INSERT INTO runs VALUES ('a', 'ann', 1.0, 2e9, '{"run_id": "a", "user": "ann"}');
        """)
    async with opened(tmp_path / "m.db") as ledger:
        assert await ledger.row("a") == {"run_id": "a", "user": "ann"}
        assert (await ledger.usage("ann", date.min)) == Usage([], [])
        ledger.spend(call())
    assert written(tmp_path / "m.db")[0] == 1


async def test_days_long_past_are_forgotten_at_the_next_start(tmp_path: Path) -> None:
    old, young = (time.time() - (USAGE_RETENTION.days + days) * 86_400 for days in (2, -2))
    async with opened(tmp_path / "m.db") as ledger:
        for at in (old, young):
            ledger.spend(call(at=at))
            ledger.count(ended(at=at))
    async with opened(tmp_path / "m.db") as ledger:
        usage = await ledger.usage("ann", date.min)
        assert (len(usage.calls), len(usage.runs)) == (1, 1)


async def test_before_it_is_open_it_remembers_what_was_spent_and_then_writes_it(
    tmp_path: Path, until: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    ledger = Ledger(str(tmp_path / "m.db"))
    ledger.spend(call())
    assert (await total_of(ledger)).calls == 1
    assert await ledger.spent(DAY) == {"ann": (110, 0.25)}
    await ledger.open()
    await until(lambda: written(tmp_path / "m.db")[0] == 1)
    await ledger.close()


async def test_in_memory_it_is_kept_as_long_as_the_process() -> None:
    async with opened(MEMORY) as ledger:
        ledger.spend(call())
        await asyncio.sleep(0.01)
        ledger.spend(call())
        assert (await total_of(ledger)).calls == 2
        assert await ledger.spent(DAY) == {"ann": (220, 0.5)}


def test_a_server_that_is_killed_loses_at_most_what_came_last(tmp_path: Path) -> None:
    """It tells what it spent a second ago, time after time, and is killed meanwhile."""
    program = f"""
import asyncio, time
from app.runs.ledger import Ledger
from app.telemetry.records import ModelCall

async def main():
    ledger = Ledger({str(tmp_path / "m.db")!r})
    await ledger.open()
    spent, told = 0, {{}}
    while True:
        ledger.spend(ModelCall("r", "chat", "ann", "m", "openai", "completed", {NOON}, {NOON}, input_tokens=1))
        spent += 1
        told[spent] = time.monotonic()
        first = next(iter(told))
        if time.monotonic() - told[first] > 1:
            print(first, flush=True)
            del told[first]
        await asyncio.sleep(0.001)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            told = [int(server.stdout.readline()) for _ in range(300)]
        finally:
            server.kill()
    assert written(tmp_path / "m.db", "SELECT sum(input_tokens) FROM usage_by_call")[0] >= told[-1]
