"""The telling of a stored run: its alerts are those that the server raised while it was live."""

from __future__ import annotations

from pathlib import Path

from client_sdk.protocol import Alert
from server.alerts.lifecycle import AlertLifecycle
from server.alerts.telling import Telling
from server.evaluation.recordings import read_recordings
from server.models import Sample
from server.pipeline.detector_state import DetectorState

DATA = Path(__file__).parents[2] / "data"


def told(samples: list[Sample]) -> list[Alert]:
    telling = Telling("run")
    return [alert for sample in samples for alert in telling.update(sample)]


def test_the_alerts_are_those_of_the_server() -> None:
    for recording in read_recordings(DATA):
        state = DetectorState(rank=0, alerts=AlertLifecycle("run"))
        for sample in recording.samples:
            state.update(sample, sample.time)
        latest = {alert.id: alert for alert in told(list(recording.samples))}
        assert latest == state.changed
        assert latest or recording.name == "char-transformer"


def test_a_scalar_that_becomes_the_loss_ends_the_alerts_as_on_the_server() -> None:
    names = ["train/loss"] * 60 + ["loss"] * 20
    samples = [
        Sample(step=step, time=float(step), scalars={name: 9.0 if step >= 50 else 1.0})
        for step, name in enumerate(names)
    ]
    state = DetectorState(rank=0, alerts=AlertLifecycle("run"))
    for sample in samples:
        state.update(sample, sample.time)
    alerts = told(samples)
    assert {alert.id: alert for alert in alerts} == state.changed
    assert any("The loss is loss now" in alert.message for alert in alerts)


def test_late_records_do_not_turn_the_alerts_back() -> None:
    samples = [Sample(step=step, time=float(step), scalars={"loss": 1.0 if step < 50 else 9.0}) for step in range(60)]
    late = Sample(step=20, time=61.0, scalars={"loss": 1.0}, is_late=True)
    alerts = told([*samples, late])
    assert all(alert.updated_step >= 50 for alert in alerts)
