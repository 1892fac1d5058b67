"""The OpenAPI document, encoded once: anybody may ask for it, and each time would take milliseconds."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response


def add_document(app: FastAPI, path: str) -> None:
    """Serve it at ``path``. Call it before the routes that catch the rest."""
    rendered: list[bytes] = []

    async def document(_: Request) -> Response:
        if not rendered:
            rendered.append(msgspec.json.encode(app.openapi()))
        return Response(rendered[0], media_type="application/json")

    app.add_route(path, document, methods=["GET"], include_in_schema=False)
