"""``PATCH /runs/{id}``: renaming, tagging, annotating and archiving a run."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from client_sdk import answers
from client_sdk.protocol import MAX_NAME_CHARS
from server.api.access import Operator, ServicesOf, visible_run
from server.api.router import AnswerRouter
from server.api.runs import RunId
from server.errors import ApiError

router = AnswerRouter(tags=["runs"])

MAX_TAGS: Final = 64
MAX_NOTES: Final = 20_000
"""Number of characters of the notes of a run."""
Tag = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


class RunChange(BaseModel):
    """Body of the request that changes what people wrote about a run. What is absent or null stays as it is."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(
        default=None, min_length=1, max_length=MAX_NAME_CHARS, description="Name of the run, for people."
    )
    tags: list[Tag] | None = Field(default=None, max_length=MAX_TAGS, description="All tags of the run.")
    notes: str | None = Field(default=None, max_length=MAX_NOTES, description="Notes as plain text; empty: none.")
    archived: bool | None = Field(
        default=None, description="Whether lists of runs leave the run out unless it is asked for."
    )

    @field_validator("name", "notes")
    @classmethod
    def _has_no_nul(cls, value: str | None) -> str | None:
        if value is not None and "\0" in value:
            raise ValueError("it may not contain NUL")
        return value

    @field_validator("name")
    @classmethod
    def _has_a_name(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it may not be blank")
        return value

    @field_validator("tags")
    @classmethod
    def _are_tags(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and any("\0" in tag or not tag.strip() for tag in value):
            raise ValueError("a tag may neither be blank nor contain NUL")
        return value


@router.patch("/runs/{run_id}", summary="Rename, tag, annotate or archive a run")
async def change_run(services: ServicesOf, principal: Operator, run_id: RunId, body: RunChange) -> answers.RunDetail:
    """The name and the tags that the code gave are replaced and do not return when the run continues. Alert rules that
    select runs by them follow at the run's next record. An archived run is judged and notified of like any other."""
    await visible_run(services, principal, run_id)
    is_found = await services.run_details.change(
        run_id,
        name=None if body.name is None else body.name.strip(),
        tags=None if body.tags is None else tuple(dict.fromkeys(tag.strip() for tag in body.tags)),
        notes=body.notes,
        archived_at=services.clock() if body.archived else None,
        is_unarchived=body.archived is False,
    )
    if not is_found:
        raise ApiError(410, "run_deleted", f"the run {run_id!r} was deleted")
    await services.pipeline.followers.refresh_losses()
    services.pipeline.publisher.summary_changed(run_id)
    details = await services.fleet.details(run_id)
    if details is None:
        raise ApiError(404, "unknown_run", f"the run {run_id!r} was deleted")
    return details
