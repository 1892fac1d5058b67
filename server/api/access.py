"""What every call needs: the stores, who is asking, and which runs they may see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.auth.admissions import Admissions
from server.auth.logins import Logins
from server.auth.secret_box import SecretBox
from server.auth.tokens import UNAUTHENTICATED, Authenticator, Identity
from server.errors import ApiError
from server.exports.archive import Archiver
from server.exports.exporter import Exporter
from server.metrics import Metrics
from server.models import DELETING, Principal, Scope
from server.notifications.messenger import Messenger
from server.pipeline.deletion import Deleter
from server.pipeline.pipeline import Pipeline
from server.pipeline.rule_backtest import RuleBacktest
from server.readiness import Readiness
from server.storage.alerts import AlertStore
from server.storage.channels import ChannelStore
from server.storage.database import Database
from server.storage.events import EventStore
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.heatmap import HeatmapQuery
from server.storage.measurements.histogram import HistogramQuery
from server.storage.measurements.series import SeriesQuery
from server.storage.outbox import OutboxStore
from server.storage.rules import RuleStore
from server.storage.runs import RunStore, RunVersion
from server.storage.tokens import TokenStore


@dataclass(frozen=True, kw_only=True)
class MetricsAccess:
    token: str | None = field(repr=False)
    """Opens the metrics and nothing else."""
    open_to_loopback: bool


@dataclass(frozen=True, kw_only=True)
class Services:
    """What `main` has wired together, for the handlers."""

    database: Database
    authenticator: Authenticator
    admissions: Admissions
    logins: Logins
    tokens: TokenStore
    pipeline: Pipeline
    runs: RunStore
    fleet: FleetQuery
    layouts: LayoutStore
    series: SeriesQuery
    heatmap: HeatmapQuery
    histograms: HistogramQuery
    events: EventStore
    alerts: AlertStore
    channels: ChannelStore
    outbox: OutboxStore
    secrets: SecretBox
    messenger: Messenger
    rules: RuleStore
    rehearsal: RuleBacktest
    rehearsing: asyncio.Semaphore
    """So many rehearsals at a time; the others wait."""
    exporter: Exporter
    archiver: Archiver
    deleter: Deleter
    metrics: Metrics
    metrics_access: MetricsAccess
    readiness: Readiness
    clock: Callable[[], float]


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


_bearer = HTTPBearer(auto_error=False, description="A token: `spikewatch token create` makes one.")
ServicesOf = Annotated[Services, Depends(services_of)]


async def _identity(
    services: ServicesOf, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Identity:
    identity = await services.authenticator.identity(None if credentials is None else credentials.credentials)
    if identity is None:
        raise ApiError(401, "unauthenticated", UNAUTHENTICATED)
    return identity


Identified = Annotated[Identity, Depends(_identity)]


async def _principal(identity: Identified) -> Principal:
    return identity.principal


async def _writing_principal(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
    if not principal.may(Scope.WRITE):
        raise ApiError(403, "forbidden", "this token may only read; the call needs the scope write")
    return principal


async def _administering_principal(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
    if not principal.may(Scope.ADMIN) or principal.project is not None:
        raise ApiError(403, "forbidden", "the call needs a token of the scope admin that opens all projects")
    return principal


async def _project_administering_principal(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
    if not principal.may(Scope.ADMIN):
        raise ApiError(403, "forbidden", "the call needs a token with the scope admin")
    return principal


Reader = Annotated[Principal, Depends(_principal)]
Operator = Annotated[Principal, Depends(_writing_principal)]
Administrator = Annotated[Principal, Depends(_administering_principal)]
ProjectAdministrator = Annotated[Principal, Depends(_project_administering_principal)]
"""Of one project, or of all."""


async def visible_run(services: Services, principal: Principal, run_id: str) -> RunVersion:
    """Raises 404 for a run that is not there, and alike for one of a project that the token does not open; 410 while
    what is left of a deleted one is taken away."""
    found = await services.runs.version_of(run_id)
    if found is None or not principal.may_see(found.project):
        raise ApiError(404, "unknown_run", f"there is no run {run_id!r}; GET /api/v1/runs lists them")
    if found.state == DELETING:
        raise ApiError(410, "run_deleted", f"the run {run_id!r} was deleted")
    return found


async def visible_alert(services: Services, principal: Principal, alert_id: str) -> dict[str, Any]:
    """The alert as the API shows it; 404 as for runs."""
    alert = await services.alerts.get(alert_id)
    if alert is not None:
        project = await services.runs.project_of(alert["run_id"])
        if project is not None and principal.may_see(project):
            return alert
    raise ApiError(404, "unknown_alert", f"there is no alert {alert_id!r}; GET /api/v1/alerts lists them")
