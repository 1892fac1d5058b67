"""``/runs/{id}/audit`` and ``/projects/{project}/audit``: what was checked and found, and what a project dismisses."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from client_sdk import answers
from client_sdk.protocol import MAX_NAME_CHARS
from server.api.access import Operator, Reader, ServicesOf, visible_run
from server.api.refusals import refusals
from server.api.router import AnswerRouter
from server.errors import ApiError
from server.models import Principal
from server.pipeline.packing import MAX_CHECK_CHARS

router = AnswerRouter(tags=["audit"])

RunId = Annotated[str, Path(max_length=128, description="Id of the run.")]
Project = Annotated[str, Path(max_length=MAX_NAME_CHARS, description="Name of the project.")]


class DismissalBody(BaseModel):
    """Body of the request that dismisses the findings of a check."""

    model_config = ConfigDict(extra="forbid")

    check: str = Field(
        min_length=1, max_length=MAX_CHECK_CHARS, pattern=r"^[^\x00]+$", description="Name of the check."
    )
    dismissed: bool = Field(default=True, description="False shows its findings again.")


@router.get("/runs/{run_id}/audit", summary="What was checked in a run, and what was found")
async def of_run(services: ServicesOf, principal: Reader, run_id: RunId) -> answers.RunAudit:
    """The SDK checks settings and silent faults of a training while it watches it; docs/reference/audit.md describes
    the checks. A finding is stored once for each run and check."""
    await visible_run(services, principal, run_id)
    return await services.audits.of_run(run_id)


@router.get("/projects/{project:path}/audit", responses=refusals(403), summary="Dismissed checks of a project")
async def of_project(services: ServicesOf, principal: Reader, project: Project) -> answers.Dismissals:
    _check_project(principal, project)
    return answers.Dismissals(project=project, checks=tuple(await services.audits.dismissed(project)))


@router.put("/projects/{project:path}/audit", summary="Dismiss the findings of a check")
async def dismiss(
    services: ServicesOf, principal: Operator, project: Project, body: DismissalBody
) -> answers.Dismissals:
    """Findings of the check, those to come included, are marked as dismissed in all runs of the project."""
    _check_project(principal, project)
    if body.dismissed:
        await services.audits.dismiss(project, body.check, services.clock())
    else:
        await services.audits.restore(project, body.check)
    return answers.Dismissals(project=project, checks=tuple(await services.audits.dismissed(project)))


def _check_project(principal: Principal, project: str) -> None:
    if not principal.may_see(project):
        raise ApiError(403, "forbidden", f"this token is not for the project {project!r}", field="project")
