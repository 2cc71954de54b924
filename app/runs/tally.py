"""Sums by key that are added to in memory and written behind: what users spent, by day.

A ``Tally`` is one table. What was added since the last write is one row in memory for each key, however often it was
added to; writing is one statement, which adds all of it to the table or nothing. So a write that failed is put back
and tried again, and nothing is lost or counted twice.

Money is counted in whole billionths of a dollar: sums are exact, in whatever order they are made.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

import aiosqlite
import orjson

from app.telemetry.records import FinishedRun, ModelCall

MAX_UNWRITTEN = 10_000
"""Keys that wait for a disk which fails. Beyond them it is by user and day alone that sums are kept apart."""

MAX_NAME_CHARS = 200

OTHER = "other"
"""Agent and kind of what came when too many keys were waiting."""

MOST = 2**63 - 1
"""SQLite's integers end there, and so does whatever is counted."""

NANO = 1_000_000_000


class Key(NamedTuple):
    """Whose sums: a user's, on a UTC date as ISO has it, by agent and a kind (a model, or a status)."""

    user: str
    day: str
    agent: str
    kind: str


class CallSums(NamedTuple):
    """What model calls came to. ``unpriced`` of them have no known price, ``estimated`` no exact count of tokens."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cost_nano_usd: int = 0
    unpriced: int = 0
    estimated: int = 0
    queue_ms: int = 0


class RunSums(NamedTuple):
    """What runs came to. For ``unpriced`` of them a price is not known, and what they cost is not in the sum."""

    runs: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0
    unpriced: int = 0
    saved_tokens: int = 0
    saved_nano_usd: int = 0


Sums = TypeVar("Sums", CallSums, RunSums)


def of_call(call: ModelCall) -> tuple[Key, CallSums]:
    """One call, on the day of its end."""
    return _key(call.user, call.ended_at, call.agent, call.model), CallSums(
        calls=1,
        input_tokens=_count(call.input_tokens),
        output_tokens=_count(call.output_tokens),
        reasoning_tokens=_count(call.reasoning_tokens),
        cached_tokens=_count(call.cached_tokens),
        cost_nano_usd=_nano(call.cost_usd),
        unpriced=int(call.cost_usd is None),
        estimated=int(call.estimated),
        queue_ms=_count(call.queue_s * 1000),
    )


def of_run(run: FinishedRun) -> tuple[Key, RunSums]:
    """One run, on the day of its end."""
    return _key(run.user, run.finished_at, run.agent, run.status), RunSums(
        runs=1,
        input_tokens=_count(run.input_tokens),
        output_tokens=_count(run.output_tokens),
        cost_nano_usd=_nano(run.cost_usd),
        unpriced=int(run.cost_usd is None),
        saved_tokens=_count(run.saved_tokens),
        saved_nano_usd=_nano(run.saved_usd),
    )


class Tally(Generic[Sums]):
    """The table ``name``, with a column for each of the sums, whose ``zero`` says what they are.

    Adding is always free; whoever writes and whoever reads must take turns.
    """

    def __init__(self, name: str, *, kind: str, zero: Sums) -> None:
        keys: Sequence[str] = ("user", "day", "agent", kind)
        columns = [*(f"{key} TEXT NOT NULL" for key in keys), *(f"{one} INTEGER NOT NULL" for one in zero._fields)]
        values = [f"json_extract(value, '$[{place}]')" for place in range(len(columns))]
        # Past the end of its integers SQLite goes on with floats.
        added = [f"{one} = min({one} + excluded.{one}, {MOST})" for one in zero._fields]
        self.schema = (
            f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(columns)}, PRIMARY KEY ({', '.join(keys)})) WITHOUT ROWID;"
            f"CREATE INDEX IF NOT EXISTS {name}_of_day ON {name} (day);"
        )
        self._upsert = (
            f"INSERT INTO {name} SELECT {', '.join(values)} FROM json_each(?) WHERE true "  # noqa: S608 - our names
            f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {', '.join(added)}"
        )
        self._select = f"SELECT {', '.join((*keys, *zero._fields))} FROM {name} WHERE "  # noqa: S608
        self._delete = f"DELETE FROM {name} WHERE day < ?"  # noqa: S608
        self._zero: Sums = zero
        self._unwritten: dict[Key, Sums] = {}

    def add(self, key: Key, sums: Sums) -> None:
        """Add to the key's sums."""
        if key not in self._unwritten and len(self._unwritten) >= MAX_UNWRITTEN:
            key = key._replace(agent=OTHER, kind=OTHER)
        before = self._unwritten.get(key, self._zero)
        self._unwritten[key] = type(sums)(*map(_added, before, sums))

    async def write(self, db: aiosqlite.Connection) -> None:
        """Add everything to the table. Raises ``aiosqlite.Error``, and then it is all still here.

        A task that is cancelled meanwhile has handed the statement over: that counts as written.
        """
        if not self._unwritten:
            return
        written, self._unwritten = self._unwritten, {}
        try:
            await db.execute(self._upsert, (orjson.dumps([key + sums for key, sums in written.items()]).decode(),))
        except Exception:
            newer, self._unwritten = self._unwritten, written
            for key, sums in newer.items():
                self.add(key, sums)
            raise

    async def forget(self, db: aiosqlite.Connection, before: str) -> None:
        """Delete the days before this one."""
        await db.execute(self._delete, (before,))

    async def of_user(self, db: aiosqlite.Connection | None, user: str, since: str) -> Sequence[tuple[Key, Sums]]:
        """The user's, from that day on. A key may be there twice: written, and not written yet."""
        written = await self._rows(db, "user = ? AND day >= ?", _name(user), since)
        return written + [one for one in self._unwritten.items() if one[0].user == _name(user) and one[0].day >= since]

    async def of_day(self, db: aiosqlite.Connection | None, day: str) -> Sequence[tuple[Key, Sums]]:
        """Everybody's, of that day. A key may be there twice: written, and not written yet."""
        written = await self._rows(db, "day = ?", day)
        return written + [one for one in self._unwritten.items() if one[0].day == day]

    async def _rows(self, db: aiosqlite.Connection | None, where: str, *parameters: str) -> list[tuple[Key, Sums]]:
        found = [] if db is None else await db.execute_fetchall(self._select + where, parameters)
        size = len(Key._fields)
        return [(Key._make(row[:size]), type(self._zero)(*row[size:])) for row in found]


def _key(user: str, ended_at: float, agent: str, kind: str) -> Key:
    return Key(_name(user), datetime.fromtimestamp(ended_at, UTC).date().isoformat(), _cut(agent), _cut(kind))


def _name(name: str) -> str:
    """What every database takes: a name that it refused would keep all others from being written."""
    return name.replace("\0", "").encode("utf-8", "replace").decode()


def _cut(name: str) -> str:
    return _name(name[:MAX_NAME_CHARS])


def _count(number: float) -> int:
    return 0 if math.isnan(number) else round(min(max(number, 0), MOST))


def _nano(dollars: float | None) -> int:
    return 0 if dollars is None else _count(dollars * NANO)


def _added(one: int, other: int) -> int:
    return min(one + other, MOST)
