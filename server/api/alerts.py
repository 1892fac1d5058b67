"""``/alerts``: listing, acknowledging and silencing alerts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from client_sdk import answers
from client_sdk.vocabulary import AlertKind, AlertLevel, AlertState
from server.api.access import Operator, Reader, Services, ServicesOf, visible_alert, visible_run
from server.api.errors import REFUSALS
from server.api.router import AnswerRouter
from server.errors import ApiError

router = AnswerRouter(tags=["alerts"], responses=REFUSALS)

AlertId = Annotated[str, Path(max_length=64, description="Id of the alert.")]
MAX_SILENCE = 60 * 24 * 365  # minutes


class AlertSilenceBody(BaseModel):
    """Body of the request that silences an alert."""

    model_config = ConfigDict(extra="forbid")

    minutes: float = Field(gt=0, le=MAX_SILENCE, description="How long nobody is notified of this alert.")


@router.get("/alerts", summary="Alerts, newest first")
async def list_alerts(
    *,
    services: ServicesOf,
    principal: Reader,
    run: Annotated[str | None, Query(max_length=128, description="Id of a run.")] = None,
    state: Annotated[AlertState | None, Query()] = None,
    level: Annotated[AlertLevel | None, Query()] = None,
    kind: Annotated[AlertKind | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> list[answers.Alert]:
    if run is not None:
        await visible_run(services, principal, run)
    return await services.alerts.find(
        run_id=run, project=principal.project, state=state, level=level, kind=kind, limit=limit
    )


@router.get("/alerts/precision", summary="Outcomes of the predictions")
async def precision(
    services: ServicesOf,
    principal: Reader,
    project: Annotated[str | None, Query(max_length=256, description="Only runs of this project.")] = None,
) -> answers.Precision:
    if project is not None and not principal.may_see(project):
        raise ApiError(403, "forbidden", "this token opens another project", field="project")
    return await services.alerts.precision(project=project or principal.project)


@router.get("/alerts/{alert_id}", summary="One alert")
async def get_alert(services: ServicesOf, principal: Reader, alert_id: AlertId) -> answers.Alert:
    return await visible_alert(services, principal, alert_id)


@router.get("/alerts/{alert_id}/notifications", summary="Notifications about an alert")
async def notifications(services: ServicesOf, principal: Reader, alert_id: AlertId) -> list[answers.Notification]:
    await visible_alert(services, principal, alert_id)
    return await services.outbox.of_alert(alert_id)


@router.post("/alerts/{alert_id}/acknowledge", summary="Acknowledge an alert")
async def acknowledge(services: ServicesOf, principal: Operator, alert_id: AlertId) -> answers.Alert:
    await visible_alert(services, principal, alert_id)
    alert = await services.alerts.acknowledge(alert_id, services.clock())
    return await _published(services, alert)


@router.post("/alerts/{alert_id}/silence", summary="Silence an alert for a while")
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
