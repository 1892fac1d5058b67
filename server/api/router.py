"""Routes whose handlers return answers: encoded by msgspec, and documented by their return annotation.

FastAPI still reads the parameters and the body of a request; it never serialises an answer.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server.api.encoding import JSON, Rendered, json_response

REFERENCE = "#/components/schemas/{name}"


class AnswerRouter(APIRouter):
    """A router for handlers that return a value of `client_sdk.answers`, a list of them, a `Rendered` answer, or a
    response of their own."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a route. The answer has the status code of the decorator, or 200."""
        status = options.get("status_code") or 200
        answer = answer_type(endpoint)
        if answer is not None:
            options["responses"] = _documented(answer, status, options.get("responses"))
            endpoint = _encoding(endpoint, status)
        super().add_api_route(path, endpoint, **{**options, "response_model": None})


def answer_type(endpoint: Callable[..., Any]) -> Any:
    """Return the type of a handler's answer, None where the handler returns a plain response."""
    returned = get_type_hints(endpoint)["return"]
    if get_origin(returned) is Rendered:
        return get_args(returned)[0]
    return None if isinstance(returned, type) and issubclass(returned, Response) else returned


def schema_of(answer: Any) -> dict[str, Any]:
    """Return the JSON schema of an answer as a reference into the components of the OpenAPI document."""
    (schema,), _ = msgspec.json.schema_components([answer], ref_template=REFERENCE)
    return schema


def _documented(
    answer: Any, status: int, responses: dict[int | str, dict[str, Any]] | None
) -> dict[int | str, dict[str, Any]]:
    known = dict(responses or {})
    success = dict(known.get(status, {}))
    success["content"] = {JSON: {"schema": schema_of(answer)}, **success.get("content", {})}
    return {**known, status: {"description": "Successful Response", **success}}


def _encoding(endpoint: Callable[..., Awaitable[Any]], status: int) -> Callable[..., Awaitable[Response]]:
    @functools.wraps(endpoint)
    async def encoded(**values: Any) -> Response:
        answer = await endpoint(**values)
        return answer if isinstance(answer, Response) else json_response(answer, status)

    return encoded
