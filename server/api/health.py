"""Health for process supervisors, readiness for load balancers, and server metrics for Prometheus.

Health and readiness need no token and tell nothing about data. The metrics are for this machine and for tokens.
"""

from __future__ import annotations

import hmac
from typing import Annotated

import msgspec
from fastapi import Depends, Request
from starlette.responses import Response

from client_sdk import answers
from server.api.access import Services, ServicesOf
from server.api.encoding import JSON, Rendered
from server.api.refusals import refusals, schema_of
from server.api.router import AnswerRouter
from server.auth.tokens import bearer_token
from server.config import LOOPBACK_HOSTS
from server.errors import ApiError
from server.metrics import CONTENT_TYPE
from server.readiness import Health

router = AnswerRouter(tags=["health"], refuses=False)


@router.get("/healthz", summary="The process answers")
async def healthz() -> answers.Health:
    return answers.Health()


@router.get(
    "/readyz",
    responses={
        503: {
            "description": "The database does not answer, or its schema does not fit.",
            "content": {JSON: {"schema": schema_of(answers.Readiness)}},
        }
    },
    summary="The process and what it depends on answer",
)
async def readyz(services: ServicesOf) -> Rendered[answers.Readiness]:
    """`degraded` is ready: data is stored and acknowledged, and something optional does not answer."""
    health, checks = await services.readiness.look()
    status = 503 if health is Health.UNAVAILABLE else 200
    answer = answers.Readiness(status=health, checks=dict(checks))
    return Rendered(msgspec.json.encode(answer), status, media_type=JSON)


async def _may_read_metrics(services: ServicesOf, request: Request) -> Services:
    settings, token = services.metrics_access, bearer_token(request.headers)
    if token is None and settings.open_to_loopback and request.client is not None:
        if request.client.host in LOOPBACK_HOSTS:
            return services
    elif settings.token is not None and hmac.compare_digest((token or "").encode(), settings.token.encode()):
        return services
    principal = await services.authenticator.principal(token)
    if principal is None:
        refusal = await services.authenticator.refusal(token)
        hint = f"{refusal.message}; SPIKEWATCH_METRICS_TOKEN, or a token that may read all projects, opens the metrics"
        raise ApiError(401, refusal.code, hint, authenticate=refusal.authenticate)
    if principal.project is not None:
        raise ApiError(403, "forbidden", "a token of one project does not open the metrics of all projects")
    return services


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **refusals(401, 403, 500, 503),
    },
)
async def metrics(services: Annotated[Services, Depends(_may_read_metrics)]) -> Response:
    await services.run_risk.refresh()
    return Response(services.metrics.page(), headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})
