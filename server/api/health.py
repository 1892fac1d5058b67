"""Health for whoever restarts, readiness for whoever sends traffic. Both open to everybody, and silent about data."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from server.api.access import ServicesOf
from server.api.answers import HealthAnswer
from server.errors import DatabaseError

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=HealthAnswer, summary="The process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", response_model=HealthAnswer, summary="The process and what it depends on answer")
async def readyz(services: ServicesOf) -> JSONResponse:
    try:
        await services.database.ping()
    except DatabaseError:
        return JSONResponse({"status": "the database does not answer"}, status_code=503)
    return JSONResponse({"status": "ok"})
