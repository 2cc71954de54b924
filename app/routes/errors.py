"""The error object of every response: ``{"error": {"code", "message", "retry_after_ms"?, "detail"?}}``. No trace."""

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from app.errors import BadRequest, InvalidInput, MillraceError

logger = logging.getLogger("millrace.http")

_CODES = {404: "not_found", 405: "method_not_allowed", 406: "not_acceptable", 413: "body_too_large"}


def response(error: MillraceError) -> JSONResponse:
    """The error as a response. A body that was refused half way leaves a connection nobody can go on with."""
    headers = {"Connection": "close"} if error.status in (408, 413) or error.reason == "body_timeout" else {}
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error in the contract's form."""
    app.add_exception_handler(MillraceError, _known)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _unknown)


def from_validation(errors: Any) -> MillraceError:
    """Pydantic's list of errors (LangServe puts a bare string into it for a body that is no JSON)."""
    if not all(isinstance(one, dict) for one in errors):
        return BadRequest("the body is not JSON", code="invalid_json")
    detail = [{"field": ".".join(map(str, one.get("loc", ()))), "message": str(one.get("msg", ""))} for one in errors]
    first = detail[0] if detail else {"field": "", "message": "the request is not valid"}
    return InvalidInput(f"{first['field'] or 'the body'}: {first['message']}", detail=detail[:20])


async def _known(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MillraceError)
    return response(error)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "error")
    return JSONResponse(
        {"error": {"code": code, "message": str(error.detail)}}, error.status_code, headers=error.headers
    )


async def _validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return response(from_validation(error.errors()))


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return response(MillraceError("The server failed on this request; its log has the details."))
