"""Alert rules that users write: what a rule watches, in which runs, and when it raises an alert. Pure.

Owns what a rule may contain and which runs a rule set applies to; `detectors.rule_evaluator` judges. The JSON form of a
rule has the names of its fields.
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
"""Number of rules of all projects together; each costs microseconds at every step of every run it applies to."""
MAX_TEXT: Final = 256  # characters
MAX_MINUTES: Final = 60.0 * 24 * 365
MAX_FOR_STEPS: Final = 10_000
MAX_STEPS_BACK: Final = 1_000_000
MIN_WINDOW: Final = 20
"""Number of values below which a deviation means nothing."""
MAX_WINDOW: Final = 500
"""Number of values that a z-score is computed against at most."""
IDENTIFIER: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An alert rule, checked at construction. Raises `RuleFieldError`, which names the field at fault."""

    id: str
    """Identifier of lower-case letters, digits and hyphens."""
    name: str
    condition: Condition
    value: float
    """Threshold; factor or amount of a change, number of deviations of a z-score, minutes without data."""
    enabled: bool = True
    level: AlertLevel = AlertLevel.WARNING
    project: str | None = None
    """Project of the runs that the rule applies to, None for all projects."""
    tag: str | None = None
    """Tag of the runs that the rule applies to, None for any."""
    run_name: str | None = None
    """Pattern of the run names, with * and ?; None for any."""
    scalar: str | None = None
    """Scalar that the rule watches. A rule has a scalar or a statistic; one about no data may have neither."""
    statistic: str | None = None
    """Layer statistic that the rule watches. With neither scalar nor statistic the rule watches for any record."""
    layers: str = "*"
    """Pattern of the layer names."""
    reduce: Reduce = Reduce.MAX
    change_by: ChangeBy = ChangeBy.FACTOR
    direction: Direction = Direction.UP
    """Direction of a change or of a deviation."""
    window: int = 100
    """Steps that a change looks back, or number of values that a z-score is computed against."""
    for_steps: int = 1
    """Number of consecutive values that must meet the condition before an alert opens, and miss it before it closes."""
    cooldown_minutes: float = 30.0
    """Shortest time in minutes between two alerts of this rule in a run."""

    def __post_init__(self) -> None:
        if not IDENTIFIER.fullmatch(self.id):
            raise RuleFieldError("id", "use 1 to 64 lower-case letters, digits and hyphens, no hyphen at either end")
        if not self.name.strip() or len(self.name) > 120:
            raise RuleFieldError("name", "use 1 to 120 characters")
        for name in ("name", "project", "tag", "run_name", "scalar", "statistic", "layers"):
            text = getattr(self, name)
            if text is not None and not (1 <= len(text) <= MAX_TEXT and text.isprintable()):
                raise RuleFieldError(name, f"use 1 to {MAX_TEXT} printable characters, or leave it out")
        self._check_series()
        self._check_condition()
        if not 1 <= self.for_steps <= MAX_FOR_STEPS:
            raise RuleFieldError("for_steps", f"choose 1 to {MAX_FOR_STEPS:,} values in a row")
        if not 0 <= self.cooldown_minutes <= MAX_MINUTES:
            raise RuleFieldError("cooldown_minutes", f"choose 0 to {MAX_MINUTES:,.0f} minutes")

    def _check_series(self) -> None:
        if self.scalar is not None and self.statistic is not None:
            raise RuleFieldError("statistic", "choose a scalar or a layer statistic, not both")
        if self.scalar is None and self.statistic is None and self.condition is not Condition.NO_DATA:
            raise RuleFieldError("scalar", 'choose what to watch: a scalar, for example "loss", or a layer statistic')

    def _check_condition(self) -> None:
        value = self.value
        if not math.isfinite(value):
            raise RuleFieldError("value", "enter a finite number")
        match self.condition:
            case Condition.CHANGE:
                if self.change_by is ChangeBy.FACTOR and not value > 1:
                    raise RuleFieldError("value", "enter a factor above 1; 3 means three times as much, or a third")
                if self.change_by is ChangeBy.AMOUNT and not value > 0:
                    raise RuleFieldError("value", "enter an amount above 0; the direction decides between up and down")
                if not 1 <= self.window <= MAX_STEPS_BACK:
                    raise RuleFieldError("window", f"choose 1 to {MAX_STEPS_BACK:,} steps back")
            case Condition.Z_SCORE:
                if not value >= 1:
                    raise RuleFieldError("value", "enter 1 deviation or more; 6 are rare in healthy noise")
                if not MIN_WINDOW <= self.window <= MAX_WINDOW:
                    raise RuleFieldError("window", f"choose {MIN_WINDOW} to {MAX_WINDOW} values to compare with")
            case Condition.NO_DATA:
                if not 0 < value <= MAX_MINUTES:
                    raise RuleFieldError("value", "enter the minutes without data, above 0")
            case _:
                pass

    def applies_to(self, project: str, name: str, tags: Iterable[str]) -> bool:
        """Whether the rule watches a run with this project, name and tags."""
        return (
            (self.project is None or self.project == project)
            and (self.tag is None or self.tag in tags)
            and (self.run_name is None or fnmatchcase(name, self.run_name))
        )

    @property
    def series(self) -> str:
        """The watched series in words."""
        if self.statistic is not None:
            which = "all layers" if self.layers == "*" else self.layers
            return f"{_REDUCED[self.reduce]} {self.statistic} of {which}"
        return "data" if self.scalar is None else self.scalar

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary that can be encoded as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Rule:
        """Return the rule of a decoded JSON object.

        Raises `RuleFieldError` for a field at fault and `msgspec.ValidationError` for anything that is not a rule.
        """
        return msgspec.convert(found, cls)


_REDUCED: Final = {Reduce.MAX: "largest", Reduce.MIN: "smallest", Reduce.MEAN: "mean"}


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """All rules at one time."""

    rules: tuple[Rule, ...] = ()
    version: str = field(init=False)
    """Hash of the rules; equal versions mean equal rules."""

    def __post_init__(self) -> None:
        encoded = msgspec.json.encode([rule.to_json() for rule in self.rules])
        object.__setattr__(self, "version", hashlib.blake2b(encoded, digest_size=12).hexdigest())

    def of_run(self, project: str, name: str, tags: Sequence[str]) -> tuple[Rule, ...]:
        """Return the enabled rules that watch a run."""
        return tuple(rule for rule in self.rules if rule.enabled and rule.applies_to(project, name, tags))
