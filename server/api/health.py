"""Health for whoever restarts, readiness for whoever sends traffic, numbers for Prometheus.

The first two are open to everybody and silent about data; the numbers are for this machine and for tokens.
"""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from server.api.access import Services, ServicesOf
from server.api.answers import HealthAnswer, ReadinessAnswer
from server.api.errors import REFUSALS
from server.auth.tokens import bearer_token
from server.config import LOOPBACK_HOSTS
from server.errors import ApiError
from server.metrics import CONTENT_TYPE
from server.readiness import Health

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=HealthAnswer, summary="The process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=ReadinessAnswer,
    responses={503: {"model": ReadinessAnswer, "description": "Something that is needed does not answer."}},
    summary="The process and what it depends on answer",
)
async def readyz(services: ServicesOf) -> JSONResponse:
    """`degraded` is ready: data is stored and acknowledged, and something optional is away."""
    health, checks = await services.readiness.look()
    status = 503 if health is Health.UNAVAILABLE else 200
    return JSONResponse({"status": health, "checks": checks}, status_code=status)


async def _may_read_metrics(services: ServicesOf, request: Request) -> Services:
    settings, token = services.metrics_access, bearer_token(request.headers)
    if token is None and settings.open_to_loopback and request.client is not None:
        if request.client.host in LOOPBACK_HOSTS:
            return services
    elif settings.token is not None and hmac.compare_digest((token or "").encode(), settings.token.encode()):
        return services
    principal = await services.authenticator.principal(token)
    if principal is None:
        raise ApiError(401, "unauthenticated", "give a token: that of SPIKEWATCH_METRICS_TOKEN, or one that may read")
    if principal.project is not None:
        raise ApiError(403, "forbidden", "a token of one project does not open the numbers of all")
    return services


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **{status: REFUSALS[status] for status in (401, 403, 503)},
    },
)
async def metrics(services: Annotated[Services, Depends(_may_read_metrics)]) -> Response:
    return Response(services.metrics.page(), headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})
