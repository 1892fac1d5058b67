"""The choice, order and groups of the list of runs, as the query of its address says. Pure."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from client_sdk.answers import RunSummary
from client_sdk.vocabulary import RunState
from dashboard.pages.config_differences import words as value_words
from dashboard.pages.fleet_rows import risk

STATES: Final[Mapping[str, str]] = {
    "": "all", "live": "live", "stale": "stale", "finished": "finished", "crashed": "crashed", "archived": "archived"
}  # fmt: skip
"""Words for the states to choose from, the first of which is the default."""
SORTS: Final[Mapping[str, str]] = {"risk": "risk", "newest": "newest", "name": "name"}
"""Words for the orders, the first of which is the default."""
GROUPS: Final[Mapping[str, str]] = {"": "live, then ended", "project": "project", "tag": "tag", "stage": "stage"}
"""Words for the groups besides the keys of the configuration, the first of which is the default."""
ENDED: Final = (RunState.FINISHED, RunState.CRASHED)
MAX_TERMS: Final = 20
MAX_KEYS: Final = 100
"""Number of keys of the configuration by which runs can be grouped."""
NO_VALUE: Final = "–"

Settings = Mapping[str, Any]
"""The configuration of a run with one key for each value, and what its optimizer says of itself."""

_CONDITION: Final = re.compile(r"^([^<>=!\s]+)(>=|<=|!=|>|<|=)(.+)$")
_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le, "=": operator.eq, "!=": operator.ne
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A comparison of one key of the configuration, such as lr>1e-3."""

    key: str
    sign: str
    value: str

    def holds(self, settings: Settings) -> bool:
        """Return whether the value of the key compares so: as numbers if both are, otherwise as text for equality."""
        found = value_of(settings, self.key)
        if found is None:
            return False
        one, other = _number(found), _number(self.value)
        if one is not None and other is not None:
            return _COMPARISONS[self.sign](one, other)
        if self.sign not in ("=", "!="):
            return False
        return _COMPARISONS[self.sign](value_words(found).lower(), self.value.lower())


@dataclass(frozen=True, kw_only=True)
class FleetQuery:
    """Everything that decides which runs are listed. Malformed values fall back to their defaults."""

    words: tuple[str, ...] = ()
    """Parts of texts, all of which a run must have in its name, project, id, stage or tags."""
    tags: tuple[str, ...] = ()
    """Tags, all of which a run must have."""
    conditions: tuple[Condition, ...] = ()
    """Conditions on the configuration, all of which must hold."""
    project: str = ""
    state: str = ""
    sort: str = "risk"
    group: str = ""
    """"", or one of `GROUPS`, or a key of the configuration."""

    @property
    def is_narrow(self) -> bool:
        """Whether something is searched or filtered, so that what is found should be seen at once."""
        return bool(self.words or self.tags or self.conditions or self.state)

    def matches(self, run: RunSummary, settings: Callable[[RunSummary], Settings], title: str = "") -> bool:
        """Return whether a run is listed. ``title``: name by which it can be told apart from the others."""
        if run.archived != (self.state == "archived"):
            return False
        if self.state not in ("", "archived") and _state(run) != self.state:
            return False
        if self.project and run.project != self.project:
            return False
        tags = {tag.lower() for tag in run.tags}
        if not all(tag in tags for tag in self.tags):
            return False
        text = " ".join(
            (title, run.name, run.project, run.id, run.stage_words, _state(run), run.ended_words, *run.tags)
        )
        if not all(word in text.lower() for word in self.words):
            return False
        return not self.conditions or all(condition.holds(settings(run)) for condition in self.conditions)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs under one heading."""

    key: str
    """Name by which the browser remembers whether the group is folded."""
    label: str
    """Heading; "" for none."""
    runs: tuple[RunSummary, ...]
    is_folded: bool = False
    """Whether the group is folded until somebody unfolds it."""


def parse_fleet_query(query: str) -> FleetQuery:
    """Return the query in an address. Accepts any text.

    >>> found = parse_fleet_query("?q=net+tag:Baseline+lr>1e-3&group=lr")
    >>> found.words, found.tags, found.conditions, found.group
    (('net',), ('baseline',), (Condition(key='lr', sign='>', value='1e-3'),), 'lr')
    """
    try:
        given = {name: values[-1] for name, values in parse_qs(query.removeprefix("?"), max_num_fields=100).items()}
    except ValueError:  # too many fields
        given = {}
    words, tags, conditions = [], [], []
    for term in given.get("q", "").split()[:MAX_TERMS]:
        condition = _CONDITION.match(term)
        if term.lower().startswith("tag:") and len(term) > len("tag:"):
            tags.append(term[len("tag:") :].lower())
        elif condition is not None:
            conditions.append(Condition(key=condition[1], sign=condition[2], value=condition[3]))
        else:
            words.append(term.lower())
    return FleetQuery(
        words=tuple(words),
        tags=tuple(tags),
        conditions=tuple(conditions),
        project=given.get("project", ""),
        state=given["state"] if given.get("state") in STATES else "",
        sort=given["sort"] if given.get("sort") in SORTS else "risk",
        group=given.get("group", ""),
    )


def value_of(settings: Settings, key: str) -> Any:
    """Return the value of a key, or of the only key that ends with it after a dot; None if there is none.

    >>> value_of({"optim.lr": 0.1, "seed": 3}, "lr"), value_of({"a.lr": 1, "b.lr": 2}, "lr")
    (0.1, None)
    """
    if key in settings:
        return settings[key]
    ends = [name for name in settings if name.endswith(f".{key}")]
    return settings[ends[0]] if len(ends) == 1 else None


def grouped(
    runs: Iterable[RunSummary],
    query: FleetQuery,
    settings: Callable[[RunSummary], Settings],
    *,
    pinned: Sequence[str] = (),
    titles: Mapping[str, str] | None = None,
) -> list[Group]:
    """Return the runs that a query lists, in its order and groups; the pinned ones first."""
    names = titles or {}
    found = [run for run in runs if query.matches(run, settings, names.get(run.id, ""))]
    found.sort(key=_order(query.sort, names))
    top = [run for run in found if run.id in pinned]
    rest = [run for run in found if run.id not in pinned]
    groups = [Group(key="pinned", label=_heading("Pinned", top), runs=tuple(top))] if top else []
    if query.group:
        return groups + _by_value(rest, query.group, settings)
    live, ended = [run for run in rest if run.state not in ENDED], [run for run in rest if run.state in ENDED]
    if live:
        groups.append(Group(key="live", label=_heading("Live", live) if ended or top else "", runs=tuple(live)))
    if ended:
        is_folded = bool(live) and not query.is_narrow
        groups.append(
            Group(
                key="ended",
                label=_heading("Ended", ended, _ends(ended)) if groups else "",
                runs=tuple(ended),
                is_folded=is_folded,
            )
        )
    return groups


def group_keys(settings: Iterable[Settings]) -> list[str]:
    """Return the keys of the configuration that have several values among the runs, by which they can be grouped."""
    values: dict[str, set[str]] = {}
    for each in settings:
        for key, value in each.items():
            values.setdefault(key, set()).add(value_words(value))
    return sorted(key for key, found in values.items() if len(found) > 1)[:MAX_KEYS]


def _by_value(runs: Sequence[RunSummary], key: str, settings: Callable[[RunSummary], Settings]) -> list[Group]:
    """Return groups of runs with the same value, in the order of their first runs; those without a value last."""
    found: dict[str, list[RunSummary]] = {}
    for run in runs:
        for value in _values(run, key, settings):
            found.setdefault(value, []).append(run)
    found.update({NO_VALUE: last} if (last := found.pop(NO_VALUE, None)) else {})
    groups = []
    for value, members in found.items():
        ordered = sorted(members, key=lambda run: run.state in ENDED)  # a stable sort: live ones first
        name = f"{key} = {value}" if key not in GROUPS else value
        label = f"without {key}" if value == NO_VALUE else name
        groups.append(Group(key=f"{key}={value}", label=_heading(label, members), runs=tuple(ordered)))
    return groups


def _values(run: RunSummary, key: str, settings: Callable[[RunSummary], Settings]) -> Sequence[str]:
    if key == "project":
        return (run.project,)
    if key == "stage":
        return (run.stage_words or NO_VALUE,)
    if key == "tag":
        return run.tags[:1] or (NO_VALUE,)
    value = value_of(settings(run), key)
    return (NO_VALUE if value is None else value_words(value),)


def _order(sort: str, titles: Mapping[str, str]) -> Callable[[RunSummary], Any]:
    if sort == "newest":
        return lambda run: (-run.created_at, run.id)
    if sort == "name":
        return lambda run: (_natural(titles.get(run.id) or run.title), run.id)
    return lambda run: (-round(risk(run) * 10), -run.created_at, run.id)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key in which net-9 comes before net-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower()) if part]


def _heading(name: str, runs: Sequence[RunSummary], more: str = "") -> str:
    return f"{name} · {len(runs):,}" + (f" · {more}" if more else "")


def _ends(runs: Sequence[RunSummary]) -> str:
    """Return how runs have ended in words, without those that just finished."""
    counted = Counter(run.ended_words or ("crashed" if run.state == RunState.CRASHED else "") for run in runs)
    return ", ".join(f"{number} {word}" for word, number in sorted(counted.items()) if word)


def _state(run: RunSummary) -> str:
    return "live" if run.state == RunState.RUNNING else run.state


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
