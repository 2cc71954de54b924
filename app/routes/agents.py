"""What is served, and starting a run of it."""

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import InvalidInput
from app.events.request import RunRequest
from app.protocols import native
from app.routes.stream import run_headers, stream_run
from app.runs.runner import Runner
from app.transports.sse import beating, wants_stream

MAX_KEY_CHARS = 255

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": msgspec.json.schema_components([RunRequest])[1]["RunRequest"]}},
    }
}


def agent_routes(runner: Runner, *, heartbeat_s: float) -> APIRouter:
    """``GET /agents`` and ``POST /agents/{agent}/runs``."""
    router = APIRouter(tags=["agents"])
    heartbeats = beating(heartbeat_s)

    @router.get("/agents")
    async def agents() -> JSONResponse:
        """Every served agent: name, description, schemas, capabilities."""
        return JSONResponse({"agents": [agent.describe() for agent in runner.agents.values()]})

    @router.post("/agents/{agent}/runs", openapi_extra=_BODY)
    async def start(agent: str, request: Request) -> Response:
        """Start a run.

        With `Accept: text/event-stream` the answer is the run's stream; otherwise it is 202 with the run's id, and
        the run goes on in the background. With an `Idempotency-Key`, a repeated start attaches to the first run.
        """
        served = runner.agent(agent)
        streams = wants_stream(request)
        run = await runner.start(
            served,
            native.parse(await request.body()),
            user=request.state.user,
            streams=streams,
            idempotency_key=_key(request),
        )
        if streams:
            return stream_run(runner, run, 0, native.encode, heartbeats=heartbeats)
        return JSONResponse(run.row(), 202, headers=run_headers(run.run_id))

    return router


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_KEY_CHARS:
        raise InvalidInput(f"Idempotency-Key must have 1 to {MAX_KEY_CHARS} characters")
    return key
