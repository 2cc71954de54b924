"""Probes for whatever starts and watches the server."""

from collections.abc import Callable

from fastapi import APIRouter
from starlette.responses import JSONResponse


def health_routes(ready: Callable[[], bool]) -> APIRouter:
    """``/health/live`` says that the process answers, ``/health/ready`` that it takes runs."""
    router = APIRouter(tags=["health"])

    @router.get("/health/live")
    async def live() -> JSONResponse:
        """The process answers."""
        return JSONResponse({"status": "live"})

    @router.get("/health/ready")
    async def is_ready() -> JSONResponse:
        """New runs are taken."""
        return JSONResponse({"status": "ready"}) if ready() else JSONResponse({"status": "draining"}, 503)

    return router
