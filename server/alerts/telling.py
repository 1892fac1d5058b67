"""The telling of a run: its samples in, its alerts out, as the server raises them and people read them. Pure.

Owns the pair of detectors and lifecycle of one writer, without alert rules and silences. A sample is judged with those
before it alone, so that the alerts of a stored run are the same whether it is read live or years later.

>>> from server.models import Sample
>>> telling = Telling("run")
>>> for step in range(60):
...     for alert in telling.update(Sample(step=step, time=float(step), scalars={"loss": 1.0 if step < 50 else 4.0})):
...         print(step, alert.level, alert.title)
50 watch Loss spike at step 50
51 critical Loss spike at step 50
"""

from __future__ import annotations

import msgspec

from server.alerts.lifecycle import AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.detectors.sensitivity import USUAL
from server.models import Alert, Sample, Verdict

LOSS_CHANGED = " The loss is {name} now, and the detectors began anew."
"""Sentence that ends the alerts of a run whose loss becomes another scalar."""


class Telling:
    """The detectors and the alerts of one writer. Not thread-safe."""

    def __init__(self, run_id: str, sensitivity: float = USUAL) -> None:
        """``sensitivity`` is that of the predictions (`server.detectors.sensitivity`)."""
        self._suite = DetectorSuite(sensitivity)
        self._lifecycle = AlertLifecycle(run_id)
        self._last_step = 0
        self.verdict: Verdict | None = None
        """Verdict on the last sample; None before the first one."""

    def update(self, sample: Sample) -> list[Alert]:
        """Return the alerts that one more sample opened, changed or closed. Samples arrive in the order of logging."""
        before = self._suite.judged_loss
        verdict = self._suite.update(sample)
        alerts = []
        if before not in (None, self._suite.judged_loss):
            alerts = self._lifecycle.begin_anew(sample.time, LOSS_CHANGED.format(name=self._suite.judged_loss))
        if sample.is_late:
            verdict = msgspec.structs.replace(verdict, step=max(verdict.step, self._last_step))
        else:
            self._last_step = sample.step
        self.verdict = verdict
        return [*alerts, *self._lifecycle.apply(verdict, sample.time, sample.attempt)]
