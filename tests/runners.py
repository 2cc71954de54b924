"""Runners for tests: the real one around one agent, without a server, and a place where its parts meet the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.runnables import Runnable

from app.eventlog.subscriber import EndOfLog, LogAbandoned
from app.events.event import Event
from app.runs.agent import Agent
from app.runs.ledger import Ledger
from app.runs.run import Run
from app.runs.runner import Runner


class Halt:
    """A place that a test waits for, and that waits for the test."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, *_: Any) -> dict[str, Any]:
        self.reached.set()
        await self.open.wait()
        return {}


@asynccontextmanager
async def runner_of(
    runnable: Runnable[Any, Any], ledger: Ledger | None = None, *, ours: bool = False, **options: Any
) -> AsyncIterator[Runner]:
    """A runner whose only agent is ``one``; its model is one of ``ours``, which can be paused, or the user's own."""
    runner = Runner({"one": Agent("one", runnable, served_model=ours, seamless=ours)}, ledger, strict=True, **options)
    await runner.open()
    try:
        yield runner
    finally:
        async with asyncio.timeout(20):
            await runner.close()
    assert runner.live == 0


async def told(run: Run) -> list[Event]:
    """All the run's events, read while they are written: to its end, or to where it was let go."""
    events: list[Event] = []
    reader = run.subscribe(0)
    async with asyncio.timeout(20):
        while True:
            try:
                events += [entry.event for entry in await reader.read()]
            except (EndOfLog, LogAbandoned):
                return events
