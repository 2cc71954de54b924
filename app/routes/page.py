"""The page at ``/``: files as they lie in ``app/web``, without a build step.

They hold nothing of any user's, so they need no key; what the page then asks for does. The policy lets the page run its
own scripts and speak to its own server alone: what a model writes into an answer can neither run nor load anything.
"""

from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.errors import NotFound

WEB = Path(__file__).resolve().parent.parent / "web"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for anew each time, and mostly answered by 304
}

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


def page_routes() -> APIRouter:
    """``GET /`` and ``/web/…``. The files are read once, here."""
    router = APIRouter(include_in_schema=False)
    files = {path.relative_to(WEB).as_posix(): _File(path) for path in sorted(WEB.rglob("*")) if path.suffix in TYPES}

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return files["index.html"].answer(request)

    @router.api_route("/web/{path:path}", methods=["GET", "HEAD"])
    async def file(path: str, request: Request) -> Response:
        if path not in files:
            raise NotFound(f"the page has no file {path!r}")
        return files[path].answer(request)

    return router


class _File:
    """One file, and the answers it is given by."""

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes()
        self._type = TYPES[path.suffix]
        self._tag = f'"{sha256(self._body).hexdigest()[:32]}"'

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the browser has it."""
        headers = {**HEADERS, "ETag": self._tag}
        if self._tag in (one.strip() for one in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self._body, headers=headers, media_type=self._type)
