"""Evaluation of the detectors on recordings and on synthetic streams."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.evaluation.evaluate import evaluate, main
from server.evaluation.labels import label
from server.evaluation.recording import Recording
from server.evaluation.recordings import read_recordings, write_recording
from server.evaluation.score_table import lines
from server.evaluation.scores import Summary, score
from server.models import AlertKind
from tests.support import streams

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def summary() -> Summary:
    return evaluate(DATA)


def test_recorded_tanh_net_is_dated_tens_of_steps_ahead(summary: Summary) -> None:
    run = next(run for run in summary.runs if run.name == "tanh-net")
    event, alarm = run.recalled[0]
    assert event.onset - alarm.step >= 30
    assert alarm.predicted is not None
    assert alarm.predicted.low <= event.onset <= alarm.predicted.high
    assert run.false == ()


def test_recorded_healthy_transformer_raises_nothing_above_watch(summary: Summary) -> None:
    run = next(run for run in summary.runs if run.name == "char-transformer")
    assert run.kinds == ()
    assert summary.false_per_1000_control == 0


def test_recorded_bad_batch_is_named_and_not_predicted(summary: Summary) -> None:
    run = next(run for run in summary.runs if run.name == "bad-batch")
    assert summary.bad_batches_named == ("bad-batch",)
    assert run.bad_batches == (400,)
    assert "bad-batch" not in run.kinds, "a batch that does no harm is a watch"
    assert "spike-predicted" not in run.kinds


@pytest.mark.parametrize(("bad_steps", "named"), [(1, (150,)), (6, ())])
def test_a_loss_that_stays_up_for_steps_is_a_spike_and_no_bad_batch(bad_steps: int, named: tuple[int, ...]) -> None:
    """Bad labels in six batches in a row, as in a public recording, leave the loss up for six steps."""
    noise = np.random.default_rng(0)
    samples = tuple(
        streams.sample(
            step,
            (8.0 if 150 <= step < 150 + bad_steps else 1.0) * math.exp(0.05 * noise.standard_normal()),
            gradient=(20.0 if 150 <= step < 150 + bad_steps else 1.0) * math.exp(0.1 * noise.standard_normal()),
        )
        for step in range(1, 220)
    )
    run = score(Recording(name="labels", samples=samples, cause="data", fault_steps=(150,)))
    assert run.bad_batches == named
    assert ("spike" in run.kinds) is (bad_steps > 1)


def test_table_has_a_row_for_each_run(summary: Summary) -> None:
    text = "\n".join(lines(summary))
    assert all(run.name in text for run in summary.runs)
    assert "precision" in text


def test_families_have_rows_and_slow_swells_totals_of_their_own(summary: Summary) -> None:
    net = next(run for run in summary.runs if run.name == "tanh-net")
    runs = (replace(net, family="nets"), replace(net, family="waves", is_swell=True, recalled=()))
    text = lines(replace(summary, runs=runs))
    assert any(line.startswith("nets ") for line in text)
    totals = [line for line in text if line.startswith("early recall")]
    assert [f" {early}/{len(net.events)} " in line for early, line in zip((1, 0), totals, strict=True)] == [True, True]
    assert text.index("slow swells, scored apart") > text.index(totals[0])


def test_a_training_is_recorded_through_the_sdk_with_its_unstable_direction(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from benchmarks.record_cases import record
    from benchmarks.spike_trainings import CASES

    case = CASES["factorisation"]
    samples = record(replace(case, steps=40), seed=0)
    write_recording(tmp_path / "short.npz", samples, cause=case.cause, family=case.family)
    recording = next(read_recordings(tmp_path))
    assert [sample.step for sample in recording.samples] == list(range(1, 41))
    assert {"mode_loss", "mode_growth", "mode_share", "mode_alternation"} <= recording.samples[-1].scalars.keys()
    assert recording.samples[-1].statistic("v_rms") is not None
    assert (recording.family, recording.cause) == ("factorisation", "adam-preconditioner")


def test_directory_is_required_and_must_hold_recordings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the directory"):
        evaluate(None)
    with pytest.raises(ValueError, match="no recordings"):
        evaluate(tmp_path)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not a recording"):
        evaluate(tmp_path)


def test_command_ends_with_2_and_one_line_without_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path) == 2
    assert main(None) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert main(DATA) == 0


def test_recordings_round_trip(tmp_path: Path) -> None:
    samples = list(streams.approaching(40, crossing=30, rate=0.01, decoupling=1e-3))
    write_recording(tmp_path / "run.npz", samples, cause="data", fault_steps=(7,), family="net")
    back = next(read_recordings(tmp_path))
    assert (back.cause, back.fault_steps, back.family) == ("data", (7,), "net")
    assert repr(streams.verdicts(back.samples)) == repr(streams.verdicts(samples))


@pytest.mark.parametrize(
    ("more", "described"),
    [
        ({}, ("none", (), "mine", False)),
        (
            {"cause": "data", "fault_steps": np.array([3, 5]), "swell": True, "betas": np.array([0.8, 0.99])},
            ("data", (3, 5), "mine", True),
        ),
    ],
)
def test_study_recordings_are_understood(tmp_path: Path, more: dict[str, Any], described: tuple[object, ...]) -> None:
    n = 30
    np.savez(
        tmp_path / "mine-ok.npz",
        loss=np.linspace(1, 0.5, n),
        lr=np.full(n, 0.01),
        thr=np.full(n, 200.0),
        gnorm=np.ones(n),
        g2=np.full((n, 2), 0.5),
        vh=np.full((n, 2), 1.0),
        rms=np.ones((n, 2)),
        lam=np.where(np.arange(n) % 5 == 0, 150.0, np.nan),
        lgrad=np.where(np.arange(n) % 5 == 0, 80.0, np.nan),
        names=np.array(["a", "b"]),
        sizes=np.array([4, 9]),
        **more,
    )
    recording = next(read_recordings(tmp_path))
    assert (recording.cause, recording.fault_steps, recording.family, recording.is_swell) == described
    assert recording.samples[0].scalars["lambda_max"] == 150.0
    assert "lambda_max" not in recording.samples[1].scalars
    column = recording.samples[0].statistic("decoupling")
    assert column is not None
    assert column.tolist() == [0.5, 0.5]
    assert score(recording).alarms == ()


def test_alarm_before_the_fault_is_false() -> None:
    samples = list(streams.exponential(start=100, rate=0.2, decoupling=1e-6, steps=150))
    natural = score(Recording(name="a", samples=samples, cause=""))
    blamed = score(Recording(name="a", samples=samples, cause="data", fault_steps=(134,)))
    assert len(natural.recalled) == 1
    assert natural.false == ()
    assert blamed.recalled == ()
    assert len(blamed.false) == 1


def test_labels_find_onset_peak_and_end() -> None:
    noise = np.random.default_rng(0)
    losses = 1 + 0.01 * noise.standard_normal(300)
    losses[150:160] += 4 * np.exp(-((np.arange(10) - 4) ** 2) / 4)
    events, _ = label(losses)
    assert [(event.onset, event.peak) for event in events] == [(150, 154)] or events[0].onset in (150, 151)
    assert events[0].end < 165


def test_labels_ignore_negligible_rises() -> None:
    losses = np.concatenate([[1.0], np.full(100, 1e-14), np.full(50, 3e-14)])
    assert label(losses) == ([], [])


def test_labels_stop_at_a_loss_that_is_not_finite() -> None:
    events, _ = label(np.array([1.0] * 60 + [math.nan] * 3))
    assert [(event.onset, event.finite) for event in events] == [(60, False)]


def test_a_predicted_spike_is_not_called_possible_again() -> None:
    recording = next(found for found in read_recordings(DATA) if found.name == "tanh-net")
    titles = [
        finding.title
        for verdict in streams.verdicts(recording.samples)
        for finding in verdict.findings
        if finding.kind is AlertKind.SPIKE_PREDICTED and verdict.step < 752
    ]
    first = next(i for i, title in enumerate(titles) if title.startswith("Spike predicted"))
    assert first > 0
    assert all(title.startswith("Spike predicted") for title in titles[first:])
