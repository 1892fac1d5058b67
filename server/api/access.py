"""Dependencies of every call: the services, the principal of the token, and the runs that it may see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from client_sdk import answers
from server.api.refusals import refuses
from server.api.run_risk import RunRisk
from server.auth.admissions import Admissions
from server.auth.logins import Logins
from server.auth.secret_box import SecretBox
from server.auth.tokens import Authenticator, Identity
from server.errors import ApiError
from server.exports.archive import Archiver
from server.exports.exporter import Exporter
from server.metrics import Metrics
from server.models import DELETING, Principal, Scope
from server.notifications.messenger import Messenger
from server.pipeline.deletion import Deleter
from server.pipeline.pipeline import Pipeline
from server.pipeline.rule_backtest import RuleBacktest
from server.pipeline.run_replay import RunReplay
from server.readiness import Readiness
from server.storage.alerts import AlertStore
from server.storage.audits import AuditStore
from server.storage.channels import ChannelStore
from server.storage.database import Database
from server.storage.events import EventStore
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.loss_choices import LossChoiceStore
from server.storage.measurements.heatmap import HeatmapQuery
from server.storage.measurements.histogram import HistogramQuery
from server.storage.measurements.series import SeriesQuery
from server.storage.outbox import OutboxStore
from server.storage.rules import RuleStore
from server.storage.run_details import RunDetailStore
from server.storage.runs import RunStore, RunVersion
from server.storage.tokens import TokenStore


@dataclass(frozen=True, kw_only=True)
class MetricsAccess:
    """Access to the server's own metrics."""

    token: str | None = field(repr=False)
    """Token that opens the metrics and nothing else."""
    open_to_loopback: bool


@dataclass(frozen=True, kw_only=True)
class Services:
    """Services that the handlers use; `main` builds them."""

    database: Database
    authenticator: Authenticator
    admissions: Admissions
    logins: Logins
    tokens: TokenStore
    pipeline: Pipeline
    runs: RunStore
    run_details: RunDetailStore
    fleet: FleetQuery
    layouts: LayoutStore
    series: SeriesQuery
    heatmap: HeatmapQuery
    histograms: HistogramQuery
    events: EventStore
    alerts: AlertStore
    losses: LossChoiceStore
    audits: AuditStore
    channels: ChannelStore
    outbox: OutboxStore
    secrets: SecretBox
    messenger: Messenger
    rules: RuleStore
    backtest: RuleBacktest
    replay: RunReplay
    backtest_slots: asyncio.Semaphore
    """Slots for backtests and replays that run at the same time; further ones wait."""
    exporter: Exporter
    archiver: Archiver
    deleter: Deleter
    metrics: Metrics
    run_risk: RunRisk
    metrics_access: MetricsAccess
    readiness: Readiness
    clock: Callable[[], float]


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


_bearer = HTTPBearer(auto_error=False, description="A token: `spikewatch token create` creates one.")
ServicesOf = Annotated[Services, Depends(services_of)]


@refuses(401)
async def _identity(
    services: ServicesOf, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Identity:
    token = None if credentials is None else credentials.credentials
    identity = await services.authenticator.identity(token)
    if identity is None:
        raise await services.authenticator.refusal(token)
    return identity


Identified = Annotated[Identity, Depends(_identity)]


async def _principal(identity: Identified) -> Principal:
    return identity.principal


@refuses(403)
async def _writing_principal(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
    if not principal.may(Scope.WRITE):
        raise ApiError(403, "forbidden", "this token may only read; the call needs the scope write")
    return principal


@refuses(403)
async def _administering_principal(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
    if not principal.may(Scope.ADMIN) or principal.project is not None:
        raise ApiError(403, "forbidden", "the call needs a token of the scope admin that opens all projects")
    return principal


@refuses(403)
async def _project_administering_principal(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
    if not principal.may(Scope.ADMIN):
        raise ApiError(403, "forbidden", "the call needs a token with the scope admin")
    return principal


Reader = Annotated[Principal, Depends(_principal)]
Operator = Annotated[Principal, Depends(_writing_principal)]
Administrator = Annotated[Principal, Depends(_administering_principal)]
ProjectAdministrator = Annotated[Principal, Depends(_project_administering_principal)]
"""Administrator of one project, or of all projects."""


def visible_projects(principal: Principal, asked: Sequence[str] | None) -> Sequence[str] | None:
    """Return the projects to look into, None for all. Raises `ApiError` 403 for one that the token does not open."""
    for project in asked or ():
        if not principal.may_see(project):
            raise ApiError(403, "forbidden", f"this token is not for the project {project!r}", field="project")
    return asked or (None if principal.project is None else [principal.project])


async def visible_run(services: Services, principal: Principal, run_id: str) -> RunVersion:
    """Return the version of a run.

    Raises `ApiError`: 404 for a run that does not exist or belongs to a project that the token does not open, 410 while
    a run is being deleted.
    """
    found = await services.runs.version_of(run_id)
    if found is None or not principal.may_see(found.project):
        raise ApiError(404, "unknown_run", f"the run {run_id!r} does not exist; GET /api/v1/runs lists them")
    if found.state == DELETING:
        raise ApiError(410, "run_deleted", f"the run {run_id!r} was deleted")
    return found


async def visible_alert(services: Services, principal: Principal, alert_id: str) -> answers.Alert:
    """Return the alert. Raises `ApiError` 404 as `visible_run` does."""
    alert = await services.alerts.get(alert_id)
    if alert is not None:
        project = await services.runs.project_of(alert.run_id)
        if project is not None and principal.may_see(project):
            return alert
    raise ApiError(404, "unknown_alert", f"the alert {alert_id!r} does not exist; GET /api/v1/alerts lists them")
