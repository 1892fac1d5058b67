"""A rule that somebody wrote: what it watches, in which runs, and when it speaks. Pure.

Owns what a rule may say, and which runs a set of rules is for; `detectors.rules` judges. The JSON form of a rule has
the names of its fields.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from client_sdk.vocabulary import ChangeBy, Condition, Direction, Reduce
from server.errors import RuleFieldError
from server.models import AlertLevel

MAX_RULES: Final = 64
"""Of all projects together; each costs microseconds at every step of every run that it is for."""
MAX_TEXT: Final = 256
MAX_MINUTES: Final = 60.0 * 24 * 365
MAX_FOR_STEPS: Final = 10_000
MAX_STEPS_BACK: Final = 1_000_000
LEAST_WINDOW: Final = 20
"""Values below which a deviation says nothing."""
MAX_WINDOW: Final = 500
IDENTIFIER: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Checked at construction. Raises `RuleFieldError`, which names the field."""

    id: str
    """Lower-case letters, digits and hyphens."""
    name: str
    condition: Condition
    value: float
    """The threshold; of a change its factor or amount; of a z-score the deviations; of no data the minutes."""
    enabled: bool = True
    level: AlertLevel = AlertLevel.WARNING
    project: str | None = None
    """Of these runs alone; None: of all projects."""
    tag: str | None = None
    run_name: str | None = None
    """Pattern with * and ?."""
    scalar: str | None = None
    statistic: str | None = None
    """Of layers. A rule has a scalar or a statistic; one about no data may have neither, and then means any record."""
    layers: str = "*"
    """Pattern of the layers' names."""
    reduce: Reduce = Reduce.MAX
    change_by: ChangeBy = ChangeBy.FACTOR
    direction: Direction = Direction.UP
    """Of a change and of a z-score."""
    window: int = 100
    """Of a change, how many steps back; of a z-score, how many values are usual."""
    for_steps: int = 1
    """Logged values in a row for which it must hold before an alert opens, and not hold before it closes."""
    cooldown_minutes: float = 30.0
    """Least time from one alert of this rule in a run to the next."""

    def __post_init__(self) -> None:
        if not IDENTIFIER.fullmatch(self.id):
            raise RuleFieldError("id", "1 … 64 lower-case letters, digits and hyphens, no hyphen at either end")
        if not self.name.strip() or len(self.name) > 120:
            raise RuleFieldError("name", "1 … 120 characters")
        for name in ("name", "project", "tag", "run_name", "scalar", "statistic", "layers"):
            text = getattr(self, name)
            if text is not None and not (1 <= len(text) <= MAX_TEXT and text.isprintable()):
                raise RuleFieldError(name, f"1 … {MAX_TEXT} printable characters, or leave it out")
        self._check_series()
        self._check_condition()
        if not 1 <= self.for_steps <= MAX_FOR_STEPS:
            raise RuleFieldError("for_steps", f"1 … {MAX_FOR_STEPS:,} values in a row")
        if not 0 <= self.cooldown_minutes <= MAX_MINUTES:
            raise RuleFieldError("cooldown_minutes", f"0 … {MAX_MINUTES:,.0f} minutes")

    def _check_series(self) -> None:
        if self.scalar is not None and self.statistic is not None:
            raise RuleFieldError("statistic", "give a scalar or a statistic of layers, not both")
        if self.scalar is None and self.statistic is None and self.condition is not Condition.NO_DATA:
            raise RuleFieldError("scalar", 'what is to be watched? Give a scalar, for example "loss", or a statistic')

    def _check_condition(self) -> None:
        value = self.value
        if not math.isfinite(value):
            raise RuleFieldError("value", "a finite number")
        match self.condition:
            case Condition.CHANGE:
                if self.change_by is ChangeBy.FACTOR and not value > 1:
                    raise RuleFieldError("value", "a factor above 1: 3 means three times as much, or a third")
                if self.change_by is ChangeBy.AMOUNT and not value > 0:
                    raise RuleFieldError("value", "an amount above 0; the direction says whether up or down")
                if not 1 <= self.window <= MAX_STEPS_BACK:
                    raise RuleFieldError("window", f"1 … {MAX_STEPS_BACK:,} steps back")
            case Condition.Z_SCORE:
                if not value >= 1:
                    raise RuleFieldError("value", "1 deviation or more; 6 is rare in healthy noise")
                if not LEAST_WINDOW <= self.window <= MAX_WINDOW:
                    raise RuleFieldError("window", f"{LEAST_WINDOW} … {MAX_WINDOW} values that tell what is usual")
            case Condition.NO_DATA:
                if not 0 < value <= MAX_MINUTES:
                    raise RuleFieldError("value", "minutes without data, above 0")
            case _:
                pass

    def is_for(self, project: str, name: str, tags: Iterable[str]) -> bool:
        """Whether it watches a run of that project and name."""
        return (
            (self.project is None or self.project == project)
            and (self.tag is None or self.tag in tags)
            and (self.run_name is None or fnmatchcase(name, self.run_name))
        )

    @property
    def series(self) -> str:
        """What it watches, in words."""
        if self.statistic is not None:
            which = "all layers" if self.layers == "*" else self.layers
            return f"{_REDUCED[self.reduce]} {self.statistic} of {which}"
        return "data" if self.scalar is None else self.scalar

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Rule:
        """Raises `RuleFieldError`, and `msgspec.ValidationError` for anything that is no rule at all."""
        return msgspec.convert(found, cls)


_REDUCED: Final = {Reduce.MAX: "greatest", Reduce.MIN: "least", Reduce.MEAN: "mean"}


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """All rules as they are now."""

    rules: tuple[Rule, ...] = ()
    version: str = field(init=False)
    """Equal versions mean equal rules."""

    def __post_init__(self) -> None:
        said = msgspec.json.encode([rule.to_json() for rule in self.rules])
        object.__setattr__(self, "version", hashlib.blake2b(said, digest_size=12).hexdigest())

    def of_run(self, project: str, name: str, tags: Sequence[str]) -> tuple[Rule, ...]:
        """Those that watch a run."""
        return tuple(rule for rule in self.rules if rule.enabled and rule.is_for(project, name, tags))
