"""The OpenAPI document of the HTTP API: requests as FastAPI describes them, answers from `client_sdk.answers`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from fastapi import FastAPI
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from client_sdk import answers
from server.api.encoding import JSON
from server.api.refusals import REFERENCE

_PREFIX = REFERENCE.format(name="")


def add_document(app: FastAPI, path: str) -> None:
    """Serve the document at ``path``. Call it before adding the routes that catch all other paths.

    The document is encoded once, because each encoding takes milliseconds and needs no token.
    """
    rendered: list[bytes] = []

    async def document(_: Request) -> Response:
        if not rendered:
            rendered.append(msgspec.json.encode(openapi(app)))
        return Response(rendered[0], media_type=JSON)

    app.add_route(path, document, methods=["GET"], include_in_schema=False)


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the application, with the schemas of all answers that it refers to."""
    document = app.openapi()
    _drop_unsent(document)
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    known = _answer_schemas()
    missing = set(_references(document)) - schemas.keys()
    while missing:
        schemas.update({name: known[name] for name in missing})
        missing = {name for added in missing for name in _references(known[added])} - schemas.keys()
    return document


def _drop_unsent(document: dict[str, Any]) -> None:
    """Remove what FastAPI adds for its own refusal of invalid parameters, which `server.api.errors` sends as 400."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)


def _answer_schemas() -> dict[str, Any]:
    """Return the schemas of all answers by name. Only a field that may be unset is optional in an answer."""
    kinds = [*_structs(vars(answers).values())]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    for kind in kinds:
        fields = msgspec.structs.fields(kind)
        schemas[kind.__name__]["required"] = [field.encode_name for field in fields if field.default is not UNSET]
    return schemas


def _structs(values: Iterable[Any]) -> Iterator[type[msgspec.Struct]]:
    for value in values:
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and not value.__name__.startswith("_"):
            yield value


def _references(part: Any) -> Iterator[str]:
    """Yield the names of all schemas that a part of the document refers to."""
    if isinstance(part, dict):
        reference = part.get("$ref")
        if isinstance(reference, str) and reference.startswith(_PREFIX):
            yield reference.removeprefix(_PREFIX)
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)
