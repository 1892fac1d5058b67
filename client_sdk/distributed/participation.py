"""Part that this process takes in measuring a model that several ranks train.

Owns the life of a `Team`: announced in `watch`, settled before the first step of the optimizer, ended by a failure or
when a rank stops watching. Where no team can be formed, a rank that holds all of its parameters completely measures
alone, and any other measures nothing: the number of a shard must never stand under the run's name.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from client_sdk.distributed.agreement import Agreement, Roster, RosterHolding
from client_sdk.distributed.ballot import Ballot
from client_sdk.distributed.division import divide, is_alone
from client_sdk.distributed.partition import Partition
from client_sdk.distributed.placements import Holding, holding_of, holdings_of, local
from client_sdk.distributed.reduction import Reduction
from client_sdk.distributed.replicas import checksums
from client_sdk.distributed.team import Team
from client_sdk.host import TensorCopy
from client_sdk.layers import Layers, size_of
from client_sdk.warner import Warner

_teams: Final[weakref.WeakSet[Team]] = weakref.WeakSet()
"""Teams that say farewell when the process ends."""
SHOWN: Final = 3  # names of parameters in a warning


class Possession(NamedTuple):
    """The part of a parameter that a rank has."""

    counts: bool
    """Whether it is added to what other ranks have; False for a further copy."""
    number: int
    """Position of it among the parts of a complete copy."""


class Participation:
    """Part of this process in the measurement of one model."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        layers: Layers,
        warner: Warner,
        *,
        amounts: Sequence[str],
        is_together: bool = True,
        partition: Partition | None = None,
    ) -> None:
        """Announce to the other ranks that this one watches ``model``, unless ``is_together`` is False.

        ``optimizer`` is the one that is measured; it need not have all parameters of ``layers``. ``amounts`` are the
        names of the amounts of a layer, which include "gg". ``partition`` has the fragments that stand for the
        parameters, if the optimizer steps such.
        """
        self._model = model
        self._partition = partition
        self._optimizer = optimizer
        self._layers = layers
        self._warner = warner
        self._amounts = amounts
        self.team: Team | None = None
        """The team, once it was formed."""
        self.is_settled = False
        """Whether `settle` was called."""
        self.is_together = is_together
        """Whether this process trains the same model as the others."""
        self._is_refused = False
        self._has_reported = False
        self._agreement: Agreement | None = None
        self._rank = 0
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() < 2:
            self._is_single = True
            return
        self._is_single = False
        self._rank = distributed.get_rank()
        if is_together:
            world = list(range(distributed.get_world_size()))
            self._agreement = Agreement(_store(), self._rank, world)

    def settle(self) -> None:
        """Form the team, or find that this rank measures alone or not at all. Called once, before the first step."""
        self.is_settled = True
        if self._is_single and not _is_distributed_now():
            return
        self._is_refused = True  # until the opposite is certain
        roster = self._roster()
        refusal = "watch() was called before torch.distributed.init_process_group" if self._is_single else ""
        if self._agreement is not None:
            answer = self._agreement.conclude(roster)
            refusal = answer.refusal
            if len(answer.rosters) > 1:
                self._form(self._agreement.prefix, answer.rosters)
                return
            refusal = refusal or "the other ranks did not call watch()"
        if is_alone(roster):
            self._is_refused = False
            return
        self._warner.warn(
            "sharded",
            f"this rank holds only a part of the model, and {refusal or 'distributed=False was passed'}: its layers "
            "are not measured. Call watch() on every rank, before the first step, in the same order",
        )

    @property
    def measures(self) -> bool:
        """Whether this rank measures: in the team, or alone."""
        return not self._is_refused and (self.team is None or self.team.is_active)

    def decide(self) -> int | None:
        """Return the number of steps until the next measured one that the team agreed on; None if nothing binds it."""
        if self.team is None:
            return None
        interval = self.team.decide()
        if self.team.end and not self._has_reported:
            self._has_reported = True
            self._report(self.team)
        return interval

    def _report(self, team: Team) -> None:
        if team.is_expected_end:
            self._warner.note("team", f"layer statistics end: {team.end}")
        else:
            self._warner.warn(
                "team",
                f"layer statistics of the distributed training end, as {team.end}; training goes on. They begin again "
                "with the next start of the training",
            )

    def miss(self, step: int) -> None:
        """Tell the team that this rank could not measure ``step``, at which the others expect its part."""
        if self.team is not None:
            self.team.share(step, None, None, next_in=1, has_logged=False)

    def leave(self) -> None:
        """Take no further part."""
        if not self.is_settled and self._agreement is not None:
            self._agreement.withdraw()
            self.is_settled = self._is_refused = True
        if self.team is not None:
            self.team.leave()

    def checksums(self) -> TensorCopy | None:
        """Start copying the checksums of this rank's parameters that have copies, if the next step compares them."""
        if self.team is None or not self.team.compares_next:
            return None
        signs = self.team.division.signs
        compared = [parameter for parameter, sign in zip(self._layers.parameters, signs, strict=True) if sign]
        return TensorCopy(checksums([local(parameter) for parameter in compared]))

    @property
    def has_dtensors(self) -> bool:
        """Whether some parameters are DTensors, of which this rank may hold a part or a copy."""
        return any(hasattr(parameter, "to_local") for parameter in self._layers.parameters)

    def parts(self) -> dict[int, Possession] | None:
        """Return what this rank has of each parameter in the team, keyed by the parameter's id.

        None if a parameter is divided in another way than as a DTensor, or is not held by every rank.
        """
        if self.team is None or len(self.team.division.rows) < len(self.team.division.layers):
            return None
        roster = self._roster()
        found: dict[int, Possession] = {}
        for at, parameter in enumerate(self._layers.parameters):
            holding = holding_of(parameter)
            declared = roster.holdings[roster.holding_of[at]]
            if declared.is_flat or declared.obstacle or not roster.is_held[at]:
                return None
            copy = next((copy for copy in holding.copies if self._rank in copy), (self._rank,))
            found[id(parameter)] = Possession(bool(self.team.division.counts[at]), copy.index(self._rank))
        return found

    def _form(self, prefix: str, rosters: Mapping[int, Roster]) -> None:
        division = divide(rosters, self._rank)
        if division.obstacles:
            names = sorted(division.obstacles)
            shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            self._warner.warn(
                "not_together",
                f"{shown}: {division.obstacles[names[0]]}; not measured. If every process trains a model of its own, "
                "pass watch(distributed=False)",
            )
        if len(division.obstacles) == len({name for roster in rosters.values() for name in roster.names}):
            return
        ranks = sorted(rosters)
        reduction = Reduction(_store(), ranks, self._rank, prefix=prefix)
        self.team = Team(
            rank=self._rank,
            ranks=ranks,
            division=division,
            reduction=reduction,
            ballot=Ballot(_store(), prefix, self._rank, ranks),
            width=len(self._amounts),
            square=self._amounts.index("gg"),
        )
        _teams.add(self.team)
        self._is_refused = False

    def _roster(self) -> Roster:
        partition = self._partition
        holdings = holdings_of(self._model, self._rank) if partition is None else partition.holdings()
        held = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        kinds: dict[Holding, int] = {}
        parameters = self._layers.parameters
        kind_of: list[int] = []
        compared = []
        for at, parameter in enumerate(parameters):
            holding = holdings.get(id(parameter)) or holding_of(parameter)  # FSDP2 shows others while it has gathered
            kind_of.append(kinds.setdefault(holding, len(kinds)))
            if holding.is_own and not holding.is_declared:
                compared.append(at)
        sums = np.zeros(len(parameters))
        sums[compared] = TensorCopy(checksums([parameters[at] for at in compared])).array()
        return Roster(
            layers=self._layers.names,
            names=self._layers.parameter_names,
            rows=tuple(self._layers.row_of[id(parameter)] for parameter in parameters),
            sizes=tuple(size_of(parameter) for parameter in parameters),
            holdings=tuple(
                RosterHolding(
                    copies=kind.copies, is_flat=kind.is_flat, is_declared=kind.is_declared, obstacle=kind.obstacle
                )
                for kind in kinds
            ),
            holding_of=tuple(kind_of),
            is_held=tuple(id(parameter) in held for parameter in parameters),
            checksums=tuple(int(value) for value in sums),
        )


def _store() -> Any:
    """Return the store of the default process group, for which torch has no public function."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _is_distributed_now() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _say_farewell() -> None:
    for team in tuple(_teams):
        team.leave()
    for team in tuple(_teams):
        team.close()


atexit.register(_say_farewell)
