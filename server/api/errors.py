"""Refusals of the HTTP API in one shape, `client_sdk.answers.Error`: a code, a message, and the field at fault."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from msgspec import UNSET
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from client_sdk import answers
from server.api.encoding import accepts_html, json_response
from server.errors import UNAVAILABLE, ApiError, CorruptDataError, DatabaseError, RunDeletedError
from server.log_actions import LogAction

logger = logging.getLogger(__name__)

_NO_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Spikewatch: no such page</title></head><body>
<h1>There is no such page</h1>
<p>This server answers programs, at <a href="/api/v1/openapi.json">/api/v1</a>, and serves no dashboard.</p>
</body></html>
"""
"""Answer to a browser at an unknown address of a server without the dashboard, which has such a page of its own."""
_CODES = {404: "not_found", 405: "method_not_allowed", 406: "not_acceptable", 413: "too_large"}


def install(app: FastAPI) -> None:
    """Add the handlers that turn exceptions into error answers."""
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DatabaseError, _unavailable)
    app.add_exception_handler(CorruptDataError, _corrupt)
    app.add_exception_handler(RunDeletedError, _deleted)
    app.add_exception_handler(Exception, _failed)


def refusal_answer(status: int, code: str, message: str, field: str | None = None) -> Response:
    """Return the answer that refuses a request."""
    return json_response(answers.Error(error=code, message=message, field=UNSET if field is None else field), status)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    answer = refusal_answer(error.status, error.code, error.message, error.field)
    if error.status == 401:
        answer.headers["WWW-Authenticate"] = error.authenticate
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # A parameter that is repeated is a list to FastAPI; its name is enough to find the value at fault.
    parts = first["loc"][1:2] if first["loc"][0] == "query" else first["loc"][1:]
    path = ".".join(str(part) for part in parts)
    where = path or str(first["loc"][0])
    is_field = path and first["type"] != "json_invalid"  # there the path is a position in the text
    return refusal_answer(400, "invalid_parameter", f"{where}: {first['msg']}", path if is_field else None)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and accepts_html(request.headers.get("accept", "")):
        return HTMLResponse(_NO_PAGE, 404)
    code = _CODES.get(error.status_code, "refused")
    answer = refusal_answer(error.status_code, code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _unavailable(_: Request, error: Exception) -> Response:
    logger.warning("%s", error, extra={"action": LogAction.API_STORAGE_UNAVAILABLE})
    return refusal_answer(503, "storage_unavailable", UNAVAILABLE)


async def _corrupt(_: Request, error: Exception) -> Response:
    logger.error("%s", error, extra={"action": LogAction.DATA_CORRUPT})
    return refusal_answer(
        500, "data_corrupt", f"{error}; `spikewatch doctor` lists the damage and repairs what can be repaired"
    )


async def _deleted(_: Request, error: Exception) -> Response:
    return refusal_answer(410, "run_deleted", str(error))


async def _failed(_: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error, extra={"action": LogAction.REQUEST_FAILED})
    return refusal_answer(500, "internal", "the server failed on this request; its log has the details")
