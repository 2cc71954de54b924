"""What outlives the process: the rows of runs, who owns which thread, paused runs, the threads' checkpoints, and what
users have spent.

One SQLite file, or memory where nothing is to be kept. Rows are written behind: ``put`` never waits, a newer row
of a run replaces one that is not written yet, and a disk that is slow or full costs a line in the log, never a run.
So are ``spend`` and ``count``, whose sums wait until they can be written (``app.runs.tally``).
What a promise hangs on (a thread's owner, a paused run) is awaited.

A file belongs to one server at a time, by a lock that the system drops with the process: at start-up every run that
the file calls unfinished is therefore lost, and is marked so.
"""

import asyncio
import contextlib
import fcntl
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import aiosqlite
import orjson
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from app.events import codec
from app.runs.tally import NANO, CallSums, Key, RunSums, Tally, of_call, of_run
from app.telemetry.records import FinishedRun, ModelCall

logger = logging.getLogger("millrace.ledger")

MEMORY = ":memory:"

MAX_UNWRITTEN = 10_000
"""Rows that wait for a disk which fails; beyond them the oldest is forgotten."""

ROW_RETENTION_S = 30 * 86_400
"""How long the row of a finished run is kept."""

USAGE_RETENTION = timedelta(days=400)
"""How long it is kept what a user spent on a day."""

GATHER_S = 0.05
"""So long a write waits for what else is to be written, and for the run that has just begun to have gone on."""

RETRY_S = 1.0
"""After a write that failed, the next try."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, user TEXT NOT NULL, created_at REAL NOT NULL, finished_at REAL, row TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_of_user ON runs (user, created_at);
CREATE TABLE IF NOT EXISTS threads (
    thread_id TEXT PRIMARY KEY, user TEXT NOT NULL, agent TEXT NOT NULL,
    created_at REAL NOT NULL, updated_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS paused (run_id TEXT PRIMARY KEY, data BLOB NOT NULL);
"""

Row = Mapping[str, Any]
"""One row of ``GET /runs``, as JSON has it."""


class LedgerInUse(Exception):
    """Another server works with this file."""


class ThreadRow(NamedTuple):
    """Who may speak on a thread, and with which agent. Times are in seconds since the epoch."""

    thread_id: str
    user: str
    agent: str
    created_at: float
    updated_at: float


class Usage(NamedTuple):
    """What a user has spent, by call and by run. A key may be there twice: its sums are to be added up."""

    calls: Sequence[tuple[Key, CallSums]]
    runs: Sequence[tuple[Key, RunSums]]


class Ledger:
    """``path``: the file, or ``":memory:"``. Before ``open`` it only remembers what is put.

    ``demanded``: the file was asked for by name. Otherwise a server that cannot have it, because another one has or
    because the folder is read-only, says so and keeps everything in memory.
    """

    def __init__(self, path: str = MEMORY, *, demanded: bool = True) -> None:
        self.path = path
        self._demanded = demanded
        self._lock = contextlib.ExitStack()
        self._db: aiosqlite.Connection | None = None
        self._saver: AsyncSqliteSaver | None = None
        self._unwritten: dict[str, Row] = {}
        self._calls = Tally("usage_by_call", kind="model", zero=CallSums())
        self._ended = Tally("usage_by_run", kind="status", zero=RunSums())
        self._tallying = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the file, mark the runs that a stopped process left unfinished.

        Raises ``LedgerInUse`` and ``OSError`` (``sqlite3.Error`` for a file that is no database) if it was demanded.
        """
        try:
            await self._open_file()
        except (LedgerInUse, OSError, aiosqlite.Error) as error:
            await self.close()
            if self._demanded:
                raise
            logger.warning(
                "threads and rows of runs are kept in memory only: %s. Give this server a file of its own: "
                "MILLRACE_DATABASE_URL=sqlite:///other.db",
                error,
            )
            self.path = MEMORY
            await self._open_file()
        self._closing.clear()
        self._changed.set()  # by what came before
        self._writer = asyncio.create_task(self._write_behind(), name="ledger")

    async def _open_file(self) -> None:
        if self.path != MEMORY:
            self._lock.enter_context(_locked(Path(f"{self.path}.lock")))
        self._db = await _connect(self.path)
        await self._db.executescript(_SCHEMA + self._calls.schema + self._ended.schema)
        self._saver = AsyncSqliteSaver(await _connect(self.path))
        await self._saver.setup()
        await self._mark_lost(time.time())
        await self._forget_usage((datetime.now(UTC) - USAGE_RETENTION).date())

    async def close(self) -> None:
        """Write what is not written yet, and let go of the file."""
        if self._writer is not None:
            # Not by a cancel, which could not tell whether what it was writing has been written.
            self._closing.set()
            self._changed.set()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
            await self._write()
        if self._saver is not None:
            await self._saver.conn.close()
            self._saver = None
        if self._db is not None:
            await self._db.close()
            self._db = None
        self._lock.close()

    @property
    def saver(self) -> BaseCheckpointSaver[str]:
        """Where LangGraph keeps its checkpoints."""
        assert self._saver is not None, "the ledger is not open"
        return self._saver

    def put(self, row: Row) -> None:
        """Keep this row of a run, soon."""
        run_id = row["run_id"]
        self._unwritten.pop(run_id, None)  # so that the newest row is the last one
        self._unwritten[run_id] = row
        if len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[next(iter(self._unwritten))]
        self._changed.set()

    async def row(self, run_id: str) -> Row | None:
        """The row of a run."""
        if run_id in self._unwritten:
            return self._unwritten[run_id]
        if self._db is None:
            return None
        found = await self._select("SELECT row FROM runs WHERE run_id = ?", run_id)
        return orjson.loads(found[0][0]) if found else None

    async def rows(self, user: str, limit: int) -> Sequence[Row]:
        """The user's rows, newest first."""
        if self._db is None:
            return [row for row in reversed(self._unwritten.values()) if row["user"] == user]
        await self._write_rows()
        query = "SELECT row FROM runs WHERE user = ? ORDER BY created_at DESC LIMIT ?"
        return [orjson.loads(found) for (found,) in await self._select(query, user, limit)]

    def spend(self, call: ModelCall) -> None:
        """Add a model call to what its user has spent, soon."""
        self._calls.add(*of_call(call))
        self._changed.set()

    def count(self, run: FinishedRun) -> None:
        """Add a run that has ended, soon."""
        self._ended.add(*of_run(run))
        self._changed.set()

    async def usage(self, user: str, since: date) -> Usage:
        """What the user has spent from that day (UTC) on, also what is not written yet."""
        async with self._tallying:
            calls = await self._calls.of_user(self._db, user, since.isoformat())
            return Usage(calls, await self._ended.of_user(self._db, user, since.isoformat()))

    async def spent(self, day: date) -> dict[str, tuple[int, float]]:
        """Tokens, and US dollars as far as prices were known, of each user's model calls on that day."""
        async with self._tallying:
            rows = await self._calls.of_day(self._db, day.isoformat())
        tokens: defaultdict[str, int] = defaultdict(int)
        nano_usd: defaultdict[str, int] = defaultdict(int)
        for key, sums in rows:
            tokens[key.user] += sums.input_tokens + sums.output_tokens
            nano_usd[key.user] += sums.cost_nano_usd
        return {user: (tokens[user], nano_usd[user] / NANO) for user in tokens}

    async def thread(self, thread_id: str) -> ThreadRow | None:
        """Whose thread it is; ``None`` when nobody has spoken on it."""
        query = "SELECT thread_id, user, agent, created_at, updated_at FROM threads WHERE thread_id = ?"
        found = await self._select(query, thread_id)
        return ThreadRow(*found[0]) if found else None

    async def claim(self, thread_id: str, user: str, agent: str) -> ThreadRow:
        """The thread's row; it is this user's and this agent's when it is new. The first claim counts."""
        now = time.time()
        await self._open.execute(
            "INSERT OR IGNORE INTO threads VALUES (?, ?, ?, ?, ?)", (thread_id, user, agent, now, now)
        )
        row = await self.thread(thread_id)
        assert row is not None
        return row

    async def touch(self, thread_id: str) -> None:
        """A run on the thread has ended."""
        await self._open.execute("UPDATE threads SET updated_at = ? WHERE thread_id = ?", (time.time(), thread_id))

    async def hold(self, run_id: str, data: bytes) -> None:
        """Keep a paused run."""
        await self._open.execute("INSERT OR REPLACE INTO paused VALUES (?, ?)", (run_id, data))

    async def release(self, run_id: str) -> None:
        """The run is paused no more."""
        await self._open.execute("DELETE FROM paused WHERE run_id = ?", (run_id,))

    async def held(self) -> list[bytes]:
        """The paused runs."""
        return [data for (data,) in await self._select("SELECT data FROM paused")]

    async def _select(self, query: str, *parameters: Any) -> Sequence[Any]:
        # In one go: a reader that stands open would refuse the writes of this connection once the saver's has written.
        return list(await self._open.execute_fetchall(query, parameters))

    @property
    def _open(self) -> aiosqlite.Connection:
        assert self._db is not None, "the ledger is not open"
        return self._db

    async def _mark_lost(self, now: float) -> None:
        # In SQL, so that a million old rows are not read: their JSON is changed where it lies.
        await self._open.execute(
            "UPDATE runs SET finished_at = ?1, row = json_set(row, '$.status', 'failed', '$.reason', 'server_lost', "
            "'$.finished_at', ?1, '$.last_event_id', NULL) WHERE finished_at IS NULL AND run_id NOT IN "
            "(SELECT run_id FROM paused)",
            (now,),
        )
        await self._open.execute("DELETE FROM runs WHERE finished_at < ?", (now - ROW_RETENTION_S,))

    async def _forget_usage(self, before: date) -> None:
        await self._calls.forget(self._open, before.isoformat())
        await self._ended.forget(self._open, before.isoformat())

    async def _write_behind(self) -> None:
        while not self._closing.is_set():
            await self._changed.wait()
            await self._closes_in(GATHER_S)
            if not await self._write():
                await self._closes_in(RETRY_S)
                self._changed.set()

    async def _closes_in(self, seconds: float) -> None:
        """Wait so long, or until the ledger is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _write(self) -> bool:
        """Write what is not written yet; whether all of it could be."""
        self._changed.clear()
        rows = await self._write_rows()
        return await self._write_usage() and rows

    async def _write_rows(self) -> bool:
        rows = list(self._unwritten.values())
        if not rows:
            return True
        values = [
            (row["run_id"], row["user"], row["created_at"], row["finished_at"], codec.dumps(row).decode())
            for row in rows
        ]
        try:
            await self._open.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)", values)
        except aiosqlite.Error:
            logger.exception("rows of runs cannot be written to %s", self.path)
            return False
        for row in rows:
            if self._unwritten.get(row["run_id"]) is row:
                del self._unwritten[row["run_id"]]
        return True

    async def _write_usage(self) -> bool:
        written = True
        for tally in (self._calls, self._ended):
            try:
                async with self._tallying:  # so that who reads finds each sum once: in the table, or in memory
                    await tally.write(self._open)
            except aiosqlite.Error:
                logger.exception("what users have spent cannot be written to %s", self.path)
                written = False
        return written


async def _connect(path: str) -> aiosqlite.Connection:
    # Each statement is a transaction of its own. One that failed, or whose run was cancelled before it committed, would
    # stay open, and keep everybody else out.
    connection = await aiosqlite.connect(path, isolation_level=None)
    # A commit need not reach the disk at once: a crash of the machine may cost the last rows, never the file.
    try:
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
            await connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        await connection.close()  # its thread would outlive everything
        raise
    return connection


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LedgerInUse(f"{path.with_suffix('')} is in use by another server") from None
        yield
