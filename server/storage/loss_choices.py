"""The scalars that people have chosen as the loss, of one run or as the default of a project.

For each run the first of these decides: the choice for the run, `init(loss=…)` of its code, the default of its project
if the run logs that scalar, and the usual names of the loss. Every change also changes a version, by which the servers
notice it.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk.vocabulary import loss_among
from server.models import DELETING
from server.schema import project_losses, runs, settings
from server.storage.database import Database, insert_ignore

VERSION: Final = "loss_choices"
"""Name of the setting that holds the version of the choices."""


@dataclass(frozen=True, kw_only=True)
class LossChoices:
    """Everything that was chosen for one run; None where nothing was."""

    of_run: str | None
    """Scalar that a person chose for this run."""
    of_code: str | None
    """Scalar that `init(loss=…)` of the training chose."""
    of_project: str | None
    """Scalar that is the default of the project."""

    def name_among(self, scalars: Collection[str]) -> str | None:
        """Return the loss of a run that has logged these scalars, or None if it has logged none.

        >>> choices = LossChoices(of_run=None, of_code=None, of_project="val/loss")
        >>> choices.name_among(["loss", "val/loss"]), choices.name_among(["loss"])
        ('val/loss', 'loss')
        """
        chosen = self.of_run or self.of_code
        if chosen is not None:
            return chosen
        return self.of_project if self.of_project in scalars else loss_among(scalars)


class LossChoiceStore:
    """Stores the choices of the loss."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def version(self) -> str | None:
        """Return the version of the choices, which every change replaces; None before the first one."""
        async with self._database.read() as connection:
            query = select(settings.c.value).where(settings.c.name == VERSION)
            return (await connection.execute(query)).scalar_one_or_none()

    async def of_run(self, run_id: str) -> LossChoices | None:
        """Return what was chosen for a run, or None if there is no such run."""
        query = (
            select(runs.c.loss_choice, runs.c.chosen_loss, project_losses.c.loss)
            .outerjoin(project_losses, project_losses.c.project == runs.c.project)
            .where(runs.c.id == run_id)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        return LossChoices(of_run=row.loss_choice, of_code=row.chosen_loss, of_project=row.loss)

    async def of_project(self, project: str) -> str | None:
        """Return the scalar that is the default of a project, or None if there is none."""
        async with self._database.read() as connection:
            return (await losses_of_projects(connection, [project])).get(project)

    async def choose_for_run(self, run_id: str, scalar: str | None) -> None:
        """Choose the loss of a run; None removes the choice."""
        async with self._database.write() as connection:
            await connection.execute(
                update(runs).where(runs.c.id == run_id, runs.c.state != DELETING).values(loss_choice=scalar)
            )
            await renew_version(connection)

    async def choose_for_project(self, project: str, scalar: str | None) -> None:
        """Choose the default of a project, also for runs to come; None removes it."""
        async with self._database.write() as connection:
            if scalar is None:
                await connection.execute(delete(project_losses).where(project_losses.c.project == project))
            else:
                await connection.execute(insert_ignore(connection, project_losses).values(project=project, loss=scalar))
                await connection.execute(
                    update(project_losses).where(project_losses.c.project == project).values(loss=scalar)
                )
            await renew_version(connection)

    async def show(
        self, run_id: str, name: str | None, *, since: int | None, loss: float | None, sparkline: dict[str, Any] | None
    ) -> None:
        """Store the loss that the lists of runs show, until the detectors have read the run's next record.

        ``since`` is the first step that the detectors judge with it.
        """
        async with self._database.write() as connection:
            await connection.execute(
                update(runs)
                .where(runs.c.id == run_id)
                .values(loss_name=name, loss_since=since, loss=loss, sparkline=sparkline)
            )


async def losses_of_projects(connection: AsyncConnection, projects: Sequence[str]) -> dict[str, str]:
    """Return the default of each of these projects that has one, keyed by project."""
    query = select(project_losses).where(project_losses.c.project.in_(projects))
    return {row.project: row.loss for row in await connection.execute(query)}


async def renew_version(connection: AsyncConnection) -> None:
    """Replace the version of the choices, in the transaction that changes one."""
    value = uuid.uuid4().hex
    await connection.execute(insert_ignore(connection, settings).values(name=VERSION, value=value))
    await connection.execute(update(settings).where(settings.c.name == VERSION).values(value=value))
