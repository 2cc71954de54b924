"""What the caller has spent, by day."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse

from app.runs.runner import Runner

MAX_DAYS = 400
"""As far back as the ledger remembers."""


def usage_routes(runner: Runner) -> APIRouter:
    """``GET /usage``."""
    router = APIRouter(tags=["usage"])

    @router.get("/usage")
    async def usage(request: Request, days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = 30) -> JSONResponse:
        """The caller's tokens and cost of so many days (UTC), today's included: by day, model and agent.

        Cancelled runs are told apart, with an estimate of what cancelling saved.
        """
        return JSONResponse(await runner.usage(request.state.user, days))

    return router
