"""The ledger: what is put is there after a restart, and nothing that fails in it reaches a run."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from app.runs.ledger import MAX_UNWRITTEN, MEMORY, Ledger, LedgerInUse


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
