"""The table as a document, docs/reference/set-ups.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date

from campaigns.set_ups.set_up import SetUp
from campaigns.set_ups.verdict import Verdict

HEAD = """# Set-ups that Spikewatch was tried with

`make set-ups` writes this page. Each row is a small training of a few steps on the CPU, in a process of its own, run
bare and watched. A *pass* means that the weights at the end are bit for bit the same; that ‖g‖, ‖w‖ and ‖Δw‖ of every
layer and the learning rate agree at every step with values that were taken in float64 around the optimizer's step
(relative error at most 0.002, the rounding of the weights included; a statistic may be absent at two steps);
that every loss is stored once; that λ_max, where it is measured, is within 2 % of that of a dense float64 Hessian from
its second reading on; and that there was no warning but the words shown. A *gap* is what is absent, with the
words of the SDK, or a fault that is known. What an integration records is in
[training frameworks](../how-to/frameworks.md).
"""


def page(results: Mapping[str, tuple[SetUp, Verdict]], versions: str, day: date) -> str:
    """Return the document."""
    return "\n".join(_lines(results, versions, day)) + "\n"


def _lines(results: Mapping[str, tuple[SetUp, Verdict]], versions: str, day: date) -> Iterator[str]:
    yield HEAD
    counts = [verdict.result for _, verdict in results.values()]
    yield f"{len(counts)} set-ups on {day:%Y-%m-%d}, with {versions}: {counts.count('pass')} pass, {_gaps(counts)}."
    group = ""
    for set_up, verdict in results.values():
        if set_up.group != group:
            group = set_up.group
            yield f"\n## {group}\n"
            yield "| set-up | result | words |"
            yield "|---|---|---|"
        yield f"| {set_up.name} | {verdict.result} | {_cell(verdict.words)} |"


def _gaps(counts: Sequence[str]) -> str:
    gaps, failures = counts.count("gap"), counts.count("fail")
    text = "1 has a gap" if gaps == 1 else f"{gaps} have a gap"
    return f"{text}, {failures} fail" if failures else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
