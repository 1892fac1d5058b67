"""``/alerts``: reading them, and taking note."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server.api.access import Operator, Reader, ServicesOf, visible_alert, visible_run
from server.api.answers import AlertAnswer, NotificationAnswer, PrecisionAnswer
from server.api.encoding import json_response
from server.api.errors import REFUSALS
from server.errors import ApiError
from server.models import AlertKind, AlertLevel, AlertState

router = APIRouter(tags=["alerts"], responses=REFUSALS)

AlertId = Annotated[str, Path(max_length=64, description="Id of the alert.")]
MAX_SILENCE = 60 * 24 * 365  # minutes


class Silence(BaseModel):
    model_config = ConfigDict(extra="forbid")

    minutes: float = Field(gt=0, le=MAX_SILENCE, description="How long nobody is notified of this alert.")


@router.get("/alerts", response_model=list[AlertAnswer], summary="Alerts, the newest first")
async def list_alerts(
    *,
    services: ServicesOf,
    principal: Reader,
    run: Annotated[str | None, Query(max_length=128, description="Id of a run.")] = None,
    state: Annotated[AlertState | None, Query()] = None,
    level: Annotated[AlertLevel | None, Query()] = None,
    kind: Annotated[AlertKind | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> Response:
    if run is not None:
        await visible_run(services, principal, run)
    found = await services.alerts.find(
        run_id=run, project=principal.project, state=state, level=level, kind=kind, limit=limit
    )
    return json_response(found)


@router.get("/alerts/precision", response_model=PrecisionAnswer, summary="How the predictions turned out")
async def precision(
    services: ServicesOf,
    principal: Reader,
    project: Annotated[str | None, Query(max_length=256, description="Only runs of this project.")] = None,
) -> Response:
    if project is not None and not principal.may_see(project):
        raise ApiError(403, "forbidden", "this token opens another project")
    return json_response(await services.alerts.precision(project=project or principal.project))


@router.get("/alerts/{alert_id}", response_model=AlertAnswer, summary="One alert")
async def get_alert(services: ServicesOf, principal: Reader, alert_id: AlertId) -> Response:
    return json_response(await visible_alert(services, principal, alert_id))


@router.get(
    "/alerts/{alert_id}/notifications", response_model=list[NotificationAnswer], summary="Who was told of an alert"
)
async def notifications(services: ServicesOf, principal: Reader, alert_id: AlertId) -> Response:
    await visible_alert(services, principal, alert_id)
    return json_response(await services.outbox.of_alert(alert_id))


@router.post("/alerts/{alert_id}/acknowledge", response_model=AlertAnswer, summary="Take note of an alert")
async def acknowledge(services: ServicesOf, principal: Operator, alert_id: AlertId) -> Response:
    await visible_alert(services, principal, alert_id)
    alert = await services.alerts.acknowledge(alert_id, services.clock())
    return await _changed(services, alert)


@router.post("/alerts/{alert_id}/silence", response_model=AlertAnswer, summary="Notify nobody of an alert for a while")
async def silence(services: ServicesOf, principal: Operator, alert_id: AlertId, body: Silence) -> Response:
    await visible_alert(services, principal, alert_id)
    alert = await services.alerts.silence(alert_id, services.clock() + 60 * body.minutes)
    return await _changed(services, alert)


async def _changed(services: ServicesOf, alert: dict[str, object] | None) -> Response:
    assert alert is not None, "an alert is never deleted alone"
    await services.pipeline.publisher.alert_changed(alert)
    return json_response(alert)
