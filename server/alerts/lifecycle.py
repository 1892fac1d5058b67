"""One incident, one alert: opened, changed, settled, resolved.

Owns the life of the alerts of one writer: turns verdicts into `Alert`s, decides what is worth telling again, and
holds each prediction against what came. Does no I/O and reads no clock; times are the caller's. After
`restore(snapshot())` the same verdicts give the same alerts with the same ids, which makes a replay harmless.

* An alert opens with the first finding of its kind and keeps the highest level it reached.
* It is told again only when its level or cause changed, its date moved by more than two steps and a tenth of what
  remains, or 50 steps passed.
* It is resolved when its finding has been absent for 20 steps; a finding that comes back before that belongs to it.
* A prediction is held against the first date it gave, `first_predicted_step`: a spike within that band is a hit,
  early or late outside it. No spike by the end of the latest band and a margin, and no sign any more: false. A mere
  watch that passes is resolved without a result: it claimed nothing.
* Findings of one kind may stand side by side where each has a key, as those of rules do: one alert for each.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from server.models import Alert, AlertKind, AlertLevel, AlertState, Finding, Outcome, PredictedStep, Verdict

SNAPSHOT_VERSION: Final = 1
NAMESPACE: Final = uuid.UUID("5d1f5d3e-61f7-5a3c-9a57-0d2b54f5c0de")
QUIET: Final = 20
"""Steps without its finding after which an alert is resolved."""
REFRESH: Final = 50
"""Steps after which a standing alert is told again with fresh evidence."""
PAUSE: Final = 5
"""Steps between two tellings of a date that moves."""
MARGIN: Final = 20
"""Steps that a prediction is waited for beyond its band."""
RANK: Final = {AlertLevel.WATCH: 0, AlertLevel.WARNING: 1, AlertLevel.CRITICAL: 2}


class Incident(msgspec.Struct):
    """An open alert and what its lifecycle needs."""

    alert: Alert
    held_step: int
    """Last step at which its finding held."""


class _State(msgspec.Struct):
    version: int
    run_id: str
    attempt: int = 0
    incidents: dict[str, Incident] = {}
    """By slot: a kind, with a key where it has one."""
    silenced: dict[str, float] = {}
    """Alert id to Unix time."""


class AlertLifecycle:
    """The alerts of one writer of a run. Not thread-safe."""

    def __init__(self, run_id: str) -> None:
        self._state = _State(version=SNAPSHOT_VERSION, run_id=run_id)

    @property
    def open(self) -> tuple[Alert, ...]:
        """Those not resolved, oldest first."""
        return tuple(sorted((i.alert for i in self._state.incidents.values()), key=lambda a: (a.step, a.kind)))

    def apply(self, verdict: Verdict, time: float, attempt: int = 0) -> list[Alert]:
        """The alerts that this verdict opened, changed or closed, in the order of their telling.

        `time` is the Unix time that opened and closed alerts carry: pass the sample's, so that a replay repeats it.
        """
        state = self._state
        told: list[Alert] = []
        if attempt != state.attempt:
            told += self.close_all(time)
            state.attempt = attempt
        if not verdict.findings and not state.incidents:
            return told
        findings = {finding.slot: finding for finding in verdict.findings}
        settled = self._settle(findings, verdict.step, time)
        told += [] if settled is None else [settled]
        for finding in findings.values():
            alert = self._hold(finding, findings, settled, verdict.step, time)
            if alert is not None:
                told.append(alert)
        told += self._expire(findings, verdict.step, time)
        return told

    def report(self, finding: Finding, step: int, time: float) -> Alert | None:
        """The alert of a finding that no sample brought, where it is worth telling: the clock found it."""
        return self._hold(finding, {finding.slot: finding}, None, step, time)

    def end(self, slot: str, step: int, time: float, note: str) -> Alert | None:
        """Resolve the alert of one slot at once, and say why; None when none is open there."""
        incident = self._state.incidents.pop(slot, None)
        return None if incident is None else self._resolve(incident, step, time, None, note)

    def close_all(self, time: float) -> list[Alert]:
        """Resolve every open alert: the run ended, or stepped back. Predictions not yet due get no result."""
        told = [
            self._resolve(incident, incident.alert.updated_step, time, None, "")
            for incident in self._state.incidents.values()
        ]
        self._state.incidents.clear()
        return told

    def acknowledge(self, alert_id: str) -> Alert | None:
        """The alert, acknowledged; None when it is not open here."""
        for incident in self._state.incidents.values():
            if incident.alert.id == alert_id:
                incident.alert = msgspec.structs.replace(incident.alert, state=AlertState.ACKNOWLEDGED.value)
                return incident.alert
        return None

    def silence(self, alert_id: str, until: float) -> Alert | None:
        """Mark the alert silent until a Unix time; None when it is not open here. The alert itself lives on."""
        for incident in self._state.incidents.values():
            if incident.alert.id == alert_id:
                self._state.silenced[alert_id] = until
                return incident.alert
        return None

    def is_silenced(self, alert_id: str, time: float) -> bool:
        """Whether notifications of this alert are to be held back at `time`."""
        return self._state.silenced.get(alert_id, 0.0) > time

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(self._state)

    @classmethod
    def restore(cls, data: bytes) -> AlertLifecycle:
        """Raises `ValueError` for anything but a snapshot of this version (`msgspec.DecodeError` is one)."""
        state = msgspec.msgpack.decode(data, type=_State)
        if state.version != SNAPSHOT_VERSION:
            raise ValueError(f"snapshot version {state.version}, expected {SNAPSHOT_VERSION}")
        book = cls(state.run_id)
        book._state = state
        return book

    def _hold(
        self,
        finding: Finding,
        findings: dict[str, Finding],
        settled: Alert | None,
        step: int,
        time: float,
    ) -> Alert | None:
        """Open the alert of a finding, or change it where the change is worth telling."""
        incident = self._state.incidents.get(finding.slot)
        if incident is None:
            if finding.kind is AlertKind.SPIKE_PREDICTED and _came(findings) is not None:
                return None
            return self._open(finding, settled, step, time)
        incident.held_step = step
        before = incident.alert
        level = max(AlertLevel(before.level), finding.level, key=RANK.__getitem__)
        changed = (
            level != before.level
            or (before.first_predicted_step is None and finding.predicted_step is not None)
            or finding.cause != before.cause
            or (step - before.updated_step >= PAUSE and _moved(before.predicted_step, finding.predicted_step, step))
            or step - before.updated_step >= REFRESH
        )
        if not changed:
            return None
        evidence = {**before.evidence, **finding.evidence, **_warned(before, level, step)}
        incident.alert = msgspec.structs.replace(
            before,
            level=level.value,
            title=finding.title,
            message=finding.message + _forewarning(evidence),
            cause=finding.cause.value,
            predicted_step=finding.predicted_step or before.predicted_step,
            first_predicted_step=before.first_predicted_step or finding.predicted_step,
            layers=finding.layers or before.layers,
            layer_shares=finding.layer_shares if finding.layers else before.layer_shares,
            evidence=evidence,
            advice=finding.advice,
            updated_step=step,
        )
        return incident.alert

    def _open(self, finding: Finding, settled: Alert | None, step: int, time: float) -> Alert:
        state = self._state
        name = f"{state.run_id}:{state.attempt}:{finding.slot}:{step}"
        if finding.key:
            name += f":{time}"  # silence may begin twice at one step
        evidence = dict(finding.evidence)
        if finding.kind is AlertKind.SPIKE and settled is not None and settled.outcome is not None:
            evidence["prediction_id"] = settled.id
            evidence["predicted_at_step"] = settled.step
            evidence["lead_steps"] = settled.outcome.lead
            evidence["prediction_result"] = settled.outcome.result
        alert = Alert(
            id=str(uuid.uuid5(NAMESPACE, name)),
            run_id=state.run_id,
            kind=finding.kind.value,
            level=finding.level.value,
            state=AlertState.OPEN.value,
            step=step,
            title=finding.title,
            message=finding.message + _forewarning(evidence),
            predicted_step=finding.predicted_step,
            first_predicted_step=finding.predicted_step,
            layers=finding.layers,
            layer_shares=finding.layer_shares,
            cause=finding.cause.value,
            evidence=evidence,
            advice=finding.advice,
            opened_at=time,
            updated_step=step,
            attempt=state.attempt,
        )
        alert = msgspec.structs.replace(alert, evidence={**evidence, **_warned(alert, finding.level, step)})
        state.incidents[finding.slot] = Incident(alert, step)
        return alert

    def _settle(self, findings: dict[str, Finding], step: int, time: float) -> Alert | None:
        """Close the open prediction if what it predicted has come."""
        incident = self._state.incidents.get(AlertKind.SPIKE_PREDICTED)
        came = _came(findings)
        if incident is None or came is None:
            return None
        band = incident.alert.first_predicted_step
        result: Literal["hit", "early", "late"] = "hit"
        if band is not None:
            result = "early" if came.step < band.low else "late" if came.step > band.high else "hit"
        lead = came.step - incident.alert.step
        del self._state.incidents[AlertKind.SPIKE_PREDICTED]
        return self._resolve(
            incident,
            step,
            time,
            Outcome(result=result, step=came.step, lead=lead),
            f" It came at step {came.step}: lead {lead} steps.",
        )

    def _expire(self, findings: dict[str, Finding], step: int, time: float) -> list[Alert]:
        """Close what has been quiet long enough."""
        told = []
        for slot, incident in list(self._state.incidents.items()):
            if slot in findings or step - incident.held_step < QUIET:
                continue
            alert = incident.alert
            if slot != AlertKind.SPIKE_PREDICTED or alert.level == AlertLevel.WATCH:
                told.append(self._resolve(incident, step, time, None, ""))
            else:
                band = alert.predicted_step
                last = incident.held_step if band is None else max(band.high, incident.held_step)
                if step < last + MARGIN:
                    continue
                outcome = Outcome(result="false", step=None, lead=None)
                told.append(self._resolve(incident, step, time, outcome, f" It did not come by step {step}."))
            del self._state.incidents[slot]
        return told

    def _resolve(self, incident: Incident, step: int, time: float, outcome: Outcome | None, note: str) -> Alert:
        alert = incident.alert
        self._state.silenced.pop(alert.id, None)
        return msgspec.structs.replace(
            alert,
            state=AlertState.RESOLVED.value,
            message=alert.message + note,
            outcome=outcome,
            closed_at=time,
            updated_step=step,
        )


def _came(findings: dict[str, Finding]) -> Finding | None:
    """What a prediction waits for: a spike, or a loss that is no number any more."""
    spike = findings.get(AlertKind.SPIKE)
    if spike is not None:
        return spike
    nonfinite = findings.get(AlertKind.NONFINITE)
    return nonfinite if nonfinite is not None and nonfinite.level is AlertLevel.CRITICAL else None


def _warned(alert: Alert, level: AlertLevel, step: int) -> dict[str, float | int | str | None]:
    """The step at which a prediction first reached warning, as evidence."""
    if alert.kind != AlertKind.SPIKE_PREDICTED or level is AlertLevel.WATCH or "warned_at_step" in alert.evidence:
        return {}
    return {"warned_at_step": step}


def _moved(before: PredictedStep | None, now: PredictedStep | None, step: int) -> bool:
    """Whether a date moved by more than two steps and a tenth of what remained. What is overdue always moves."""
    if now is None or now.best <= step + 1:
        return False
    return before is None or abs(now.best - before.best) > max(2.0, 0.1 * abs(before.best - step))


def _forewarning(evidence: Mapping[str, float | int | str | None]) -> str:
    """What a spike's message says of the prediction that it settled."""
    if "lead_steps" not in evidence:
        return ""
    return f" It had been predicted at step {evidence['predicted_at_step']}: lead {evidence['lead_steps']} steps."
