"""Programs about predictions of spikes on a short recording: what each signal adds, and pictures of failures."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.ablation import RULES, SIGNALS, read, row, row_without_rule, without
from benchmarks.failures import panels, part_of
from benchmarks.reproduce.figure import svg
from server.detectors import spike_predictor
from server.evaluation.recordings import read_recording

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that holds the recorded tanh net alone."""
    path = tmp_path_factory.mktemp("recordings")
    (path / "tanh-net.npz").write_bytes((DATA / "tanh-net.npz").read_bytes())
    return path


def test_without_any_sign_nothing_is_told_early(directory: Path) -> None:
    runs = read(directory)
    assert "| 1/1 | 1.00 |" in row("everything", runs)
    bare = without(SIGNALS["all curvature"], without(SIGNALS["Σg²/Σv̂"], runs))
    assert "| 0/1 |" in row("without both", bare)


def test_a_rule_is_in_force_again_after_its_row(directory: Path) -> None:
    before = spike_predictor.SOON
    assert "without the rule that" in row_without_rule("a far date is a watch", read(directory))
    assert before == spike_predictor.SOON
    for owner, constants in RULES.values():
        assert all(hasattr(owner, name) for name in constants)


def test_a_picture_shows_the_loss_what_was_told_and_what_came() -> None:
    part = part_of(f"{DATA / 'tanh-net.npz'}:650:780")
    left, right = panels(read_recording(part.path), part.first, part.last)
    assert {mark.name for mark in left.marks} >= {"loss", "onset", "early"}
    assert "λ_max" in {mark.name for mark in right.marks}
    root = ElementTree.fromstring(svg([[left, right]], "Predictions that failed"))
    assert root.tag.endswith("svg")
