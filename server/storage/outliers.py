"""Statements about the outliers of the losses: which of them are at one step, and which runs have passed it.

Works on a connection of the caller's transaction. Every query is bounded by an index and a limit, so that its cost does
not grow with the number of runs of a project.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import ColumnElement, CompoundSelect, Row, and_, bindparam, func, literal_column, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from server.coincidence import MAX_RUNS, SEARCHED, Surroundings, is_very_large
from server.detectors.outliers import MIN_LOSSES
from server.models import DELETING, Outlier, Passage
from server.schema import monitors, outliers, runs
from server.storage.database import insert_ignore
from server.storage.id_list import padded

NEWEST: Final = 256
"""Number of the newest runs of a project among which those that passed a step are counted."""
MAX_NEAR: Final = 32
"""Maximum number of outliers at one step that are compared with one."""
MAX_PASSED: Final = 2_000
"""Maximum number of watched outliers that one transaction passes. Settled outliers are not watched, so few are."""
MAX_LARGE: Final = 100
"""Number up to which very large outliers are counted."""
COMMON_RECORDS: Final = 10_000
"""Number of records before an outlier within which the common outliers of two runs are counted."""
MAX_COMMON: Final = 4_096
"""Maximum number of outliers that are read for the common ones."""
SPARSE_REACH: Final = 1_000
"""Number of steps within which outliers of logs that leave steps out are searched."""
_FIELDS: Final = (
    *("attempt", "step", "interval", "deviations", "loss", "baseline", "is_quiet"),
    *("axis", "position", "spacing", "pattern"),
)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Contribution of one save of a run to the comparison of outliers."""

    run_id: str
    project: str
    before: Passage | None
    """Steps that the detectors of the run had read when it was saved last."""
    after: Passage | None
    outliers: Sequence[Outlier]
    """New outliers and marks."""
    named: Sequence[tuple[int, int]] = ()
    """Attempt and step of the outliers that changed alerts of the run are about."""
    now: float
    """Time of the save, Unix seconds."""

    @property
    def is_empty(self) -> bool:
        """Whether the save contributes nothing."""
        return not self.outliers and not self.named and self.passed is None

    @property
    def passed(self) -> tuple[int, int] | None:
        """Steps passed since the last save, without the lower bound and with the upper one; None if there are none.

        An outlier among the first losses of a run cannot be found, so these steps do not count.
        """
        if self.after is None:
            return None
        first = self.after.first_step + MIN_LOSSES * self.after.interval - 1
        low = first if self.before is None else max(first, self.before.last_step)
        return (low, self.after.last_step) if self.after.last_step > low else None

    @property
    def passed_positions(self) -> tuple[str, float, float] | None:
        """Axis and positions in the data passed since the last save, like `passed`; None without positions."""
        after, before = self.after, self.before
        if self.passed is None or after is None or after.axis is None:
            return None
        if after.first_position is None or after.last_position is None:
            return None
        low = after.first_position
        if before is not None and before.axis == after.axis and before.last_position is not None:
            low = max(low, before.last_position)
        return (after.axis, low, after.last_position) if after.last_position > low else None


async def insert(connection: AsyncConnection, observations: Iterable[Observation]) -> None:
    """Store new outliers and marks."""
    rows = [
        {
            "run_id": one.run_id,
            "project": one.project,
            **{name: getattr(outlier, name) for name in _FIELDS},
            "is_large": is_very_large(outlier),
            "is_watched": outlier.deviations > 0 and not outlier.is_quiet,
        }
        for one in observations
        for outlier in one.outliers
    ]
    if rows:
        await connection.execute(insert_ignore(connection, outliers), rows)


async def near(connection: AsyncConnection, project: str, run_id: str, outlier: Outlier) -> list[Row[Any]]:
    """Return the outliers of other runs that are at the step of an outlier, or may be, with the names of their runs."""
    of_others = and_(outliers.c.project == project, outliers.c.run_id != run_id, outliers.c.deviations > 0)
    found = {}
    for place in _places(outlier):
        query = (
            select(outliers, runs.c.name)
            .join(runs, runs.c.id == outliers.c.run_id)
            .where(of_others, place, runs.c.state != DELETING)
            .limit(MAX_NEAR)
        )
        found.update({row.id: row for row in await connection.execute(query)})
    return list(found.values())


def _places(outlier: Outlier) -> list[ColumnElement[bool]]:
    """Return the conditions for outliers at one step; each of them has an index of its own."""
    step, interval, axis, position = outlier.step, outlier.interval, outlier.axis, outlier.position
    places: list[ColumnElement[bool]] = [outliers.c.step == step]
    if interval > 1:
        places = [outliers.c.step.between(step - interval + 1, step + interval - 1)]
    # The literal condition is that of the partial index.
    is_sparse: ColumnElement[bool] = literal_column("outliers.interval > 1")
    reach = outliers.c.step.between(step - SPARSE_REACH, step + SPARSE_REACH)
    places.append(and_(is_sparse, reach, func.abs(outliers.c.step - step) < outliers.c.interval))
    if axis is None or position is None:
        return places
    spacing = abs(outlier.spacing) * MAX_NEAR
    on_axis = and_(outliers.c.axis == axis, outliers.c.position.between(position - spacing, position + spacing))
    is_close = func.abs(outliers.c.position - position) <= func.abs(outliers.c.spacing)
    is_mine = func.abs(outliers.c.position - position) <= abs(outlier.spacing)
    elsewhere = or_(outliers.c.axis.is_(None), outliers.c.axis != axis)
    return [*(and_(place, elsewhere) for place in places), and_(on_axis, or_(is_close, is_mine))]


@lru_cache(maxsize=16)
def _watched(count: int) -> CompoundSelect[Any]:
    """Return the query of the watched outliers within any of so many ranges of steps.

    SQLite uses the partial index for each part of a union, but not for alternatives in one condition.
    """
    is_watched: ColumnElement[bool] = literal_column("is_watched")
    columns = (outliers.c.id, outliers.c.run_id, outliers.c.project, outliers.c.step, outliers.c.interval)
    return union_all(
        *(
            select(*columns, outliers.c.axis).where(
                is_watched,
                outliers.c.project == bindparam(f"project_{at}"),
                outliers.c.step > bindparam(f"low_{at}"),
                outliers.c.step <= bindparam(f"high_{at}"),
            )
            for at in range(count)
        )
    ).limit(MAX_PASSED)


async def passed(connection: AsyncConnection, observations: Sequence[Observation]) -> dict[int, set[str]]:
    """Return the ids of watched outliers with the runs that have passed them since they were saved last."""
    found: dict[int, set[str]] = {}
    moved = [(one, steps, one.after) for one in observations if (steps := one.passed) is not None]
    if not moved:
        return found
    parameters: dict[str, Any] = {}
    many = padded(range(len(moved)))
    for at, of in enumerate(many):
        one, (low, high), _ = moved[of]
        parameters |= {f"project_{at}": one.project, f"low_{at}": low, f"high_{at}": high}
    rows = (await connection.execute(_watched(len(many)), parameters)).all()
    for one, (low, high), after in moved:
        for row in rows:
            is_other = row.project == one.project and row.run_id != one.run_id and low < row.step <= high
            if is_other and after is not None and after.interval <= row.interval and not _by_position(row.axis, after):
                found.setdefault(row.id, set()).add(one.run_id)
        positions = one.passed_positions
        if positions is None or after is None:
            continue
        axis, first, last = positions
        query = select(outliers.c.id, outliers.c.interval).where(
            outliers.c.project == one.project,
            outliers.c.axis == axis,
            outliers.c.position > first,
            outliers.c.position <= last,
            outliers.c.run_id != one.run_id,
            literal_column("is_watched"),
        )
        for there in await connection.execute(query.limit(MAX_PASSED)):
            if after.interval <= there.interval:
                found.setdefault(there.id, set()).add(one.run_id)
    return found


def _by_position(axis: str | None, passage: Passage) -> bool:
    """Return whether a run and an outlier are compared by positions in the data instead of steps."""
    return axis is not None and axis == passage.axis


async def locked(connection: AsyncConnection, ids: Collection[int], observations: Sequence[Observation]) -> list[Any]:
    """Return outliers with their columns, locked in the order of their ids: these, the new ones, and the named ones."""
    wanted = [
        and_(outliers.c.run_id == one.run_id, outliers.c.attempt == attempt, outliers.c.step.in_(padded(steps)))
        for one in observations
        for attempt, steps in _by_attempt(one).items()
    ]
    if ids:
        wanted.append(outliers.c.id.in_(padded(sorted(ids))))
    if not wanted:
        return []
    query = select(outliers).where(or_(*wanted)).order_by(outliers.c.id).with_for_update()
    return list((await connection.execute(query)).all())


def _by_attempt(one: Observation) -> Mapping[int, list[int]]:
    steps: dict[int, list[int]] = {}
    new = [(outlier.attempt, outlier.step) for outlier in one.outliers if outlier.deviations > 0]
    for attempt, step in (*one.named, *new):
        steps.setdefault(attempt, []).append(step)
    return steps


async def surroundings(connection: AsyncConnection, project: str, run_id: str, outlier: Outlier) -> Surroundings:
    """Return how often other runs show very large outliers in the records before an outlier."""
    interval = max(outlier.interval, 1)
    found = (
        select(outliers.c.id)
        .where(
            outliers.c.project == project,
            outliers.c.step.between(outlier.step - SEARCHED * interval, outlier.step - interval),
            outliers.c.run_id != run_id,
            literal_column("is_large"),
        )
        .limit(MAX_LARGE)
    )
    large = (await connection.execute(select(func.count()).select_from(found.subquery()))).scalar_one()
    return Surroundings(large=large, records=min(SEARCHED, outlier.step // interval))


async def common(
    connection: AsyncConnection, run_id: str, others: Collection[str], outlier: Outlier
) -> dict[str, tuple[int, float]]:
    """Return how many outliers up to one each other run shares with a run, and how many chance would give.

    Both count the outlier itself.
    """
    reach = COMMON_RECORDS * max(outlier.interval, 1)
    query = (
        select(outliers.c.run_id, outliers.c.step)
        .where(
            outliers.c.run_id.in_(padded(sorted([run_id, *others]))),
            outliers.c.step.between(outlier.step - reach, outlier.step),
            outliers.c.deviations > 0,
        )
        .order_by(outliers.c.step.desc())
        .limit(MAX_COMMON)
    )
    steps: dict[str, set[int]] = {}
    for row in await connection.execute(query):
        steps.setdefault(row.run_id, set()).add(row.step)
    mine = steps.get(run_id, set())
    records = min(reach, max(outlier.step, 1)) / max(outlier.interval, 1)
    return {
        other: (len(mine & found), len(mine) * len(found) / max(records, 1.0))
        for other, found in steps.items()
        if other != run_id
    }


async def have_passed(
    connection: AsyncConnection, project: str, run_id: str, outlier: Outlier, without: Collection[str]
) -> set[str]:
    """Return those of the newest other runs that passed an outlier's step, up to `MAX_RUNS`, leaving out some runs."""
    newest = (
        select(runs.c.id)
        .where(runs.c.project == project, runs.c.state != DELETING)
        .order_by(runs.c.created_at.desc(), runs.c.id.desc())
        .limit(NEWEST)
        .subquery()
    )
    begun = monitors.c.first_step + MIN_LOSSES * monitors.c.interval
    has_passed = and_(begun <= outlier.step, monitors.c.last_step >= outlier.step)
    if outlier.axis is not None and outlier.position is not None:
        by_position = and_(monitors.c.first_position <= outlier.position, monitors.c.last_position >= outlier.position)
        is_elsewhere = or_(monitors.c.axis.is_(None), monitors.c.axis != outlier.axis)
        has_passed = or_(and_(monitors.c.axis == outlier.axis, by_position), and_(is_elsewhere, has_passed))
    left_out = padded(sorted({run_id, *without}))
    found = (
        select(monitors.c.run_id)
        .join(newest, newest.c.id == monitors.c.run_id)
        .where(has_passed, monitors.c.interval <= outlier.interval, monitors.c.run_id.not_in(left_out))
        .limit(MAX_RUNS)
    )
    return set((await connection.execute(found)).scalars())


async def marks(connection: AsyncConnection, run_ids: Collection[str]) -> dict[str, dict[tuple[int, int], bytes]]:
    """Return the loss patterns at the marks of runs by run; those of the latest attempt hold."""
    columns = (outliers.c.run_id, outliers.c.step, outliers.c.interval, outliers.c.pattern)
    is_mark: ColumnElement[bool] = literal_column("outliers.deviations = 0")
    found: dict[str, dict[tuple[int, int], bytes]] = {run_id: {} for run_id in run_ids}
    if not found:
        return found
    query = select(*columns).where(outliers.c.run_id.in_(padded(sorted(found))), is_mark)
    for row in await connection.execute(query.order_by(outliers.c.id).limit(MAX_COMMON)):
        if row.pattern:
            found[row.run_id][row.step, row.interval] = row.pattern
    return found


def to_outlier(row: Row[Any]) -> Outlier:
    """Return the outlier of a row of the table `outliers`."""
    return Outlier(**{name: getattr(row, name) for name in _FIELDS})
