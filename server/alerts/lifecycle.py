"""The lifecycle of alerts: opened, changed, settled, resolved or ended. One incident is one alert.

Owns the alerts of one writer: turns verdicts into `Alert`s, decides which changes are worth reporting, and compares
each prediction to what happened. Does not decide who is notified, does no I/O, reads no clock; callers pass the times.
After `restore(snapshot())` the same verdicts give the same alerts with the same ids, so a replay is harmless.

* An alert opens with the first finding of its kind and keeps the highest level it reached.
* A change is reported only if the level or the cause changed, if the forecast moved by more than two steps and a tenth
  of the remaining ones, or if the loss of a spike rose by another tenth of its height, or if 50 records passed.
* An alert is resolved when its finding has been absent for 20 records. Its last report has the final text and numbers
  of the finding. A finding that returns before that belongs to the same alert, but for a spike that began after the
  last one was over: that is another alert.
* A prediction keeps its forecasts as they were reported, and is compared to the first one at level warning or above,
  because nobody was sent an earlier one: a spike within that range is a hit, otherwise early or late. The lead counts
  from that warning. Without a spike by the end of the latest range and a margin, and without any further sign, the
  prediction is false. A mere watch that passes is resolved without a result, because it claimed nothing.
* An alert whose finding holds when the run ends is ended, not resolved, because nothing recovered. If the run goes on,
  it is open again and resolved like any other.
* Findings of one kind may hold at the same time if each has a key, as those of alert rules do: one alert for each.

>>> from server.models import Stage
>>> lifecycle = AlertLifecycle("run")
>>> spike = Finding(kind=AlertKind.SPIKE, level=AlertLevel.WARNING, step=7, title="Loss spike", message="It rose.")
>>> def verdict(step, *findings):
...     return Verdict(step=step, stage=Stage.STABLE, stability_ratio=None, findings=findings)
>>> [alert.state for alert in lifecycle.apply(verdict(8, spike), time=1.0)]
['open']
>>> [alert.state for step in range(9, 40) for alert in lifecycle.apply(verdict(step), time=2.0)]
['resolved']
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from client_sdk.protocol import Forecast
from client_sdk.vocabulary import LEVEL_RANK
from server.models import Alert, AlertKind, AlertLevel, AlertState, Finding, Outcome, PredictedStep, Verdict

SNAPSHOT_VERSION: Final = 1
NAMESPACE: Final = uuid.UUID("5d1f5d3e-61f7-5a3c-9a57-0d2b54f5c0de")
"""Namespace of the alert ids (version 5 UUIDs)."""
QUIET: Final = 20
"""Number of records without its finding after which an alert is resolved."""
REFRESH: Final = 50
"""Number of records after which an open alert is reported again with fresh evidence."""
PAUSE: Final = 5
"""Smallest number of steps between two reports of a forecast that moves."""
MARGIN: Final = 20
"""Number of records that a prediction is still waited for beyond its range."""
SAME_STEP: Final = 2
"""Number of steps within which findings of `ONE_EVENT` are about the same event."""
ONE_EVENT: Final = (AlertKind.SPIKE, AlertKind.BAD_BATCH, AlertKind.NONFINITE)
"""Kinds that describe one event in different words if they are about the same step."""
ENDED_SO: Final = " The run ended before it was over."
"""Sentence that the message of an ended alert has at its end."""
MAX_FORECASTS: Final = 200
"""Maximum number of forecasts that an alert keeps: the first, those that raised the level, the latest, and others."""


class Incident(msgspec.Struct):
    """An open alert with the last step of its finding."""

    alert: Alert
    held_step: int
    """Last step at which the finding held."""
    unreported: Finding | None = None
    """Latest finding, if the alert does not show its text and numbers yet."""
    onset: int | None = None
    """Step that the finding is about; None for alerts of versions that did not keep it."""


class _State(msgspec.Struct):
    version: int
    run_id: str
    attempt: int = 0
    step: int | None = None
    """Step of the last verdict; None in snapshots of versions that did not keep it."""
    incidents: dict[str, Incident] = {}
    """Open and ended alerts by slot, which is the kind with the key of the finding."""


class AlertLifecycle:
    """The alerts of one writer of a run. Not thread-safe."""

    def __init__(self, run_id: str) -> None:
        self._state = _State(version=SNAPSHOT_VERSION, run_id=run_id)

    @property
    def open(self) -> tuple[Alert, ...]:
        """Alerts that are neither resolved nor ended, oldest first."""
        known = (incident.alert for incident in self._state.incidents.values())
        return tuple(sorted((a for a in known if a.state == AlertState.OPEN), key=lambda a: (a.step, a.kind)))

    def apply(self, verdict: Verdict, time: float, attempt: int = 0) -> list[Alert]:
        """Return the alerts that this verdict opened, changed or closed, in the order in which they are reported.

        `time` is the Unix time of opened and closed alerts. Pass that of the sample, so that a replay repeats it.
        """
        state = self._state
        changed: list[Alert] = []
        if attempt != state.attempt:
            changed += self._step_back(time)
            state.attempt = attempt
        state.step = verdict.step
        if not verdict.findings and not state.incidents:
            return changed
        changed += self._go_on()
        findings = {finding.slot: finding for finding in verdict.findings}
        settled = self._settle(findings, verdict.step, time)
        changed += [] if settled is None else [settled]
        changed += self._succeed(findings, verdict.step, time)
        for finding in findings.values():
            alert = self._hold(finding, findings, settled, verdict.step, time, interval=verdict.interval)
            if alert is not None:
                changed.append(alert)
        changed += self._expire(findings, verdict, time)
        return changed

    def report(self, finding: Finding, step: int, time: float) -> Alert | None:
        """Return the new or changed alert of a finding that comes from the clock instead of a sample, or None."""
        return self._hold(finding, {finding.slot: finding}, None, step, time)

    def end(self, slot: str, step: int, time: float, note: str) -> Alert | None:
        """Resolve the alert of one slot at once and add a note to its message; None if no alert is open there."""
        incident = self._state.incidents.pop(slot, None)
        return None if incident is None else self._resolve(incident, step, time, None, note)

    def end_run(self, time: float) -> list[Alert]:
        """Close every open alert, because the run ended: as ended where the finding holds, else as resolved.

        Predictions that are not yet due get no result. Ended alerts are kept in case the run goes on.
        """
        state, closed, end = self._state, [], time
        for slot, incident in list(state.incidents.items()):
            if incident.alert.state == AlertState.ENDED:
                continue
            time = max(end, incident.alert.opened_at)  # an alert about silence opened after the last data
            if state.step is None or incident.held_step < state.step:
                closed.append(self._resolve(incident, incident.alert.updated_step, time, None, ""))
                del state.incidents[slot]
                continue
            over = self._resolve(incident, state.step, time, None, ENDED_SO)
            incident.alert = msgspec.structs.replace(over, state=AlertState.ENDED.value)
            incident.unreported = None
            closed.append(incident.alert)
        return closed

    def begin_anew(self, time: float, note: str) -> list[Alert]:
        """Resolve the alerts of the detectors, which begin anew, and add a note. Alerts of rules stay."""
        state, resolved = self._state, []
        for slot, incident in list(state.incidents.items()):
            if incident.alert.kind != AlertKind.CUSTOM_RULE:
                resolved.append(self._resolve(incident, incident.alert.updated_step, time, None, note))
                del state.incidents[slot]
        return resolved

    def _step_back(self, time: float) -> list[Alert]:
        """Resolve every open alert, because training went back. Ended ones stay so: a new attempt makes up for them."""
        resolved = [
            self._resolve(incident, incident.alert.updated_step, time, None, "")
            for incident in self._state.incidents.values()
            if incident.alert.state == AlertState.OPEN
        ]
        self._state.incidents.clear()
        return resolved

    def _go_on(self) -> list[Alert]:
        """Open the ended alerts again, because the run goes on."""
        reopened = []
        for incident in self._state.incidents.values():
            if incident.alert.state == AlertState.ENDED:
                incident.alert = msgspec.structs.replace(
                    incident.alert,
                    state=AlertState.OPEN.value,
                    message=incident.alert.message.removesuffix(ENDED_SO),
                    closed_at=None,
                )
                reopened.append(incident.alert)
        return reopened

    def snapshot(self) -> bytes:
        """Return the whole state. A lifecycle that is restored from it continues exactly where this one is."""
        return msgspec.msgpack.encode(self._state)

    @classmethod
    def restore(cls, data: bytes) -> AlertLifecycle:
        """Return the lifecycle that a snapshot was taken of.

        Raises `ValueError` for a snapshot of another version and for anything else (`msgspec.DecodeError` is one).
        """
        state = msgspec.msgpack.decode(data, type=_State)
        if state.version != SNAPSHOT_VERSION:
            raise ValueError(f"the snapshot has version {state.version}, but this server reads {SNAPSHOT_VERSION}")
        lifecycle = cls(state.run_id)
        lifecycle._state = state
        return lifecycle

    def _hold(
        self,
        finding: Finding,
        findings: dict[str, Finding],
        settled: Alert | None,
        step: int,
        time: float,
        *,
        interval: int = 1,
    ) -> Alert | None:
        """Open the alert of a finding, or change it if the change is worth reporting."""
        incident = self._state.incidents.get(finding.slot)
        if incident is None:
            if finding.kind is AlertKind.SPIKE_PREDICTED and _came(findings) is not None:
                return None
            return self._open(finding, settled, step, time)
        incident.held_step = step
        before = incident.alert
        level = max(AlertLevel(before.level), finding.level, key=LEVEL_RANK.__getitem__)
        changed = (
            level != before.level
            or (before.first_predicted_step is None and finding.predicted_step is not None)
            or finding.cause != before.cause
            or (step - before.updated_step >= PAUSE and _moved(before.predicted_step, finding.predicted_step, step))
            or (step - before.updated_step >= PAUSE * interval and _grew(before, finding))
            or step - before.updated_step >= REFRESH * interval
        )
        incident.unreported = None if changed else finding
        if not changed:
            return None
        evidence = {**before.evidence, **finding.evidence, **_warned(before, level, step)}
        predicted_step = finding.predicted_step or before.predicted_step
        incident.alert = msgspec.structs.replace(
            before,
            level=level.value,
            title=finding.title,
            message=finding.message + _forewarning(evidence),
            cause=finding.cause.value,
            predicted_step=predicted_step,
            forecasts=_extended(before.forecasts, predicted_step, level, step),
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
            name += f":{time}"  # a silence may begin twice at one step
        evidence = dict(finding.evidence)
        incident_id = self._shared_incident(finding, settled, step)
        if incident_id is not None:
            evidence["incident_id"] = incident_id
        if finding.kind is AlertKind.SPIKE and settled is not None and settled.outcome is not None:
            evidence["prediction_id"] = settled.id
            evidence["first_seen_at_step"] = settled.step
            evidence["predicted_at_step"] = settled.evidence.get("warned_at_step")
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
            forecasts=_extended((), finding.predicted_step, finding.level, step),
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
        state.incidents[finding.slot] = Incident(alert, step, onset=finding.step)
        return alert

    def _shared_incident(self, finding: Finding, settled: Alert | None, step: int) -> str | None:
        """Return the id of the incident that a new finding belongs to, or None if it is an incident of its own.

        A spike, a bad batch and a loss that is not finite are one incident if they are about the same step. They and a
        divergence are one incident if they open at the same record.
        """
        if finding.kind not in (*ONE_EVENT, AlertKind.DIVERGENCE):
            return None
        is_event = finding.kind in ONE_EVENT
        if is_event and settled is not None and settled.outcome is not None and settled.outcome.step is not None:
            return settled.id if abs(finding.step - settled.outcome.step) <= SAME_STEP else None
        for incident in self._state.incidents.values():
            alert = incident.alert
            if alert.kind not in (*ONE_EVENT, AlertKind.DIVERGENCE):
                continue
            is_same_step = (
                is_event
                and alert.kind in ONE_EVENT
                and incident.onset is not None
                and abs(finding.step - incident.onset) <= SAME_STEP
            )
            if is_same_step or alert.step == step:
                return str(alert.evidence.get("incident_id") or alert.id)
        return None

    def _settle(self, findings: dict[str, Finding], step: int, time: float) -> Alert | None:
        """Resolve the open prediction if what it predicted has come."""
        incident = self._state.incidents.get(AlertKind.SPIKE_PREDICTED)
        came = _came(findings)
        if incident is None or came is None:
            return None
        alert = incident.alert
        band = alert.judged_forecast
        result: Literal["hit", "early", "late"] = "hit"
        if band is not None:
            result = "early" if came.step < band.low else "late" if came.step > band.high else "hit"
        warned = alert.evidence.get("warned_at_step")
        lead = came.step - warned if isinstance(warned, int) else None
        outcome = Outcome(result=result, step=came.step, lead=lead, first_seen_lead=came.step - alert.step)
        del self._state.incidents[AlertKind.SPIKE_PREDICTED]
        return self._resolve(incident, step, time, outcome, f" It came at step {came.step}: {_led(alert, outcome)}.")

    def _succeed(self, findings: dict[str, Finding], step: int, time: float) -> list[Alert]:
        """Resolve the alert of a spike that was over before another one began."""
        finding, incident = findings.get(AlertKind.SPIKE), self._state.incidents.get(AlertKind.SPIKE)
        if finding is None or incident is None or incident.onset is None:
            return []
        if finding.step == incident.onset or finding.step <= incident.held_step:
            return []
        del self._state.incidents[AlertKind.SPIKE]
        return [self._resolve(incident, step, time, None, "")]

    def _expire(self, findings: dict[str, Finding], verdict: Verdict, time: float) -> list[Alert]:
        """Resolve the alerts whose findings have been absent for long enough."""
        resolved = []
        step = verdict.step
        for slot, incident in list(self._state.incidents.items()):
            if slot in findings or step - incident.held_step < QUIET * verdict.interval:
                continue
            alert = incident.alert
            if slot != AlertKind.SPIKE_PREDICTED or alert.level == AlertLevel.WATCH:
                resolved.append(self._resolve(incident, step, time, None, ""))
            else:
                band = alert.predicted_step
                last = incident.held_step if band is None else max(band.high, incident.held_step)
                if step < last + MARGIN * verdict.interval:
                    continue
                outcome = Outcome(result="false", step=None, lead=None)
                note = f" It did not come by step {step}.{_why_it_passed(alert, verdict)}"
                resolved.append(self._resolve(incident, step, time, outcome, note))
            del self._state.incidents[slot]
        return resolved

    def _resolve(self, incident: Incident, step: int, time: float, outcome: Outcome | None, note: str) -> Alert:
        alert, latest = incident.alert, incident.unreported
        if latest is not None and alert.kind != AlertKind.SPIKE_PREDICTED:
            evidence = {**alert.evidence, **latest.evidence}
            alert = msgspec.structs.replace(
                alert, title=latest.title, message=latest.message + _forewarning(evidence), evidence=evidence
            )
        return msgspec.structs.replace(
            alert,
            state=AlertState.RESOLVED.value,
            message=alert.message + note,
            outcome=outcome,
            closed_at=time,
            updated_step=step,
        )


def _came(findings: dict[str, Finding]) -> Finding | None:
    """Return the finding that settles a prediction: a spike, or a loss that is no longer finite.

    A spike of level watch settles it only if the predictor takes it for what it predicted, and predicts no more.
    """
    spike = findings.get(AlertKind.SPIKE)
    if spike is not None and (spike.level is not AlertLevel.WATCH or AlertKind.SPIKE_PREDICTED not in findings):
        return spike
    nonfinite = findings.get(AlertKind.NONFINITE)
    return nonfinite if nonfinite is not None and nonfinite.level is AlertLevel.CRITICAL else None


def _warned(alert: Alert, level: AlertLevel, step: int) -> dict[str, float | int | str | None]:
    """Return the step at which a prediction first reached level warning, as evidence."""
    if alert.kind != AlertKind.SPIKE_PREDICTED or level is AlertLevel.WATCH or "warned_at_step" in alert.evidence:
        return {}
    return {"warned_at_step": step}


def _led(alert: Alert, outcome: Outcome) -> str:
    """Return the lead of a prediction that came true, in words: from its warning, and from its first signs."""
    seen = f"first signs at step {alert.step}, {outcome.first_seen_lead} steps before"
    warned = alert.evidence.get("warned_at_step")
    if outcome.lead is None:
        return f"no warning was given ({seen})"
    if outcome.lead <= 0:
        return f"the warning came only at step {warned} ({seen})"
    return f"lead {outcome.lead} steps from the warning at step {warned}" + (
        "" if warned == alert.step else f" ({seen})"
    )


def _extended(
    forecasts: tuple[Forecast, ...], predicted_step: PredictedStep | None, level: AlertLevel, step: int
) -> tuple[Forecast, ...]:
    """Return the forecasts of an alert with the one that is reported now, at most `MAX_FORECASTS`.

    A forecast that repeats the last one is not added. If there are too many, every second one is dropped of those that
    neither come first or last nor changed the level.
    """
    if predicted_step is None:
        return forecasts
    new = Forecast(
        step=step, low=predicted_step.low, best=predicted_step.best, high=predicted_step.high, level=level.value
    )
    if forecasts and msgspec.structs.replace(forecasts[-1], step=step) == new:
        return forecasts
    path = (*forecasts, new)
    if len(path) <= MAX_FORECASTS:
        return path
    last = len(path) - 1
    return tuple(
        forecast for i, forecast in enumerate(path) if i % 2 == 0 or i == last or forecast.level != path[i - 1].level
    )


def _moved(before: PredictedStep | None, now: PredictedStep | None, step: int) -> bool:
    """Return whether a forecast moved by more than two steps and a tenth of the remaining ones.

    An overdue forecast moves with every step and does not count.
    """
    if now is None or now.best <= step + 1:
        return False
    return before is None or abs(now.best - before.best) > max(2.0, 0.1 * abs(before.best - step))


def _grew(before: Alert, finding: Finding) -> bool:
    """Return whether the peak of a spike rose by more than a tenth of the height that the alert shows."""
    shown, baseline = before.evidence.get("loss_peak"), before.evidence.get("loss_baseline")
    peak = finding.evidence.get("loss_peak")
    if not isinstance(shown, float) or not isinstance(baseline, float) or not isinstance(peak, float):
        return False
    return peak - shown > 0.1 * (shown - baseline)


def _why_it_passed(alert: Alert, verdict: Verdict) -> str:
    """Return why a predicted spike did not come, as a sentence that follows another one; "" if no signal shows it."""
    before, now = alert.evidence.get("stability_ratio"), verdict.stability_ratio
    if isinstance(before, float) and now is not None and before > 1.0 > now:
        return f" λ_max fell back from {before:.2f} to {now:.2f} × the limit."
    return ""


def _forewarning(evidence: Mapping[str, float | int | str | None]) -> str:
    """Return the sentence of a spike's message about the prediction that it settled."""
    if "lead_steps" not in evidence:
        return ""
    lead = evidence["lead_steps"]
    if not isinstance(lead, int):
        return f" It had been watched since step {evidence['first_seen_at_step']}, without a warning."
    if lead <= 0:
        return f" The warning came only at step {evidence['predicted_at_step']}."
    return f" It had been predicted at step {evidence['predicted_at_step']}: lead {lead} steps."
