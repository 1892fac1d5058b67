"""The table of scores that `spikewatch evaluate` prints. Pure: a summary in, lines of text out.

A row for each run, a row for each family of runs, and the totals. Runs whose spikes are slow swells in a wide band of
noise have uncertain labels: their totals stand apart, below those of the other runs.
"""

from __future__ import annotations

from server.evaluation.scores import RunScore, Summary, summarise


def lines(summary: Summary) -> list[str]:
    """Return the lines of the table: one for each run, one for each family, then the totals."""
    width = max((len(run.name) for run in summary.runs), default=4)
    rows = [f"{'run':{width}}  {'cause':20} {'events':>6} {'early':>5} {'alarms':>6} {'false':>5}  leads"]
    for run in summary.runs:
        leads = " ".join(str(event.onset - alarm.step) for event, alarm in run.recalled)
        rows.append(
            f"{run.name:{width}}  {run.cause:20} {len(run.events):6} {len(run.recalled):5} "
            f"{len(run.alarms):6} {len(run.false):5}  {leads}"
        )
    clear = [run for run in summary.runs if not run.is_swell]
    swells = [run for run in summary.runs if run.is_swell]
    lines = [*rows, "", *_families(summary.runs), "", *_totals(summarise(clear) if swells else summary)]
    return [*lines, "", "slow swells, scored apart", *_totals(summarise(swells))] if swells else lines


def _families(runs: tuple[RunScore, ...]) -> list[str]:
    """Return a row for each family, with its runs without slow swells; none where all runs are of one family."""
    names = sorted({run.family for run in runs})
    if len(names) < 2:
        return []
    width = max(6, *map(len, names))
    heads = (("runs", 5), ("events", 6), ("early", 5), ("precision", 9), ("false per 1,000", 15), ("lead", 5))
    rows = [" ".join([f"{'family':{width}}", *(f"{head:>{wide}}" for head, wide in heads)])]
    for name in names:
        own = summarise(run for run in runs if run.family == name and not run.is_swell)
        rows.append(
            f"{name or 'other':{width}} {len(own.runs):5} {own.events:6} {own.recalled:5} {own.precision:9.2f} "
            f"{own.false_per_1000_clean:15.2f} {_text(own.median_lead):>5}"
        )
    return rows


def _totals(summary: Summary) -> list[str]:
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
    return [f"{name:40} {value}" for name, value in totals]


def _text(value: float | None, form: str = ".0f") -> str:
    return "–" if value is None else format(value, form)
