"""Refusals of the HTTP API in one shape, `client_sdk.answers.Error`: a code, a message, and the field at fault."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from msgspec import UNSET
from starlette.exceptions import HTTPException
from starlette.responses import Response

from client_sdk import answers
from server.api.encoding import JSON, json_response
from server.api.router import schema_of
from server.errors import UNAVAILABLE, ApiError, CorruptDataError, DatabaseError, RunDeletedError
from server.log_actions import LogAction

logger = logging.getLogger(__name__)

_CODES = {404: "not_found", 405: "method_not_allowed", 406: "not_acceptable", 413: "too_large"}
_DESCRIPTIONS = {
    400: "A parameter or a field of the body is invalid; `field` names it.",
    401: "The request has no valid token.",
    403: "The token does not allow the request.",
    404: "The object does not exist.",
    410: "The run was deleted.",
    413: "The body is too large.",
    429: "There were too many requests; Retry-After says when to try again.",
    503: "The database does not answer; try again.",
}

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": {JSON: {"schema": schema_of(answers.Error)}}}
    for status, description in _DESCRIPTIONS.items()
}
"""Refusals of every call, for the OpenAPI document."""


def install(app: FastAPI) -> None:
    """Add the handlers that turn exceptions into error answers."""
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DatabaseError, _unavailable)
    app.add_exception_handler(CorruptDataError, _corrupt)
    app.add_exception_handler(RunDeletedError, _deleted)
    app.add_exception_handler(Exception, _failed)


def _answer(status: int, code: str, message: str, field: str | None = None) -> Response:
    answer = json_response(answers.Error(error=code, message=message, field=UNSET if field is None else field), status)
    if status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    answer = _answer(error.status, error.code, error.message, error.field)
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"][1:])
    where = path or str(first["loc"][0])
    is_field = path and first["type"] != "json_invalid"  # there the path is a position in the text
    return _answer(400, "invalid_parameter", f"{where}: {first['msg']}", path if is_field else None)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "refused")
    answer = _answer(error.status_code, code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _unavailable(_: Request, error: Exception) -> Response:
    logger.warning("%s", error, extra={"action": LogAction.API_STORAGE_UNAVAILABLE})
    return _answer(503, "storage_unavailable", UNAVAILABLE)


async def _corrupt(_: Request, error: Exception) -> Response:
    logger.error("%s", error, extra={"action": LogAction.DATA_CORRUPT})
    return _answer(
        500, "data_corrupt", f"{error}; `spikewatch doctor` lists the damage and repairs what can be repaired"
    )


async def _deleted(_: Request, error: Exception) -> Response:
    return _answer(410, "run_deleted", str(error))


async def _failed(_: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error, extra={"action": LogAction.REQUEST_FAILED})
    return _answer(500, "internal", "the server failed on this request; its log has the details")
