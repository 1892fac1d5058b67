"""Refusals that each call may answer with, for the OpenAPI document: derived from what its handler depends on.

The shape of every refusal is `client_sdk.answers.Error`; `server.api.errors` sends them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, get_args

import msgspec
from fastapi.params import Body, Depends, Path, Query
from pydantic import BaseModel

from client_sdk import answers
from server.api.encoding import JSON

REFERENCE: Final = "#/components/schemas/{name}"
DESCRIPTIONS: Final = {
    400: "A parameter or a field of the body is invalid; `field` names it.",
    401: "The request has no valid token; WWW-Authenticate says whether one was sent.",
    403: "The token does not allow the request.",
    404: "The object does not exist.",
    410: "The run was deleted.",
    413: "The body is too large.",
    429: "There were too many requests; Retry-After says when to try again.",
    500: "The server failed on the request; its log has the details.",
    503: "The database does not answer; try again.",
}
ANY_CALL: Final = (500, 503)

Function = TypeVar("Function", bound=Callable[..., Any])
_ATTRIBUTE = "__refuses_with__"


def schema_of(answer: Any) -> dict[str, Any]:
    """Return the JSON schema of an answer as a reference into the components of the OpenAPI document."""
    (schema,), _ = msgspec.json.schema_components([answer], ref_template=REFERENCE)
    return schema


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of refusals for the OpenAPI document, by status."""
    content = {JSON: {"schema": schema_of(answers.Error)}}
    return {status: {"description": DESCRIPTIONS[status], "content": content} for status in statuses}


def refuses(*statuses: int) -> Callable[[Function], Function]:
    """Decorate a dependency with the statuses with which it refuses a request."""

    def mark(function: Function) -> Function:
        setattr(function, _ATTRIBUTE, statuses)
        return function

    return mark


def refusals_of(endpoint: Callable[..., Any], path: str) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of a handler by status: those of its dependencies, its parameters, its body and its path."""
    statuses = set(ANY_CALL)
    for kind in _sources(endpoint):
        if isinstance(kind, Depends):
            statuses.update(_of_dependency(kind.dependency))
        elif isinstance(kind, Query | Path):
            statuses.add(400)
        else:  # a body
            statuses.update({400, 413})
    if "{run_id}" in path:
        statuses.update({404, 410})
    return refusals(*sorted(statuses))


def _of_dependency(dependency: Callable[..., Any] | None) -> Iterator[int]:
    """Yield the statuses of a dependency and of those that it depends on."""
    if dependency is None:
        return
    yield from getattr(dependency, _ATTRIBUTE, ())
    for kind in _sources(dependency):
        if isinstance(kind, Depends):
            yield from _of_dependency(kind.dependency)


def _sources(function: Callable[..., Any]) -> Iterator[Any]:
    """Yield what the parameters of a function are read from: the marks of FastAPI, and the types of bodies."""
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except (ValueError, TypeError):  # an object such as HTTPBearer, whose refusals are those of its users
        return
    for parameter in parameters.values():
        annotation = parameter.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield Body()
        for mark in get_args(annotation)[1:]:
            if isinstance(mark, Depends | Query | Path | Body):
                yield mark
