"""Every refusal of the HTTP API in one shape: ``{"error": code, "message": text}``."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.api.answers import ErrorAnswer
from server.errors import UNAVAILABLE, ApiError, CorruptDataError, DatabaseError, RunDeletedError
from server.log_actions import LogAction

logger = logging.getLogger(__name__)

_CODES = {404: "not_found", 405: "method_not_allowed", 406: "not_acceptable", 413: "too_large"}

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "A parameter is wrong."},
    401: {"model": ErrorAnswer, "description": "No valid token."},
    403: {"model": ErrorAnswer, "description": "The token does not allow this."},
    404: {"model": ErrorAnswer, "description": "There is no such thing."},
    410: {"model": ErrorAnswer, "description": "The run was deleted."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    429: {"model": ErrorAnswer, "description": "Too often; Retry-After says when again."},
    503: {"model": ErrorAnswer, "description": "The database does not answer; try again."},
}
"""For the OpenAPI document of every call."""


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DatabaseError, _unavailable)
    app.add_exception_handler(CorruptDataError, _corrupt)
    app.add_exception_handler(RunDeletedError, _deleted)
    app.add_exception_handler(Exception, _failed)


def _answer(status: int, code: str, message: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": code, "message": message}, status_code=status, headers=headers)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    answer = _answer(error.status, error.code, error.message)
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return _answer(400, "invalid_parameter", f"{where}: {first['msg']}")


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "refused")
    answer = _answer(error.status_code, code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    logger.warning("%s", error, extra={"action": LogAction.API_STORAGE_UNAVAILABLE})
    return _answer(503, "storage_unavailable", UNAVAILABLE)


async def _corrupt(_: Request, error: Exception) -> JSONResponse:
    logger.error("%s", error, extra={"action": LogAction.DATA_CORRUPT})
    return _answer(500, "data_corrupt", f"{error}; `spikewatch doctor` says what is damaged and repairs what it can")


async def _deleted(_: Request, error: Exception) -> JSONResponse:
    return _answer(410, "run_deleted", str(error))


async def _failed(_: Request, error: Exception) -> JSONResponse:
    logger.error("a request failed", exc_info=error, extra={"action": LogAction.REQUEST_FAILED})
    return _answer(500, "internal", "the server failed on this request; its log says more")
