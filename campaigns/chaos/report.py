"""The verdict on a chaos campaign, and its table. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from campaigns.chaos.campaign import InjectedFault
from campaigns.chaos.ledger import Entry
from campaigns.chaos.schedule import KINDS, Fault
from campaigns.chaos.verify import Found, Key

UNNOTED_PER_KILL = 1
"""Number of records that a kill may leave without a note, between the return of `log` and the write to the ledger."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Differences between the ledger and what is stored and shown; delivery kept its promise if there are none."""

    lost: frozenset[Key]
    """Records that the database lacks."""
    twice: frozenset[Key]
    """Records that the database holds more than once."""
    altered: frozenset[Key]
    """Records that the database holds with other bits."""
    invented: frozenset[Key]
    """Records that the database holds, the ledger lacks, and no kill explains."""
    unexported: frozenset[Key]
    """Records that the API lacks in every attempt, or returns with other numbers."""
    misshown: frozenset[int]
    """Steps for which a page shows another incarnation than the last one."""

    @property
    def is_kept(self) -> bool:
        """Whether delivery kept its promise."""
        return not (self.lost or self.twice or self.altered or self.invented or self.unexported or self.misshown)


def judge(
    entries: Sequence[Entry],
    *,
    incarnations: int,
    database: Found,
    api: Found,
    shown: Mapping[int, int],
    should_be_shown: Mapping[int, int],
) -> Verdict:
    """Compare the ledger with the records in the database and the API, and with the incarnations that a page shows."""
    keys = frozenset(entry.key for entry in entries)
    unnoted = frozenset(database.counts) - keys
    last = {entry.incarnation: entry.step for entry in entries}
    explained = frozenset(
        key for key in unnoted if key[0] < incarnations - 1 and key[1] == last.get(key[0], -1) + UNNOTED_PER_KILL
    )
    return Verdict(
        lost=frozenset(keys - frozenset(database.counts)),
        twice=frozenset(key for key, count in database.counts.items() if count > 1),
        altered=frozenset(database.wrong),
        invented=unnoted - explained,
        unexported=frozenset(keys - frozenset(api.counts)) | frozenset(api.wrong),
        misshown=frozenset(step for step, incarnation in should_be_shown.items() if shown.get(step) != incarnation),
    )


def table(
    entries: Sequence[Entry], injected: Sequence[InjectedFault], missed: Sequence[Fault], verdict: Verdict
) -> str:
    """Return a table with one line for each kind of fault; a step counts for the fault nearest to it."""
    positions = [one.position for one in injected]
    steps, lost, twice = Counter[str](), Counter[str](), Counter[str]()
    for index, entry in enumerate(entries):
        kind = injected[_nearest(positions, index)].fault.kind
        steps[kind] += 1
        lost[kind] += entry.key in verdict.lost or entry.key in verdict.altered
        twice[kind] += entry.key in verdict.twice
    faults = Counter[str](one.fault.kind for one in injected)
    lines = [f"{'fault':<20} {'count':>6} {'steps near':>11} {'survived':>9} {'lost':>5} {'twice':>6}"]
    for kind in KINDS:
        if faults[kind]:
            survived = steps[kind] - lost[kind]
            lines.append(
                f"{kind:<20} {faults[kind]:6d} {steps[kind]:11d} {survived:9d} {lost[kind]:5d} {twice[kind]:6d}"
            )
    lines.append(
        f"{'all':<20} {len(injected):6d} {len(entries):11d} {len(entries) - sum(lost.values()):9d} "
        f"{sum(lost.values()):5d} {sum(twice.values()):6d}"
    )
    if missed:
        lines.append(f"not injected, as no frame arrived in time: {len(missed)}")
    return "\n".join(lines)


def _nearest(positions: Sequence[int], index: int) -> int:
    right = bisect_left(positions, index)
    if right == 0:
        return 0
    if right == len(positions):
        return right - 1
    return right if positions[right] - index < index - positions[right - 1] else right - 1
