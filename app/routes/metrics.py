"""What Prometheus scrapes."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.telemetry.metrics import Metrics


def metrics_routes(metrics: Metrics) -> APIRouter:
    """``/metrics``, in OpenMetrics where the client accepts it, else in Prometheus's text format."""
    router = APIRouter(tags=["health"])

    @router.get("/metrics", response_class=Response)
    async def scrape(request: Request) -> Response:
        """Every metric of this process."""
        body, content_type = metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return router
