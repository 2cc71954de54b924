"""``/ws``: many runs over one socket. Its words are ``protocols.websocket``, its wire ``transports.websocket``.

Every stream of a socket is a reader of its run, as an SSE response is: it is there from the start or ``attach`` until
its last frame, a ``detach`` or the socket's end, and whatever ends it, it leaves the run once. A stream that has ended
has told so in its last frame: ``run.finished``, or one with ``"final": true``. From then on its id is free.

No command waits for another stream's, nor the reading of the socket for any command: a run that takes its time to
start must not keep the client's leaving from being heard.

A stream that is open has no task: its run's log tells it that there is something to read, the socket when to read it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send

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

PATH = "/ws"

MAX_STREAMS = 64
"""Streams of one socket at once; a start or attach beyond them is refused."""

MAX_COMMANDS = 64
"""Commands of one socket that are being carried out at once; those beyond them are refused."""

RESTART = "the server is restarting; connect again in a moment"


class WebSockets:
    """ASGI middleware, the one that serves ``/ws``. A frame may have ``max_frame_bytes``. Inside ``Access``.

    In front of the router, as what Starlette and FastAPI keep for each request costs 5 KiB a socket and serves none.
    """

    def __init__(self, app: ASGIApp, *, runner: Runner, max_frame_bytes: int = 1024 * 1024) -> None:
        self._app = app
        self._runner = runner
        self._max_frame_bytes = max_frame_bytes
        self._open: set[Session] = set()
        self._drain: asyncio.Task[None] | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve the socket, or pass the request on."""
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "websocket" else None
        return self._serve(scope, receive, send) if path == PATH else self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._runner.draining.is_set():
            await refuse(scope, receive, send, CloseCode.RESTART, RESTART)
            return
        with suppress(ClientGone):
            await accept(scope, receive, send)
            session = Session(receive, send, self._runner, scope["state"]["user"], self._max_frame_bytes)
            self._enter(session)
            if self._runner.draining.is_set():  # since it was accepted
                session.drain()
            try:
                await session.serve()
            finally:
                self._leave(session)

    def _enter(self, session: "Session") -> None:
        self._open.add(session)
        if self._drain is None:
            self._drain = asyncio.create_task(self._watch(), name="drain of sockets")

    def _leave(self, session: "Session") -> None:
        self._open.remove(session)
        if not self._open and self._drain is not None:
            self._drain.cancel()
            self._drain = None

    async def _watch(self) -> None:
        await self._runner.draining.wait()
        for session in self._open:
            session.drain()


class Stream:
    """One stream of a socket, and its ``FrameSource``. ``opening`` is the task that starts or finds its run.

    While it is open it stands in ``streams``, the socket's own by their ids.
    """

    __slots__ = ("_attachment", "_last", "_left", "_socket", "_streams", "_subscriber", "id", "opening", "run", "turn")

    def __init__(self, stream_id: str, socket: Socket, streams: "dict[str, Stream]") -> None:
        self.id = stream_id
        self.run: Run | None = None
        self.opening: asyncio.Task[None] | None = None
        self.turn: asyncio.Lock | None = None
        self._socket = socket
        self._streams = streams
        self._subscriber: Subscriber | None = None
        self._attachment: Attachment | None = None
        self._last: bytes | None = None
        self._left = False

    def follow(self, run: Run, subscriber: Subscriber, attachment: Attachment) -> None:
        """Tell this run, unless the stream has been left meanwhile."""
        self.run, self._subscriber, self._attachment = run, subscriber, attachment
        if self._left:
            self.detach()
        else:
            subscriber.watch(self._call)
            self._call()

    def detach(self) -> None:
        """Leave the run, and say so. Of one that is being opened: as soon as it is open."""
        self._left = True
        if self._subscriber is not None:
            self.close(words.end(self.id, "detached"))

    def close(self, last: bytes | None = None) -> None:
        """Leave the run, with this for the last word. Twice is once."""
        self._left = True
        if self._attachment is not None and self._subscriber is not None:
            self._subscriber.unwatch(self._call)
            self._attachment.close()
            self._attachment = None
        if last is not None and self._last is None:
            self._last = last
            self._call()

    def take(self) -> Iterator[bytes]:
        """What there is to tell now; see ``FrameSource``. Raises ``HangUp`` when this process lets go of the run."""
        try:
            if self._subscriber is not None and not self._left:
                yield from self._frames(self._subscriber)
        except HangUp:
            raise
        except Exception as error:  # noqa: BLE001 - the other streams go on
            self.close(words.error(self.id, _told(error), final=True))
        if self._last is not None and self._streams.get(self.id) is self:
            del self._streams[self.id]  # before it is sent: with that in hand, the client may use the id again
            yield self._last

    def _frames(self, subscriber: Subscriber) -> Iterator[bytes]:
        try:
            entries = subscriber.take()
        except LogAbandoned:
            raise HangUp(CloseCode.RESTART, RESTART) from None
        for entry in entries:
            if self._left:
                return
            frame = words.encode(self.id, entry.offset, entry.event, entry.data)
            if isinstance(entry.event, RunFinished):
                self.close(frame)
            else:
                yield frame

    def _call(self) -> None:
        self._socket.call(self)


class Session:
    """One socket and its streams."""

    __slots__ = ("_commands", "_draining", "_max_frame_bytes", "_runner", "_socket", "_streams", "_user")

    def __init__(self, receive: Receive, send: Send, runner: Runner, user: str, max_frame_bytes: int) -> None:
        self._socket = Socket(receive, send, quiet=self._rest)
        self._runner = runner
        self._user = user
        self._max_frame_bytes = max_frame_bytes
        self._streams: dict[str, Stream] = {}
        self._commands: list[asyncio.Task[None]] = []
        self._draining = False

    async def serve(self) -> None:
        """Until the client leaves, or the server has a reason to close."""
        close: tuple[CloseCode, str] | None = None
        try:
            with self._socket:
                while True:
                    await self._take(await self._socket.receive())
        except ClientGone:
            pass
        except HangUp as hang_up:
            close = hang_up.code, hang_up.reason
        finally:
            await self._leave()
        if close is not None:
            await self._socket.close(*close)

    def drain(self) -> None:
        """Close the socket as soon as its last stream has ended; until then nothing changes."""
        self._draining = True
        self._rest()

    def _rest(self) -> None:
        if self._draining and not self._streams and not self._socket.writing:
            self._socket.end(HangUp(CloseCode.RESTART, RESTART))

    async def _leave(self) -> None:
        """Leave every run. One that is being started is left when it has been: else nobody would ever end it."""
        for stream in self._streams.values():
            stream.close()
        for command in self._commands:
            command.cancel()
        await self._socket.stop()
        openings = [stream.opening for stream in self._streams.values() if stream.opening is not None]
        self._streams.clear()
        if under_way := [*self._commands, *openings]:
            await asyncio.wait(under_way)

    async def _take(self, message: str | bytes) -> None:
        """One message of the client's. Waits for nothing but room for an answer."""
        try:
            match words.parse(message, self._max_frame_bytes):
                case Ping(stream_id=stream_id):
                    await self._socket.answer(words.pong(stream_id))
                case Start() | Attach() as opening:
                    stream = self._admit(opening.stream_id)
                    stream.opening = asyncio.create_task(self._open(stream, opening))
                case Detach(stream_id=stream_id):
                    self._stream(stream_id).detach()
                case command:
                    self._command(self._stream(command.stream_id), command)
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
        self._streams[stream_id] = stream = Stream(stream_id, self._socket, self._streams)
        return stream

    def _stream(self, stream_id: str) -> Stream:
        if stream_id not in self._streams:
            problem = f"no stream {stream_id!r} is open on this socket"
            raise BadFrame(NotFound(problem, code="unknown_stream"), stream_id)
        return self._streams[stream_id]

    # Opening

    async def _open(self, stream: Stream, opening: Start | Attach) -> None:
        try:
            if isinstance(opening, Start):
                await self._start(stream, opening)
            else:
                await self._attach(stream, opening)
        except Exception as error:  # noqa: BLE001 - the other streams go on
            stream.close(words.error(stream.id, _told(error), final=True))
        finally:
            stream.opening = None

    async def _start(self, stream: Stream, opening: Start) -> None:
        agent = self._runner.agent(opening.agent)
        run = await self._runner.start(agent, opening.request(), user=self._user, streams=True)
        self._follow(stream, run, 0)

    async def _attach(self, stream: Stream, opening: Attach) -> None:
        after = opening.offset()
        run = await self._runner.get(opening.run_id, self._user)
        if run.finished and after == run.last_event_id:
            stream.close(words.end(stream.id, "finished"))
        else:
            self._follow(stream, run, after)

    def _follow(self, stream: Stream, run: Run | PastRun, after: int) -> None:
        """Be a reader of the run. What refuses that must not have touched the run: so the place in the log is first."""
        subscriber = run.subscribe(after)
        assert isinstance(run, Run)  # the past has raised
        stream.follow(run, subscriber, self._runner.attach(run))

    # Commands

    def _command(self, stream: Stream, command: Command) -> None:
        if len(self._commands) == MAX_COMMANDS:
            problem = f"{MAX_COMMANDS} commands are being carried out; wait for one to take effect"
            raise BadFrame(Conflict(problem, code="too_many_commands"), stream.id)
        task = asyncio.create_task(self._carry_out(stream, command))
        self._commands.append(task)
        task.add_done_callback(self._commands.remove)

    async def _carry_out(self, stream: Stream, command: Command) -> None:
        """Do what was said to a stream's run; an answer is due only when it cannot be."""
        try:
            if stream.opening is not None:
                await asyncio.wait((stream.opening,))
            if stream.run is not None:  # else the start was refused, and that has been told
                await self._tell(stream, stream.run, command)
        except Exception as error:  # noqa: BLE001 - the other streams go on
            if self._streams.get(stream.id) is stream:
                await self._socket.answer(words.error(stream.id, _told(error)))

    async def _tell(self, stream: Stream, run: Run, command: Command) -> None:
        if isinstance(command, Cancel):
            await self._runner.cancel(run)
            return
        stream.turn = stream.turn or asyncio.Lock()
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
