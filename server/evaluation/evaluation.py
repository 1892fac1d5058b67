"""The evaluation of a set of recordings: every method on every recording.

Owns the methods and their order: the detectors with curvature, the detectors without, the plain rules, and as many
alarms at random steps as the detectors with curvature raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final
from zlib import crc32

import numpy as np

from server.evaluation.alarms import SKIP, Alarm, Replayed, replay, rising
from server.evaluation.recording import Recording
from server.evaluation.recordings import read_recording, recordings_in
from server.evaluation.rules.registry import RULES
from server.evaluation.scores import RunScore, score
from server.evaluation.signal_series import series_of
from server.evaluation.truth import Truth, truth_of

WITH: Final = "Spikewatch"
WITHOUT: Final = "Spikewatch without curvature"
RANDOM: Final = "as many random alarms"
RANDOM_DRAWS: Final = 40
"""Number of draws behind the scores of random alarms."""


@dataclass(frozen=True, kw_only=True)
class RecordingScores:
    """All methods on one recording."""

    with_curvature: RunScore
    without_curvature: RunScore
    rules: Mapping[str, RunScore]
    """Scores of the plain rules, by the name of the rule."""
    random: tuple[RunScore, ...]
    """Scores of random alarms, one for each draw."""

    @property
    def truth(self) -> Truth:
        """Labels and causes of the recording."""
        return self.with_curvature.truth


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All methods on a set of recordings."""

    recordings: tuple[RecordingScores, ...]

    def only(self, is_wanted: Callable[[Truth], bool]) -> Evaluation:
        """Return the evaluation of some of the recordings."""
        return Evaluation(recordings=tuple(one for one in self.recordings if is_wanted(one.truth)))

    @property
    def methods(self) -> dict[str, list[RunScore]]:
        """Scores of each method by its name, in the order in which they are printed.

        Random alarms have one score for each draw and recording, the others one for each recording.
        """
        found = {
            WITH: [one.with_curvature for one in self.recordings],
            WITHOUT: [one.without_curvature for one in self.recordings],
        }
        for rule in RULES:
            found[rule.name] = [one.rules[rule.name] for one in self.recordings if rule.name in one.rules]
        found[RANDOM] = [run for one in self.recordings for run in one.random]
        return found


def evaluate_recording(recording: Recording, *, with_rules: bool = True) -> RecordingScores:
    """Score all methods on one recording."""
    truth = truth_of(recording)
    with_curvature = score(truth, replay(recording))
    bare = recording.without_curvature()
    rules: dict[str, RunScore] = {}
    if with_rules:
        series = series_of(recording)
        for rule in RULES:
            rules[rule.name] = score(truth, Replayed(alarms=rising(truth.steps, rule.fires(series).tolist())))
    return RecordingScores(
        with_curvature=with_curvature,
        without_curvature=score(truth, replay(bare)),
        rules=rules,
        random=_random(truth, len(with_curvature.alarms)) if with_rules else (),
    )


def evaluate_directory(directory: Path, *, jobs: int = 1, with_rules: bool = True) -> Evaluation:
    """Score all methods on every recording of a directory, in this process or in several.

    Raises `ValueError` if it has none, or if a file is not a recording.
    """
    paths = recordings_in(directory)
    work = partial(_evaluate_file, with_rules=with_rules)
    if jobs <= 1 or len(paths) < 2:
        return _evaluation(map(work, paths))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return _evaluation(pool.map(work, paths))


def _evaluation(found: Iterable[RecordingScores]) -> Evaluation:
    return Evaluation(recordings=tuple(found))


def _evaluate_file(path: Path, *, with_rules: bool) -> RecordingScores:
    return evaluate_recording(read_recording(path), with_rules=with_rules)


def _random(truth: Truth, alarms: int) -> tuple[RunScore, ...]:
    """Return the scores of `alarms` random steps, once for each draw, from a seed of the recording's name."""
    if len(truth.steps) <= SKIP:
        return ()
    generator = np.random.default_rng(crc32(truth.name.encode()))
    drawn = []
    for _ in range(RANDOM_DRAWS):
        at = np.sort(generator.integers(SKIP, len(truth.steps), alarms))
        drawn.append(score(truth, Replayed(alarms=tuple(Alarm(step=truth.steps[i]) for i in at))))
    return tuple(drawn)
