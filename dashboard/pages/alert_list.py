"""The choice of alerts on the page of all alerts and their incidents, as the query of its address says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from client_sdk.answers import Alert, RunSummary
from client_sdk.vocabulary import LEVEL_RANK, AlertKind, AlertLevel
from dashboard.numbers import unix_time

LEVELS: Final[Mapping[str, str]] = {"": "all", AlertLevel.WARNING: "warning and above", AlertLevel.CRITICAL: "critical"}
"""Words for the lowest levels to choose from, the first of which is the default."""
STATES: Final[Mapping[str, str]] = {"": "all", "open": "open", "settled": "settled"}
"""Words for the states, the first of which is the default."""
KINDS: Final[Mapping[str, str]] = {"": "all", **{kind.value: kind.value.replace("-", " ") for kind in AlertKind}}
"""Words for the kinds, the first of which is the default."""
MAX_WORDS: Final = 20


@dataclass(frozen=True, kw_only=True)
class AlertQuery:
    """Everything that decides which alerts are listed. Malformed values fall back to their defaults."""

    words: tuple[str, ...] = ()
    """Parts of texts, all of which an alert must have in its title, message, layers, run or project."""
    level: str = ""
    state: str = ""
    kind: str = ""
    project: str = ""

    def matches(self, alert: Alert, run: RunSummary | None) -> bool:
        """Return whether an alert is listed. ``run``: its run, None if it is not known."""
        if self.level and LEVEL_RANK.get(alert.level, 0) < LEVEL_RANK[self.level]:
            return False
        if self.state and alert.is_open != (self.state == "open"):
            return False
        if self.kind and alert.kind != self.kind:
            return False
        project = "" if run is None else run.project
        if self.project and project != self.project:
            return False
        name = alert.run_id if run is None else f"{run.title} {run.id}"
        texts = (alert.title, alert.message, alert.kind.replace("-", " "), alert.cause, name, project, *alert.layers)
        text = " ".join(texts).lower()
        return all(word in text for word in self.words)


def parse_alert_query(query: str) -> AlertQuery:
    """Return the query in an address. Accepts any text.

    >>> parse_alert_query("?q=h.3+Spike&level=critical&state=else")
    AlertQuery(words=('h.3', 'spike'), level='critical', state='', kind='', project='')
    """
    try:
        given = {name: values[-1] for name, values in parse_qs(query.removeprefix("?"), max_num_fields=100).items()}
    except ValueError:  # too many fields
        given = {}
    return AlertQuery(
        words=tuple(given.get("q", "").lower().split()[:MAX_WORDS]),
        level=given["level"] if given.get("level") in LEVELS else "",
        state=given["state"] if given.get("state") in STATES else "",
        kind=given["kind"] if given.get("kind") in KINDS else "",
        project=given.get("project", ""),
    )


def incidents(alerts: Iterable[Alert], query: AlertQuery, runs: Mapping[str, RunSummary]) -> list[tuple[Alert, ...]]:
    """Return the alerts of each incident in the order of their opening, the incidents with open alerts first.

    An incident is listed as a whole if one of its alerts matches, as a prediction and its spike explain each other.
    """
    known = list(alerts)
    came = [
        alert
        for alert in known
        if alert.kind == AlertKind.SPIKE_PREDICTED and alert.outcome is not None and alert.outcome.step is not None
    ]
    found: dict[tuple[str, str], list[Alert]] = {}
    for alert in known:
        found.setdefault((alert.run_id, _incident_of(alert, came)), []).append(alert)
    listed = [
        tuple(sorted(members, key=lambda alert: (unix_time(alert.opened_at) or 0.0, alert.step)))
        for members in found.values()
        if any(query.matches(alert, runs.get(alert.run_id)) for alert in members)
    ]
    return sorted(listed, key=_recency, reverse=True)


def _incident_of(alert: Alert, came: Sequence[Alert]) -> str:
    """Return the incident of an alert. ``came``: the predictions whose spikes came.

    A spike that opened as a watch, before it settled its prediction, does not name the prediction itself: it is the one
    that was open then.
    """
    if alert.kind != AlertKind.SPIKE:
        return alert.incident
    within = (one for one in came if one.run_id == alert.run_id and one.step <= alert.step <= one.updated_step)
    return next((one.incident for one in within), alert.incident)


def _recency(members: Sequence[Alert]) -> tuple[bool, float]:
    newest = max(unix_time(alert.opened_at) or 0.0 for alert in members)
    return any(alert.is_open for alert in members), newest
