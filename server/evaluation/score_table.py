"""The table of scores that `spikewatch evaluate` prints. Pure: a summary in, lines of text out."""

from __future__ import annotations

from server.evaluation.scores import Summary


def lines(summary: Summary) -> list[str]:
    """Return the lines of the table: one for each run, then the totals."""
    width = max((len(run.name) for run in summary.runs), default=4)
    rows = [f"{'run':{width}}  {'cause':20} {'events':>6} {'early':>5} {'alarms':>6} {'false':>5}  leads"]
    for run in summary.runs:
        leads = " ".join(str(event.onset - alarm.step) for event, alarm in run.recalled)
        rows.append(
            f"{run.name:{width}}  {run.cause:20} {len(run.events):6} {len(run.recalled):5} "
            f"{len(run.alarms):6} {len(run.false):5}  {leads}"
        )
    lead, to_peak = _text(summary.median_lead), _text(summary.median_lead_to_peak)
    totals = (
        (
            "early recall",
            f"{summary.recalled}/{summary.events} (as many alarms at random: {summary.random_recall:.2f})",
        ),
        ("of injected faults", f"{summary.fault_recalled}/{summary.fault_events}"),
        ("precision", f"{summary.precision:.2f}"),
        ("false alarms per 1,000 healthy steps", f"{summary.false_per_1000_control:.2f}"),
        ("false alarms per 1,000 event-free steps", f"{summary.false_per_1000_clean:.2f}"),
        ("median lead to onset, to peak", f"{lead}, {to_peak} steps"),
        ("onset within the first band", _text(summary.in_band, ".2f")),
        ("date within a factor of two", _text(summary.within_factor_two, ".2f")),
        ("bad batch named in", ", ".join(summary.bad_batches_named) or "none"),
    )
    return [*rows, "", *(f"{name:40} {value}" for name, value in totals)]


def _text(value: float | None, form: str = ".0f") -> str:
    return "–" if value is None else format(value, form)
