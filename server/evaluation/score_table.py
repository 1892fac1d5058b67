"""The tables that `spikewatch evaluate` prints. Pure: an evaluation in, lines of text out.

First the detectors with and without curvature side by side, with confidence intervals over runs; then a row for full
batches, mini-batches, slow swells and each family of runs; then every method by the same rules. Runs whose spikes are
slow swells in a wide band of noise have uncertain labels: they count in their own row only.
"""

from __future__ import annotations

from server.evaluation.evaluation import RANDOM, WITH, WITHOUT, Evaluation
from server.evaluation.measures import COVERAGE, DRAWS, MEASURES, Estimate, draws, measure
from server.evaluation.recording import FULL_BATCH, MINI_BATCH

GROUP_COLUMNS = (
    ("early", "early", 6),
    ("precision", "prec", 5),
    ("healthy", "healthy", 7),
    ("clean", "free", 5),
    ("lead", "lead", 5),
    ("peak", "peak", 5),
    ("band", "band", 5),
    ("width", "width", 6),
    ("date", "date", 5),
    ("height", "height", 6),
    ("cause", "cause", 5),
)
"""Measure, heading and width of each column of the table of groups."""
LEGEND = (
    "healthy, free: false alarms per 1,000 healthy and per 1,000 event-free steps; lead, peak: median steps from the",
    "alarm to the onset and to the peak; band: onset inside the first range; width: of the range over the time left;",
    "date, height, cause: share that is right (within a factor of two and of three)",
)
WHOLE_NUMBERS = ("lead", "peak")
"""Measures that are numbers of steps."""


def lines(evaluation: Evaluation, *, with_runs: bool = False) -> list[str]:
    """Return the lines of all tables; those of each run only if asked."""
    clear = evaluation.only(lambda truth: not truth.is_swell)
    rows = [*_runs(evaluation), ""] if with_runs else []
    rows += _totals(clear)
    rows += ["", *_groups(evaluation)]
    if any(one.rules for one in evaluation.recordings):
        rows += ["", *_methods(clear)]
    named = [one.truth.name for one in evaluation.recordings if one.with_curvature.bad_batches]
    rows += ["", *LEGEND]
    return [*rows, "", f"bad batch named in: {', '.join(named) or 'none'}"]


def _runs(evaluation: Evaluation) -> list[str]:
    width = max((len(one.truth.name) for one in evaluation.recordings), default=4)
    rows = [
        f"{'run':{width}}  {'cause':20} {'curvature':9} {'spikes':>6} {'early':>5} {'alarms':>6} {'false':>5}  leads"
    ]
    for one in evaluation.recordings:
        for label, run in (("with", one.with_curvature), ("without", one.without_curvature)):
            leads = " ".join(str(recall.lead) for recall in run.recalled)
            rows.append(
                f"{run.name:{width}}  {run.truth.cause:20} {label:9} {len(run.events):6} {len(run.recalled):5} "
                f"{len(run.alarms):6} {len(run.false):5}  {leads}".rstrip()
            )
    return rows


def _totals(evaluation: Evaluation) -> list[str]:
    """Return the table of all measures, with and without curvature."""
    count = len(evaluation.recordings)
    spikes = sum(len(one.with_curvature.events) for one in evaluation.recordings if one.truth.is_intrinsic)
    weights = draws(count)
    methods = evaluation.methods
    rows = [
        f"{count} runs with {spikes} spikes that arose by themselves; in brackets: {100 * COVERAGE:.0f} % intervals "
        f"over runs ({DRAWS:,} draws)",
        "",
        f"{'':46} {'with curvature':24} {'without curvature':24}".rstrip(),
    ]
    for name, one in MEASURES.items():
        cells = [_cell(name, measure(one, methods[method], weights)) for method in (WITH, WITHOUT)]
        rows.append(f"{one.title:46} {cells[0]:24} {cells[1]:24}".rstrip())
    chance = measure(MEASURES["early"], methods[RANDOM]).value
    if chance is not None:
        rows.append(f"{'early recall of as many alarms at random':46} {_number('early', chance)}")
    return rows


def _groups(evaluation: Evaluation) -> list[str]:
    """Return two rows for each group of runs: with and without curvature."""
    clear = evaluation.only(lambda truth: not truth.is_swell)
    groups = [
        ("full batch", clear.only(lambda truth: truth.batches == FULL_BATCH)),
        ("mini-batch", clear.only(lambda truth: truth.batches == MINI_BATCH)),
        ("slow swells, apart", evaluation.only(lambda truth: truth.is_swell)),
    ]
    families = sorted({one.truth.family for one in evaluation.recordings})
    if len(families) > 1:
        groups += [(family or "other", _of_family(clear, family)) for family in families]
    shown = [(title, own) for title, own in groups if own.recordings]
    if not shown:
        return []
    width = max(len(title) for title, _ in shown)
    heads = " ".join(f"{heading:>{wide}}" for _, heading, wide in GROUP_COLUMNS)
    rows = [f"{'group':{width}} {'curvature':9} {'runs':>4} {'spikes':>6} {heads}"]
    for title, own in shown:
        for label, method in (("with", WITH), ("without", WITHOUT)):
            runs = own.methods[method]
            spikes = sum(len(run.events) for run in runs if run.truth.is_intrinsic)
            head = (
                f"{title:{width}} {label:9} {len(runs):4} {spikes:6}"
                if label == "with"
                else (f"{'':{width}} {label:9} {'':4} {'':6}")
            )
            cells = " ".join(
                f"{_number(name, measure(MEASURES[name], runs).value):>{wide}}" for name, _, wide in GROUP_COLUMNS
            )
            rows.append(f"{head} {cells}")
    return rows


def _of_family(evaluation: Evaluation, family: str) -> Evaluation:
    return evaluation.only(lambda truth: truth.family == family)


def _methods(evaluation: Evaluation) -> list[str]:
    """Return a row for each method."""
    weights = draws(len(evaluation.recordings))
    methods = evaluation.methods
    width = max(map(len, methods))
    rows = [
        f"{'method':{width}} {'early recall':20} {'precision':20} {'healthy':>7} {'free':>6} {'lead':>5} {'peak':>5}"
    ]
    for name, runs in methods.items():
        own = weights if len(runs) == len(evaluation.recordings) else None
        cells = [_cell(key, measure(MEASURES[key], runs, own), with_count=False) for key in ("early", "precision")]
        numbers = [_number(key, measure(MEASURES[key], runs).value) for key in ("healthy", "clean", "lead", "peak")]
        rows.append(
            f"{name:{width}} {cells[0]:20} {cells[1]:20} "
            f"{numbers[0]:>7} {numbers[1]:>6} {numbers[2]:>5} {numbers[3]:>5}"
        )
    return rows


def _cell(name: str, estimate: Estimate, *, with_count: bool = True) -> str:
    """Return a value with its interval, and the number of cases behind a share of few."""
    text = _number(name, estimate.value)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{_number(name, estimate.low)}, {_number(name, estimate.high)}]"
    is_rate = name in ("healthy", "clean")
    return f"{text} of {estimate.count}" if with_count and estimate.count and not is_rate else text


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if name in WHOLE_NUMBERS else f"{value:.2f}"
