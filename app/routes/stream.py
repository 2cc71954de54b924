"""A run's log as frames: the joint between a subscriber, an encoder and a transport."""

from collections.abc import Callable, Sequence

from app.eventlog.subscriber import EndOfLog, LogAbandoned, Subscriber
from app.events.event import Event
from app.protocols.frame import Frame
from app.runs.past import PastRun
from app.runs.run import Run
from app.runs.runner import Runner
from app.transports.sse import BrokenFrames, EndOfFrames, EventStream

Encode = Callable[[int, Event, bytes], Sequence[Frame]]


class LogFrames:
    """See ``transports.sse.FrameSource``."""

    def __init__(self, subscriber: Subscriber, encode: Encode) -> None:
        self._subscriber = subscriber
        self._encode = encode

    async def read(self) -> Sequence[Frame]:
        """What the subscriber reads next, encoded."""
        try:
            entries = await self._subscriber.read()
        except EndOfLog:
            raise EndOfFrames from None
        except LogAbandoned:
            raise BrokenFrames from None
        return [frame for entry in entries for frame in self._encode(*entry)]


def run_headers(run_id: str) -> dict[str, str]:
    """What tells a client which run it reads."""
    return {"X-Run-Id": run_id, "Content-Location": f"/runs/{run_id}"}


def stream_run(
    runner: Runner, run: Run | PastRun, after: int, encode: Encode, *, heartbeat_s: float, min_grace_s: float = 0
) -> EventStream:
    """The run's events over ``after`` as a response that is a reader of the run until it is closed.

    Raises ``TooManyReaders``, ``RunExpired``, and ``BadRequest`` for an offset that lies in the future.
    """
    source = LogFrames(run.subscribe(after), encode)
    assert isinstance(run, Run)  # the past has raised
    attachment = runner.attach(run, min_grace_s)
    return EventStream(source, heartbeat_s=heartbeat_s, headers=run_headers(run.run_id), on_close=attachment.close)
