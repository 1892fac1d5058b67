"""``/runs/{id}/loss`` and ``/projects/{project}/loss``: choosing the scalar that is the loss."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import numpy as np
from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from client_sdk import answers
from client_sdk.protocol import MAX_NAME_CHARS
from server.api.access import Operator, Reader, Services, ServicesOf, visible_run
from server.api.refusals import refusals
from server.api.router import AnswerRouter
from server.errors import ApiError
from server.models import Principal

router = AnswerRouter(tags=["loss"])

SPARKLINE_POINTS: Final = 64
RunId = Annotated[str, Path(max_length=128, description="Id of the run.")]
Project = Annotated[str, Path(max_length=MAX_NAME_CHARS, description="Name of the project.")]


class LossBody(BaseModel):
    """Body of the request that chooses the loss."""

    model_config = ConfigDict(extra="forbid")

    scalar: str | None = Field(
        min_length=1,
        max_length=MAX_NAME_CHARS,
        description="Name of the scalar that is the loss; null removes the choice, and the automatic one holds.",
    )


@router.put("/runs/{run_id}/loss", summary="Choose the loss of a run")
async def choose_for_run(services: ServicesOf, principal: Operator, run_id: RunId, body: LossBody) -> answers.RunDetail:
    """Curves, lists and pictures show the chosen scalar at once. The detectors of every server begin anew with it at
    the run's next record (`loss_since`); what they concluded before stays, and a run that has ended is not judged
    again."""
    await visible_run(services, principal, run_id)
    logged = await services.runs.scalar_ranks(run_id)
    if body.scalar is not None and body.scalar not in logged:
        message = f"the run never logged {body.scalar!r}; GET /runs/{run_id} lists its scalars"
        raise ApiError(404, "unknown_scalar", message, field="scalar")
    before = await services.runs.loss_name(run_id)
    await services.losses.choose_for_run(run_id, body.scalar)
    choices = await services.losses.of_run(run_id)
    name = None if choices is None else choices.name_among(logged)
    if name != before:
        await _show(services, run_id, name, logged)
    await services.pipeline.followers.refresh_losses()
    services.pipeline.publisher.summary_changed(run_id)
    details = await services.fleet.details(run_id)
    if details is None:
        raise ApiError(404, "unknown_run", f"the run {run_id!r} was deleted")
    return details


# A name with a line break matches no route, and answers 404.
@router.get("/projects/{project:path}/loss", responses=refusals(403, 404), summary="The default loss of a project")
async def of_project(services: ServicesOf, principal: Reader, project: Project) -> answers.ProjectLoss:
    _check_project(principal, project)
    return answers.ProjectLoss(project=project, scalar=await services.losses.of_project(project))


@router.put("/projects/{project:path}/loss", responses=refusals(404), summary="Choose the default loss of a project")
async def choose_for_project(
    services: ServicesOf, principal: Operator, project: Project, body: LossBody
) -> answers.ProjectLoss:
    """The default holds for runs to come, and for the next record of those that go on, unless the run or its code has
    chosen another scalar. A run that never logs the scalar keeps the automatic choice."""
    _check_project(principal, project)
    await services.losses.choose_for_project(project, body.scalar)
    await services.pipeline.followers.refresh_losses()
    return answers.ProjectLoss(project=project, scalar=body.scalar)


def _check_project(principal: Principal, project: str) -> None:
    if not principal.may_see(project):
        raise ApiError(403, "forbidden", f"this token is not for the project {project!r}", field="project")


async def _show(services: Services, run_id: str, name: str | None, ranks: dict[str, int]) -> None:
    """Show the values of the new loss in the lists of runs, which the detectors would do only at the next record."""
    run = await services.fleet.summary(run_id)
    since = None if run is None or run.last_step is None else run.last_step + 1
    names = [] if name is None else [name]
    found = await services.series.read(
        run_id, names, step_from=None, step_to=None, points=SPARKLINE_POINTS, ranks=ranks
    )
    buckets = None if name is None else found.series.get(name)
    if buckets is None or not len(buckets.numbers):
        await services.losses.show(run_id, name, since=since, loss=None, sparkline=None)
        return
    sparkline = {
        "first_step": int(buckets.numbers[0]) * found.bucket_steps,
        "bucket_steps": found.bucket_steps,
        "max": [_finite(value) for value in buckets.max[0]],
    }
    await services.losses.show(run_id, name, since=since, loss=_finite(buckets.last[0][-1]), sparkline=sparkline)


def _finite(value: np.floating[Any]) -> float | None:
    return float(value) if math.isfinite(value) else None
