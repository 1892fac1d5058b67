"""``/alerts``: listing, acknowledging and silencing alerts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from client_sdk import answers
from client_sdk.protocol import MAX_NAME_CHARS
from client_sdk.vocabulary import AlertKind, AlertLevel, AlertState
from server.api.access import Operator, Reader, Services, ServicesOf, visible_alert, visible_projects, visible_run
from server.api.names import MAX_FILTERS, REPEATED
from server.api.refusals import refusals
from server.api.router import AnswerRouter

router = AnswerRouter(tags=["alerts"])

AlertId = Annotated[str, Path(max_length=64, description="Id of the alert.")]
MAX_SILENCE = 60 * 24 * 365  # minutes


class AlertSilenceBody(BaseModel):
    """Body of the request that silences an alert."""

    model_config = ConfigDict(extra="forbid")

    minutes: float = Field(gt=0, le=MAX_SILENCE, description="How long nobody is notified of this alert.")


@router.get("/alerts", responses=refusals(404, 410), summary="Alerts, newest first")
async def list_alerts(
    *,
    services: ServicesOf,
    principal: Reader,
    run: Annotated[
        list[Annotated[str, Field(max_length=128)]] | None,
        Query(max_length=MAX_FILTERS, description=f"Id of a run. {REPEATED}"),
    ] = None,
    state: Annotated[list[AlertState] | None, Query(max_length=MAX_FILTERS, description=REPEATED)] = None,
    level: Annotated[list[AlertLevel] | None, Query(max_length=MAX_FILTERS, description=REPEATED)] = None,
    kind: Annotated[list[AlertKind] | None, Query(max_length=MAX_FILTERS, description=REPEATED)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> list[answers.Alert]:
    for run_id in dict.fromkeys(run or ()):
        await visible_run(services, principal, run_id)
    projects = visible_projects(principal, None)
    return await services.alerts.find(
        run_ids=run, projects=projects, states=state, levels=level, kinds=kind, limit=limit
    )


@router.get("/alerts/precision", responses=refusals(403), summary="Outcomes of the predictions")
async def precision(
    services: ServicesOf,
    principal: Reader,
    project: Annotated[
        list[Annotated[str, Field(max_length=MAX_NAME_CHARS)]] | None,
        Query(max_length=MAX_FILTERS, description=f"Only runs of this project. {REPEATED}"),
    ] = None,
) -> answers.Precision:
    return await services.alerts.precision(projects=visible_projects(principal, project))


@router.get("/alerts/{alert_id}", responses=refusals(404), summary="One alert")
async def get_alert(services: ServicesOf, principal: Reader, alert_id: AlertId) -> answers.Alert:
    return await visible_alert(services, principal, alert_id)


@router.get("/alerts/{alert_id}/notifications", responses=refusals(404), summary="Notifications about an alert")
async def notifications(services: ServicesOf, principal: Reader, alert_id: AlertId) -> list[answers.Notification]:
    await visible_alert(services, principal, alert_id)
    return await services.outbox.of_alert(alert_id)


@router.post("/alerts/{alert_id}/acknowledge", responses=refusals(404), summary="Acknowledge an alert")
async def acknowledge(services: ServicesOf, principal: Operator, alert_id: AlertId) -> answers.Alert:
    await visible_alert(services, principal, alert_id)
    alert = await services.alerts.acknowledge(alert_id, services.clock())
    return await _published(services, alert)


@router.post("/alerts/{alert_id}/silence", responses=refusals(404), summary="Silence an alert for a while")
async def silence(
    services: ServicesOf, principal: Operator, alert_id: AlertId, body: AlertSilenceBody
) -> answers.Alert:
    await visible_alert(services, principal, alert_id)
    alert = await services.alerts.silence(alert_id, services.clock() + 60 * body.minutes)
    return await _published(services, alert)


async def _published(services: Services, alert: answers.Alert | None) -> answers.Alert:
    assert alert is not None, "an alert is deleted only with its run"
    await services.pipeline.publisher.alert_changed(alert)
    return alert
