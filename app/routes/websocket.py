"""``/ws``: many runs over one socket. Its words are ``protocols.websocket``, its wire ``transports.websocket``.

Every stream of a socket is a reader of its run, as an SSE response is: it is there from the start or ``attach`` until
its last frame, a ``detach`` or the socket's end, and whatever ends it, it leaves the run once. A stream that has ended
has told so in its last frame: ``run.finished``, or one with ``"final": true``. From then on its id is free.

No command waits for another stream's, nor the reading of the socket for any command: a run that takes its time to
start must not keep the client's leaving from being heard.
"""

import asyncio
import logging
from collections.abc import Sequence

import anyio
from anyio.abc import TaskGroup
from fastapi import APIRouter, WebSocket

from app.errors import Conflict, MillraceError, NotFound
from app.eventlog.subscriber import LogAbandoned, Subscriber
from app.events.event import RunFinished
from app.protocols import websocket as words
from app.protocols.websocket import Attach, BadFrame, Cancel, Command, Continue, Detach, Pause, Ping, Start
from app.runs.past import PastRun
from app.runs.run import Run
from app.runs.runner import Runner
from app.runs.scope import Attachment
from app.transports.websocket import ClientGone, CloseCode, HangUp, Socket, accept, refuse

logger = logging.getLogger("millrace.websocket")

MAX_STREAMS = 64
"""Streams of one socket at once; a start or attach beyond them is refused."""

MAX_COMMANDS = 64
"""Commands of one socket that are being carried out at once; those beyond them are refused."""

RESTART = "the server is restarting; connect again in a moment"


def websocket_routes(runner: Runner, *, max_frame_bytes: int = 1024 * 1024) -> APIRouter:
    """``/ws``. A frame may have ``max_frame_bytes``. Who may connect, ``access`` has judged."""
    router = APIRouter()

    @router.websocket("/ws")
    async def streams(websocket: WebSocket) -> None:
        if runner.draining.is_set():
            await refuse(websocket, CloseCode.RESTART, RESTART)
        else:
            await accept(websocket)
            await Session(Socket(websocket), runner, user=websocket.state.user, max_frame_bytes=max_frame_bytes).serve()

    return router


class Stream:
    """One stream of a socket. Its run is known once ``opened`` is set, or never will be."""

    def __init__(self, stream_id: str) -> None:
        self.id = stream_id
        self.run: Run | None = None
        self.opened = asyncio.Event()
        self.left = anyio.CancelScope()
        self.turn = asyncio.Lock()


class RunFrames:
    """A run's events as frames of one stream. See ``transports.websocket.FrameSource``."""

    def __init__(self, stream_id: str, subscriber: Subscriber) -> None:
        self.ended = False
        self.wait = subscriber.wait
        self._stream_id = stream_id
        self._subscriber = subscriber

    async def read(self) -> Sequence[bytes]:
        """What the subscriber reads next, encoded. Raises ``HangUp`` when this process lets go of the run."""
        try:
            entries = await self._subscriber.read()
        except LogAbandoned:
            raise HangUp(CloseCode.RESTART, RESTART) from None
        self.ended = isinstance(entries[-1].event, RunFinished)
        return [words.encode(self._stream_id, *entry) for entry in entries]


class Session:
    """The streams of one socket."""

    def __init__(self, socket: Socket, runner: Runner, *, user: str, max_frame_bytes: int) -> None:
        self._socket = socket
        self._runner = runner
        self._user = user
        self._max_frame_bytes = max_frame_bytes
        self._streams: dict[str, Stream] = {}
        self._commands = 0
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def serve(self) -> None:
        """Until the client leaves, or the server has a reason to close."""
        reason: HangUp | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._drain)
                group.start_soon(self._socket.write_answers)
                while True:
                    await self._take(await self._socket.receive(), group)
        except* HangUp as reasons:
            reason = _first(reasons)
        except* ClientGone:
            pass
        if reason is not None:
            await self._socket.close(reason.code, str(reason))

    async def _drain(self) -> None:
        await self._runner.draining.wait()
        await self._idle.wait()
        raise HangUp(CloseCode.RESTART, RESTART)

    async def _take(self, message: str | bytes, group: TaskGroup) -> None:
        """One message of the client's. Waits for nothing but room for an answer."""
        try:
            match words.parse(message, self._max_frame_bytes):
                case Ping(stream_id=stream_id):
                    await self._socket.answer(words.pong(stream_id))
                case Start() | Attach() as opening:
                    group.start_soon(self._serve, self._admit(opening.stream_id), opening)
                case Detach(stream_id=stream_id):
                    self._stream(stream_id).left.cancel()
                case command:
                    stream = self._stream(command.stream_id)
                    self._count_command(command.stream_id)
                    group.start_soon(self._command, stream, command)
        except BadFrame as bad:
            final = bad.opens and bad.stream_id not in self._streams
            await self._socket.answer(words.error(bad.stream_id, bad.error, final=final))

    def _admit(self, stream_id: str) -> Stream:
        if stream_id in self._streams:
            raise BadFrame(
                Conflict(f"stream {stream_id!r} is open; choose another id", code="duplicate_stream"), stream_id
            )
        if len(self._streams) == MAX_STREAMS:
            problem = f"{MAX_STREAMS} streams are open on this socket; wait for one to end, or open another socket"
            raise BadFrame(Conflict(problem, code="socket_full"), stream_id, opens=True)
        self._streams[stream_id] = stream = Stream(stream_id)
        self._busy += 1
        self._idle.clear()
        return stream

    def _stream(self, stream_id: str) -> Stream:
        if stream_id not in self._streams:
            problem = f"no stream {stream_id!r} is open on this socket"
            raise BadFrame(NotFound(problem, code="unknown_stream"), stream_id)
        return self._streams[stream_id]

    def _count_command(self, stream_id: str) -> None:
        if self._commands == MAX_COMMANDS:
            problem = f"{MAX_COMMANDS} commands are being carried out; wait for one to take effect"
            raise BadFrame(Conflict(problem, code="too_many_commands"), stream_id)
        self._commands += 1

    async def _serve(self, stream: Stream, opening: Start | Attach) -> None:
        """The life of one stream."""
        last: bytes | None = None
        try:
            last = await self._follow(stream, opening)
        except (ClientGone, HangUp):
            raise
        except Exception as error:  # noqa: BLE001 - the other streams go on
            last = words.error(stream.id, _told(error), final=True)
        # Nothing was awaited since the stream's last event: with that in hand, the client may use the id again.
        del self._streams[stream.id]
        stream.opened.set()
        if last is not None:
            await self._socket.send(last)
        self._busy -= 1
        if not self._busy:
            self._idle.set()

    async def _follow(self, stream: Stream, opening: Start | Attach) -> bytes | None:
        """Send the run's events; what there is to say after them."""
        # Shielded, as whoever starts a run must be there to leave it: else nobody would ever end it.
        with anyio.CancelScope(shield=True):
            opened = await self._open(stream, opening)
        if opened is None:
            return words.end(stream.id, "finished")
        frames, attachment = opened
        with attachment, stream.left:
            await self._socket.pump(frames)
            return None
        return words.end(stream.id, "detached")

    async def _open(self, stream: Stream, opening: Start | Attach) -> tuple[RunFrames, Attachment] | None:
        """A reader of the run, or nothing when there is nothing left to read."""
        after = 0
        if isinstance(opening, Start):
            agent = self._runner.agent(opening.agent)
            run: Run | PastRun = await self._runner.start(agent, opening.request(), user=self._user, streams=True)
        else:
            after = opening.offset()
            run = await self._runner.get(opening.run_id, self._user)
            if run.finished and after == run.last_event_id:
                return None
        if isinstance(run, PastRun):
            run.subscribe(after)  # says why not
        frames = RunFrames(stream.id, run.subscribe(after))  # first, as it may be refused: that must not touch the run
        attachment = self._runner.attach(run)
        stream.run = run
        stream.opened.set()
        return frames, attachment

    async def _command(self, stream: Stream, command: Command) -> None:
        """Carry out what was said to a stream's run; an answer is due only when it cannot be."""
        try:
            await stream.opened.wait()
            if stream.run is not None:  # else the start was refused, and that has been told
                await self._carry_out(stream, stream.run, command)
        except (ClientGone, HangUp):
            raise
        except Exception as error:  # noqa: BLE001 - the other streams go on
            if self._streams.get(stream.id) is stream:
                await self._socket.send(words.error(stream.id, _told(error)))
        finally:
            self._commands -= 1

    async def _carry_out(self, stream: Stream, run: Run, command: Command) -> None:
        if isinstance(command, Cancel):
            await self._runner.cancel(run)
            return
        async with stream.turn:  # the others in the order they were given
            if isinstance(command, Pause):
                await self._runner.pause(run)
            elif isinstance(command, Continue):
                await self._runner.resume(run)


def _told(error: Exception) -> MillraceError:
    """What the client is told of an error: of one that is not in the tree, nothing."""
    if isinstance(error, MillraceError):
        return error
    logger.error("a stream of a socket failed", exc_info=error)
    return MillraceError("The server failed on this stream; its log has the details.")


def _first(group: BaseExceptionGroup[HangUp]) -> HangUp:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
