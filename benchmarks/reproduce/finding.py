"""A finding: what a paper says, what was measured here, and the numbers that decide whether the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number that decides."""

    claim: str
    """Sentence that must hold, with its threshold."""
    found: str
    """Measured numbers that decide."""
    passed: bool
    reproduces: bool = True
    """Whether the claim held when it was last looked at; a failure of one that did not is no news."""

    @property
    def row(self) -> str:
        """Return the check as a row of a Markdown table."""
        verdict = "pass" if self.passed else "**fail**" if self.reproduces else "**does not reproduce**"
        return f"| {self.claim} | {self.found} | {verdict} |"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The reproduction of one claim."""

    name: str
    """Name of the figure's file."""
    title: str
    paper: str
    """Claim of the paper, and its source."""
    method: str
    """Description of the training and of the measurement."""
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    checks: Sequence[Check]
    figure: str
    """Picture as the text of an SVG file."""
    caption: str
    limits: Sequence[str] = field(default=())
    """Sentences on settings at which the finding does not reproduce, or was not tried."""

    @property
    def passed(self) -> bool:
        """Return whether every check passed that is known to reproduce."""
        return all(check.passed or not check.reproduces for check in self.checks)

    def markdown(self) -> str:
        """Return the section of the report."""
        lines = [
            f"## {self.title}", "", f"**What the paper says.** {self.paper}", "",
            f"**What is measured.** {self.method}", "",
            "| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header),
            *("| " + " | ".join(row) + " |" for row in self.rows), "",
            "| must hold | found | |", "|---|---|---|", *(check.row for check in self.checks), "",
            f"![{self.caption}](reproduce/{self.name}.svg)", "", f"*{self.caption}*", "",
        ]  # fmt: skip
        if self.limits:
            lines += ["Where it does not hold or was not tried:", "", *(f"- {limit}" for limit in self.limits), ""]
        return "\n".join(lines)


def span(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Return the smallest and the largest of some numbers as text.

    >>> span([1.0, 3.0, 2.0])
    '1.00 to 3.00'
    """
    return f"{form.format(min(values))} to {form.format(max(values))}"
