"""Tells late records from a training that went back.

A record below the last training step of its rank is late unless it proves that training itself went back: it carries
layer statistics, or a scalar that the rank's training has logged at later steps of the present attempt. Late records
are merged into their steps; anything else begins a new attempt. Scalars that were only ever logged late prove nothing,
because evaluations may finish in any order and a validation may count epochs from 0 again.

Pure: what the memory of a connection cannot answer is raised as a question, which the committer answers from storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from client_sdk.protocol import STATISTICS_THINNED, Record
from server.pyramid.drafts import SegmentDraft
from server.storage.measurements.commits import NOT_BEGUN, Commit, TrainingPosition

FILLED_IN = frozenset({"lr", "stability_limit", "step_time"})
"""Scalars that an SDK adds to any record. They prove nothing about a record that has others."""
MAX_NAMES = 10_000
"""Number of scalar names that are remembered; the database has all of them."""


class UnknownStepsError(Exception):
    """Storage has to be asked which of the scalars ``names`` the training has logged after ``step``."""

    def __init__(self, step: int, names: Sequence[str]) -> None:
        super().__init__(f"which of {list(names)} were logged after step {step}?")
        self.step = step
        self.names = names


class TrainingSteps:
    """Steps that the training of one rank has reached in its present attempt, as one connection has seen them."""

    def __init__(self) -> None:
        self.position: TrainingPosition = NOT_BEGUN
        """Last known position of the training."""
        self._logged: dict[str, int] = {}
        """Last step at which this connection has committed each scalar."""
        self._before: dict[str, dict[int, bool]] = {}
        """Answers of storage: whether each scalar was logged after a step before this connection."""
        self._is_complete = False
        """Whether the attempt began on this connection, so that storage has no steps besides these."""

    def note(self, commit: Commit, drafts: Iterable[SegmentDraft]) -> None:
        """Record a commit of this connection, with its drafts in order."""
        if commit.began or commit.attempt != self.position.attempt:
            self._forget(is_complete=commit.began)
        for draft, segment in zip(drafts, commit.segments, strict=True):
            if not segment.is_late and segment.attempt == commit.attempt:
                steps = draft.columns.steps
                for name, column in draft.columns.scalars.items():
                    last = -1 if column.present[-1] else int(np.flatnonzero(column.present)[-1])
                    self._logged[name] = int(steps[last])
        if len(self._logged) > MAX_NAMES:
            self._forget(is_complete=False)
        self.position = TrainingPosition(attempt=commit.attempt, last_step=commit.last_step)

    def move(self, attempt: int, last_step: int) -> None:
        """Adopt the position that another connection has moved the training to."""
        self._forget(is_complete=False)
        self.position = TrainingPosition(attempt=attempt, last_step=last_step)

    def learn(self, step: int, names: Iterable[str], logged_after: Iterable[str]) -> None:
        """Record which of ``names`` were logged after ``step`` according to storage."""
        later = frozenset(logged_after)
        for name in names:
            self._before.setdefault(name, {})[step] = name in later

    def find_late(self, records: Sequence[Record]) -> list[bool] | None:
        """Return whether each new record is late, or None if none is. Raises `UnknownStepsError`."""
        last = self.position.last_step
        for record in records:
            if record.step < last:
                return self._divide(records)
            last = record.step
        return None

    def _divide(self, records: Sequence[Record]) -> list[bool] | None:
        last, logged, is_complete = self.position.last_step, dict(self._logged), self._is_complete
        late: list[bool] = []
        for record in records:
            is_late = record.step < last
            if is_late and self._goes_back(record, logged, is_complete):
                logged, is_complete, is_late = {}, True, False
            if not is_late:
                last = record.step
                logged.update(dict.fromkeys(record.scalars, record.step))
            late.append(is_late)
        return late if any(late) else None

    def _goes_back(self, record: Record, logged: Mapping[str, int], is_complete: bool) -> bool:
        if record.block is not None or record.histograms or STATISTICS_THINNED in record.scalars:
            return True
        names = record.scalars.keys() - FILLED_IN or record.scalars.keys()
        if any(logged.get(name, -1) > record.step for name in names):
            return True
        if is_complete:
            return False
        unknown = []
        for name in names:
            answers = self._before.get(name, {})
            if any(is_later and step >= record.step for step, is_later in answers.items()):
                return True
            if not any(not is_later and step <= record.step for step, is_later in answers.items()):
                unknown.append(name)
        if unknown:
            raise UnknownStepsError(record.step, unknown)
        return False

    def _forget(self, *, is_complete: bool) -> None:
        self._logged, self._before, self._is_complete = {}, {}, is_complete
