"""Trading a key for a cookie, so that what can set no header works with keys: a page, an EventSource, the playground.

The cookie is one that scripts cannot read and that other sites' pages cannot have sent. The server keeps nothing of it.
"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import Unauthorized
from app.routes.access import COOKIE, sent_key
from app.routes.keys import SEND_A_KEY, Keys


def session_routes(keys: Keys | None) -> APIRouter:
    """``POST`` and ``DELETE /session``."""
    router = APIRouter(tags=["session"])

    @router.post("/session")
    async def open_session(request: Request) -> JSONResponse:
        """Trade the key in the headers for a cookie that stands for it.

        It lasts 30 days, and no longer than the key. On a server without keys there is nothing to trade.
        """
        if keys is None:
            return JSONResponse({"user": request.state.user, "expires_in_s": None})
        secret = sent_key(request.headers)
        if secret is None:
            raise Unauthorized(f"a session is opened with a key; {SEND_A_KEY}")
        token, lasts_s = keys.session(secret)
        response = JSONResponse({"user": request.state.user, "expires_in_s": lasts_s})
        response.set_cookie(
            COOKIE, token, max_age=lasts_s, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return response

    @router.delete("/session", status_code=204)
    async def close_session(request: Request) -> Response:
        """Have the browser forget its cookie."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return response

    return router
