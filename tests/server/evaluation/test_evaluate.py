"""Evaluation of the detectors on recordings and on synthetic streams."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.evaluation.alarms import replay
from server.evaluation.evaluate import SHIPPED, main
from server.evaluation.evaluation import (
    RANDOM,
    WITH,
    WITHOUT,
    Evaluation,
    RecordingScores,
    evaluate_directory,
)
from server.evaluation.labels import label
from server.evaluation.measures import MEASURES, measure
from server.evaluation.plots import band_figure, lead_figure
from server.evaluation.recording import FULL_BATCH, MINI_BATCH, Recording
from server.evaluation.recordings import read_recordings, write_recording
from server.evaluation.score_table import lines
from server.evaluation.scores import RunScore, score
from server.evaluation.truth import truth_of
from server.models import AlertKind, Cause
from tests.support import streams

DATA = Path(__file__).parents[2] / "data"


def scored(recording: Recording) -> RunScore:
    return score(truth_of(recording), replay(recording))


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_directory(DATA)


def named(evaluation: Evaluation, name: str) -> RecordingScores:
    return next(one for one in evaluation.recordings if one.truth.name == name)


def test_recorded_tanh_net_is_dated_tens_of_steps_ahead(evaluation: Evaluation) -> None:
    run = named(evaluation, "tanh-net").with_curvature
    recall = run.recalled[0]
    assert recall.lead >= 20
    assert recall.is_in_band
    assert run.false == ()


def test_the_cause_of_the_recorded_spike_is_the_stale_second_moment(evaluation: Evaluation) -> None:
    ((event, cause),) = named(evaluation, "tanh-net").with_curvature.causes
    assert cause is Cause.STALE_SECOND_MOMENT
    assert cause in event.causes


def test_recorded_healthy_transformer_raises_nothing_above_watch(evaluation: Evaluation) -> None:
    run = named(evaluation, "char-transformer").with_curvature
    assert run.kinds == ()
    assert measure(MEASURES["healthy"], evaluation.methods[WITH]).value == 0


def test_recorded_bad_batch_is_named_and_not_predicted(evaluation: Evaluation) -> None:
    run = named(evaluation, "bad-batch").with_curvature
    assert [one.truth.name for one in evaluation.recordings if one.with_curvature.bad_batches] == ["bad-batch"]
    assert run.bad_batches == (400,)
    assert "bad-batch" not in run.kinds, "a batch that does no harm is a watch"
    assert "spike-predicted" not in run.kinds


@pytest.mark.parametrize(("bad_steps", "named_steps"), [(1, (150,)), (6, ())])
def test_a_loss_that_stays_up_for_steps_is_a_spike_and_no_bad_batch(
    bad_steps: int, named_steps: tuple[int, ...]
) -> None:
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
    run = scored(Recording(name="labels", samples=samples, cause="data", fault_steps=(150,)))
    assert run.bad_batches == named_steps
    assert ("spike" in run.kinds) is (bad_steps > 1)


def test_without_a_closure_the_same_recording_is_dated_worse(evaluation: Evaluation) -> None:
    one = named(evaluation, "tanh-net")
    ((bare_date,), (date,)) = (
        [recall.date_ratio for recall in run.recalled] for run in (one.without_curvature, one.with_curvature)
    )
    assert bare_date is not None
    assert date is not None
    assert abs(math.log(date)) < abs(math.log(bare_date)), "steps to the onset over the forecast ones"
    (recording,) = (found for found in read_recordings(DATA) if found.name == "tanh-net")
    bare = recording.without_curvature()
    assert all("lambda_max" not in sample.scalars for sample in bare.samples)
    assert bare.samples[0].scalars["loss"] == recording.samples[0].scalars["loss"]
    assert bare.samples[0].scalars["grad_norm"] == recording.samples[0].scalars["grad_norm"]


def test_a_ratio_measured_without_a_closure_stays_when_curvature_is_left_out() -> None:
    def kept(source: float) -> set[str]:
        scalars = {"loss": 1.0, "stability_ratio": 1.1, "stability_ratio_source": source, "period_two_growth": 0.1}
        sample = replace_scalars(scalars)
        return set(Recording(name="a", samples=(sample,), cause="").without_curvature().samples[0].scalars)

    def replace_scalars(scalars: dict[str, float]) -> Any:
        from msgspec.structs import replace as replaced

        return replaced(streams.sample(1, 1.0), scalars=scalars)

    assert kept(1.0) == {"loss", "period_two_growth"}
    assert kept(2.0) == {"loss", "period_two_growth", "stability_ratio", "stability_ratio_source"}


def test_every_method_is_scored_on_the_same_spikes(evaluation: Evaluation) -> None:
    methods = evaluation.methods
    for name in (WITH, WITHOUT, "W&B z-score", "combination with curvature"):
        assert [run.truth.name for run in methods[name]] == ["bad-batch", "char-transformer", "tanh-net"]
        assert measure(MEASURES["early"], methods[name]).count == 1
    random = measure(MEASURES["early"], methods[RANDOM]).value
    assert random is not None
    assert 0 < random < 0.5


def test_several_processes_give_the_same_scores(evaluation: Evaluation) -> None:
    again = evaluate_directory(DATA, jobs=2)
    assert lines(again, with_runs=True) == lines(evaluation, with_runs=True)


def test_table_has_both_variants_all_methods_and_each_run_if_asked(evaluation: Evaluation) -> None:
    text = "\n".join(lines(evaluation, with_runs=True))
    assert all(one.truth.name in text for one in evaluation.recordings)
    assert all(one.title in text for one in MEASURES.values())
    assert all(name in text for name in evaluation.methods)
    assert not any(line.startswith("char-transformer") for line in lines(evaluation))


def test_groups_have_rows_and_slow_swells_do_not_count_in_the_totals(evaluation: Evaluation) -> None:
    net = named(evaluation, "tanh-net")

    def variant(**changes: Any) -> RecordingScores:
        def changed(run: RunScore) -> RunScore:
            return replace(run, truth=replace(run.truth, **changes))

        return replace(
            net, with_curvature=changed(net.with_curvature), without_curvature=changed(net.without_curvature)
        )

    runs = (
        variant(family="nets", batches=FULL_BATCH),
        variant(family="nets", batches=MINI_BATCH),
        variant(family="waves", batches=MINI_BATCH, is_swell=True),
    )
    text = lines(Evaluation(recordings=runs))
    assert text[0].startswith("2 runs with 2 spikes")
    rows = {line[:18].strip(): line.split() for line in text if " with " in line}
    assert rows["full batch"][3:5] == ["1", "1"]
    assert rows["mini-batch"][2:4] == ["1", "1"]
    assert rows["slow swells, apart"][4:6] == ["1", "1"]
    assert rows["nets"][2:4] == ["2", "2"]


def test_a_training_is_recorded_through_the_sdk_with_its_unstable_direction(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from benchmarks.record_cases import record
    from benchmarks.spike_trainings import CASES

    case = CASES["factorisation"]
    samples = record(replace(case, steps=40), seed=0)
    write_recording(tmp_path / "short.npz", samples, cause=case.cause, family=case.family)
    recording = next(iter(read_recordings(tmp_path)))
    assert [sample.step for sample in recording.samples] == list(range(1, 41))
    assert {"mode_loss", "mode_growth", "mode_share", "mode_alternation"} <= recording.samples[-1].scalars.keys()
    assert recording.samples[-1].statistic("v_rms") is not None
    assert (recording.family, recording.cause) == ("factorisation", "adam-preconditioner")


def test_the_cases_know_whether_they_read_batches() -> None:
    pytest.importorskip("sklearn")
    from benchmarks.spike_trainings import CASES

    assert CASES["regression-batch-128"].has_mini_batches
    assert not CASES["regression-tanh"].has_mini_batches
    assert not CASES["waves"].has_mini_batches


def test_directory_must_hold_recordings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recordings"):
        evaluate_directory(tmp_path)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not a recording"):
        evaluate_directory(tmp_path)


def test_command_ends_with_2_and_one_line_without_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_command_prints_every_number_as_json_and_writes_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(DATA, as_json=True, plots=tmp_path / "plots") == 0
    found = json.loads(capsys.readouterr().out)
    early = found["measures"][WITH]["early"]
    assert (early["value"], early["count"]) == (1.0, 1)
    assert set(found["measures"][WITHOUT]) == set(MEASURES)
    (net,) = (one for one in found["recordings"] if one["name"] == "tanh-net")
    (told,) = net["with_curvature"]["early"]
    assert told["range"][0] <= told["onset"] <= told["range"][2]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"lead-times.html", "ranges.html", "plotly.min.js"}


def test_plots_show_each_method_and_each_early_alarm(evaluation: Evaluation) -> None:
    leads = lead_figure(evaluation)
    assert {WITH, WITHOUT, "W&B z-score"} <= {trace.name for trace in leads.data}
    (own,) = (trace for trace in leads.data if trace.name == WITH)
    (recall,) = named(evaluation, "tanh-net").with_curvature.recalled
    assert [own.y[recall.lead - 1], own.y[recall.lead]] == [1, 0]
    bands = band_figure(evaluation)
    assert sum(len(trace.x) for trace in bands.data if trace.mode == "markers") == 1
    assert "1 of 1 onsets" in bands.layout.title.text


def test_the_recordings_of_the_package_are_of_every_kind() -> None:
    found = list(read_recordings(SHIPPED))
    assert {one.batches for one in found} == {FULL_BATCH, MINI_BATCH}
    assert {one.cause for one in found} == {"adam-preconditioner", "lr-jump", "none"}
    assert all("mode_loss" in one.samples[-1].scalars for one in found)
    spikes = {one.name: len(label(one.losses)[0]) for one in found}
    assert spikes["regression-batch-16-healthy"] == 0
    assert spikes["regression-tanh"] >= 1


def test_recordings_round_trip(tmp_path: Path) -> None:
    samples = list(streams.approaching(40, crossing=30, rate=0.01, decoupling=1e-3))
    write_recording(
        tmp_path / "run.npz", samples, cause="data", fault_steps=(7,), family="net", is_swell=True, batches=MINI_BATCH
    )
    back = next(iter(read_recordings(tmp_path)))
    assert (back.cause, back.fault_steps, back.family) == ("data", (7,), "net")
    assert (back.is_swell, back.batches) == (True, "mini")
    assert repr(streams.verdicts(back.samples)) == repr(streams.verdicts(samples))


@pytest.mark.parametrize(
    ("more", "described"),
    [
        ({}, ("none", (), "mine", False, "")),
        ({"lam_p": np.full(30, np.nan)}, ("none", (), "mine", False, "full")),
        (
            {
                "cause": "data",
                "fault_steps": np.array([3, 5]),
                "swell": True,
                "betas": np.array([0.8, 0.99]),
                "lam_p": np.full(30, 2.0),
            },
            ("data", (3, 5), "mine", True, "mini"),
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
    recording = next(iter(read_recordings(tmp_path)))
    found = (recording.cause, recording.fault_steps, recording.family, recording.is_swell, recording.batches)
    assert found == described
    assert recording.samples[0].scalars["lambda_max"] == 150.0
    assert "lambda_max" not in recording.samples[1].scalars
    column = recording.samples[0].statistic("decoupling")
    assert column is not None
    assert column.tolist() == [0.5, 0.5]
    assert scored(recording).alarms == ()


def test_alarm_before_the_fault_is_false() -> None:
    samples = list(streams.exponential(start=100, rate=0.2, decoupling=1e-6, steps=150))
    natural = scored(Recording(name="a", samples=samples, cause=""))
    blamed = scored(Recording(name="a", samples=samples, cause="data", fault_steps=(134,)))
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
