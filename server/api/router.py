"""Routes whose handlers return answers: encoded by msgspec, and documented by their signature.

FastAPI still reads the parameters and the body of a request; it never serialises an answer.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, get_args, get_origin, get_type_hints

from fastapi import APIRouter
from starlette.responses import Response

from server.api.encoding import JSON, Rendered, json_response
from server.api.refusals import refusals_of, schema_of


class AnswerRouter(APIRouter):
    """A router for handlers that return a value of `client_sdk.answers`, a list of them, a `Rendered` answer, or a
    response of their own.

    The OpenAPI document lists the statuses that `refusals_of` derives for each handler, and the ``responses`` of its
    decorator.
    """

    def __init__(self, *, refuses: bool = True, **options: Any) -> None:
        """``refuses``: False for routes that neither need a token nor read the database."""
        super().__init__(**options)
        self._refuses = refuses

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a route. The answer has the status code of the decorator, or 200."""
        responses: dict[int | str, Any] = refusals_of(endpoint, path) if self._refuses else {}
        responses.update(options.get("responses") or {})
        status = options.get("status_code") or 200
        answer = answer_type(endpoint)
        if answer is not None:
            responses = _documented(answer, status, responses)
            endpoint = _encoding(endpoint, status)
        super().add_api_route(path, endpoint, **{**options, "responses": responses, "response_model": None})


def answer_type(endpoint: Callable[..., Any]) -> Any:
    """Return the type of a handler's answer, None where the handler returns a plain response."""
    returned = get_type_hints(endpoint)["return"]
    if get_origin(returned) is Rendered:
        return get_args(returned)[0]
    return None if isinstance(returned, type) and issubclass(returned, Response) else returned


def _documented(answer: Any, status: int, known: dict[int | str, Any]) -> dict[int | str, Any]:
    success = dict(known.get(status, {}))
    success["content"] = {JSON: {"schema": schema_of(answer)}, **success.get("content", {})}
    return {**known, status: {"description": "Successful Response", **success}}


def _encoding(endpoint: Callable[..., Awaitable[Any]], status: int) -> Callable[..., Awaitable[Response]]:
    @functools.wraps(endpoint)
    async def encoded(**values: Any) -> Response:
        answer = await endpoint(**values)
        return answer if isinstance(answer, Response) else json_response(answer, status)

    return encoded
