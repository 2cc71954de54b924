"""What is kept of a paused run, so that it can go on in another process: its request, its log, its half-said answers.

The graph's own state is a checkpoint (``copy_checkpoint``): the thread's, or for a run without a thread one under the
run's id, kept as long as the pause.
"""

import time

import msgspec
from langgraph.checkpoint.base import BaseCheckpointSaver

from app.eventlog.memory import MemoryLog
from app.events.event import Totals
from app.events.request import OnDisconnect, RunRequest
from app.runs.message import Held
from app.runs.run import Run, Stopwatch


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """A paused run. Times in seconds are since the epoch, but for ``left_s``, what remains of the run's time."""

    run_id: str
    agent: str
    user: str
    key: str | None
    request: RunRequest
    on_disconnect: OnDisconnect
    log: bytes
    held: list[Held]
    reason: str
    usage: Totals
    left_s: float | None
    spent_ms: int
    ttft_ms: int | None
    created_at: float
    started_at: float | None
    paused_at: float
    max_tokens: int | None = None

    def paused_s(self) -> float:
        """How long it has been standing still."""
        return max(time.time() - self.paused_at, 0)


def freeze(run: Run, paused_at: float) -> bytes:
    """A run that has been stopped. It is kept before anybody is told that it is paused: who was told can rely on it."""
    return msgspec.msgpack.encode(
        Paused(
            run_id=run.run_id,
            agent=run.agent.name,
            user=run.user,
            key=run.idempotency_key,
            request=run.request,
            on_disconnect=run.scope.on_disconnect,
            log=run.dump(),
            held=run.held or [],
            reason=run.scope.pausing or "requested",
            usage=run.meter.totals,
            left_s=run.scope.left_s,
            spent_ms=run.active.stop(),
            ttft_ms=run.ttft_ms,
            created_at=run.created_at,
            started_at=run.started_at,
            paused_at=paused_at,
            max_tokens=run.max_tokens,
        )
    )


def thaw(data: bytes) -> Paused:
    """What ``freeze`` made. Raises ``msgspec.DecodeError`` for what it did not."""
    return msgspec.msgpack.decode(data, type=Paused)


def restore(run: Run, paused: Paused, max_bytes: int) -> None:
    """Make a new run the one that was paused. Raises ``ValueError`` for a log that is none."""
    run.restore(MemoryLog.load(paused.log, max_bytes), paused.held)
    run.active = Stopwatch(paused.spent_ms)
    run.meter.totals = paused.usage
    run.scope.left_s = paused.left_s
    run.scope.pausing = paused.reason
    run.created_at, run.started_at, run.ttft_ms = paused.created_at, paused.started_at, paused.ttft_ms
    run.pause(int(paused.paused_at * 1000))  # the event that the log was kept without, at its offset


async def copy_checkpoint(source: BaseCheckpointSaver[str], target: BaseCheckpointSaver[str], thread_id: str) -> None:
    """Copy all that ``source`` has of a thread: its newest checkpoint of each namespace, and the writes after it."""
    config = {"configurable": {"thread_id": thread_id}}
    async for found in source.alist(config):  # type: ignore[arg-type]
        configurable = found.config["configurable"]
        place = {"thread_id": thread_id, "checkpoint_ns": configurable.get("checkpoint_ns", "")}
        versions = found.checkpoint["channel_versions"]
        put = await target.aput({"configurable": place}, found.checkpoint, found.metadata, versions)
        by_task: dict[str, list[tuple[str, object]]] = {}
        for task_id, channel, value in found.pending_writes or ():
            by_task.setdefault(task_id, []).append((channel, value))
        for task_id, writes in by_task.items():
            await target.aput_writes(put, writes, task_id)
