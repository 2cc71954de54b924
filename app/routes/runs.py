"""Following, fetching, cancelling, pausing a run, and reading a thread. All of it sees the caller's own only."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.protocols import native
from app.routes.stream import stream_run
from app.runs.run import Run
from app.runs.runner import Runner
from app.transports.disconnect import wait_or_leave
from app.transports.sse import beating

EVENTSOURCE_GRACE_S = 3.0
"""A browser's EventSource that lost its connection is back within its retry time: no reason to end the run."""


def run_routes(runner: Runner, *, heartbeat_s: float) -> APIRouter:
    """``/runs`` and what is below it."""
    router = APIRouter(tags=["runs"])
    heartbeats = beating(heartbeat_s)

    @router.get("/runs")
    async def runs(request: Request) -> JSONResponse:
        """The caller's runs, newest first."""
        return JSONResponse({"runs": await runner.rows(request.state.user)})

    @router.get("/runs/{run_id}")
    async def run(run_id: str, request: Request) -> JSONResponse:
        """One run."""
        return JSONResponse((await runner.get(run_id, request.state.user)).row())

    @router.get("/runs/{run_id}/events")
    async def events(run_id: str, request: Request, after: str | None = None) -> Response:
        """Replay what came after `Last-Event-ID` (or `?after=N`), then follow.

        204: the run is finished and there is nothing more, which tells an EventSource to stop.
        """
        run = await runner.get(run_id, request.state.user)
        # The header wins: a reconnecting EventSource sends it along with the address it was opened with.
        offset = native.parse_offset(request.headers.get("last-event-id") or after)
        if run.finished and offset == run.last_event_id:
            return Response(status_code=204)
        return stream_run(runner, run, offset, native.encode, heartbeats=heartbeats, min_grace_s=EVENTSOURCE_GRACE_S)

    @router.get("/runs/{run_id}/result")
    async def result(run_id: str, request: Request, wait: bool = False) -> Response:
        """The whole answer: status, text, message, object, usage. 409 while the run goes on, unless `?wait=true`."""
        run = await runner.get(run_id, request.state.user)
        if wait and isinstance(run, Run) and not run.finished:
            with runner.attach(run):
                if not await wait_or_leave(run.done.wait(), request.receive):
                    return Response(status_code=204)
        return JSONResponse(run.result())

    @router.post("/runs/{run_id}/cancel")
    async def cancel(run_id: str, request: Request) -> JSONResponse:
        """End the run now, whoever reads it. Cancelling a run that is over changes nothing."""
        run = await runner.get(run_id, request.state.user)
        await runner.cancel(run)
        return JSONResponse(run.row(), 200 if run.finished else 202)

    @router.post("/runs/{run_id}/pause")
    async def pause(run_id: str, request: Request) -> JSONResponse:
        """Stop the answer and its cost, and keep the run: at once in mid-answer, else at the next model call (202)."""
        run = await runner.get(run_id, request.state.user)
        await runner.pause(run)
        return JSONResponse(run.row(), 200 if run.finished or run.status == "paused" else 202)

    @router.post("/runs/{run_id}/continue")
    async def resume(run_id: str, request: Request) -> JSONResponse:
        """Let a paused run go on. A run that is not paused is left as it is."""
        run = await runner.get(run_id, request.state.user)
        await runner.resume(run)
        return JSONResponse(run.row())

    @router.get("/threads/{thread_id}")
    async def thread(thread_id: str, request: Request) -> JSONResponse:
        """A conversation: its messages, what it waits for, the run that is on it."""
        return JSONResponse(await runner.thread(thread_id, request.state.user))

    return router
