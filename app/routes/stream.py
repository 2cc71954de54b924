"""A run's log as frames: the joint between a subscriber, an encoder and a transport."""

from collections.abc import Callable, Sequence

from app.eventlog.subscriber import EndOfLog, LogAbandoned, Subscriber
from app.events.event import Event
from app.protocols.frame import Frame
from app.runs.past import PastRun
from app.runs.run import Run
from app.runs.runner import Runner
from app.transports.sse import BrokenFrames, EndOfFrames, EventStream, Render, Stream
from app.transports.wheel import Wheel

Encode = Callable[[int, Event, bytes], Sequence[Frame]]


class LogFrames:
    """See ``transports.sse.FrameSource``."""

    __slots__ = ("_encode", "_subscriber", "_woken")

    def __init__(self, subscriber: Subscriber, encode: Encode) -> None:
        self._subscriber = subscriber
        self._encode = encode
        self._woken: Callable[[], object] | None = None

    def watch(self, woken: Callable[[], object]) -> None:
        """Have ``woken`` called when the log has something new."""
        self._woken = woken
        self._subscriber.watch(woken)

    def take(self, render: Render) -> bytes:
        """What the subscriber takes, encoded and rendered: once for all readers who are at the same place."""
        try:
            entries = self._subscriber.take()
        except EndOfLog:
            raise EndOfFrames from None
        except LogAbandoned:
            raise BrokenFrames from None
        if not entries:
            return b""
        encode = self._encode
        return self._subscriber.share(
            entries,
            (encode, render),
            lambda taken: render([frame for one in taken for frame in encode(one.offset, one.event, one.data)]),
        )

    async def aclose(self) -> None:
        """Stop watching."""
        if self._woken is not None:
            self._subscriber.unwatch(self._woken)
            self._woken = None


def run_headers(run_id: str) -> dict[str, str]:
    """What tells a client which run it reads."""
    return {"X-Run-Id": run_id, "Content-Location": f"/runs/{run_id}"}


def stream_run(
    runner: Runner, run: Run | PastRun, after: int, encode: Encode, *, heartbeats: Wheel[Stream], min_grace_s: float = 0
) -> EventStream:
    """The run's events over ``after`` as a response that is a reader of the run until it is closed.

    Raises ``TooManyReaders``, ``RunExpired``, and ``BadRequest`` for an offset that lies in the future.
    """
    source = LogFrames(run.subscribe(after), encode)
    assert isinstance(run, Run)  # the past has raised
    attachment = runner.attach(run, min_grace_s)
    return EventStream(source, heartbeats=heartbeats, headers=run_headers(run.run_id), on_close=attachment.close)
