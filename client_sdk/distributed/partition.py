"""The part of a model's parameters that this rank's optimizer steps as pieces of flat tensors.

FSDP1 and DeepSpeed's ZeRO give the optimizer flat tensors instead of parameters, and ZeRO steps them one after the
other. Owns the pieces, called fragments, which take the place of the parameters: tensors in the memory of the flat
ones, with the gradient and the optimizer state that belong to them. `client_sdk.distributed.zero` and
`client_sdk.distributed.flat_parameters` find where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from client_sdk.distributed.placements import Holding
from client_sdk.layers import Group, Layers, group_layers


@dataclass(frozen=True, kw_only=True)
class Location:
    """Coordinates of one parameter in this rank's flat tensors."""

    name: str
    """Name of the parameter in the model."""
    flat: int
    """Position of the flat tensor."""
    start: int
    """First coordinate within the flat tensor."""
    size: int
    """Number of coordinates; 0 if this rank has none of the parameter."""
    holding: Holding
    """Ranks that hold the others."""


class _Place(NamedTuple):
    flat: int
    window: slice


class Partition:
    """Fragments of the flat tensors of one optimizer. Used on the training thread."""

    def __init__(
        self,
        base: torch.optim.Optimizer,
        flats: Sequence[Tensor],
        group_of: Sequence[int],
        locations: Sequence[Location],
        *,
        obstacle_to_curvature: str = "",
    ) -> None:
        """Cut the ``flats``, which ``base`` steps.

        ``group_of`` has the position of each flat tensor's group among those of ``base``. ``locations`` come in the
        order of the model's parameters.
        """
        self.obstacle_to_curvature = obstacle_to_curvature
        """Reason for which curvature cannot be measured with this optimizer, or empty."""
        self.has_strangers = False
        """Whether the optimizer has stepped a tensor that is none of the flat ones."""
        self.base = base
        """Optimizer whose steps move the flat tensors."""
        self.stepped: tuple[int, ...] = ()
        """Positions of the flat tensors that the step under way moves."""
        self.steps = 0
        """Number of steps of the training, each of which moves all flat tensors."""
        self.count = len(flats)
        """Number of flat tensors."""
        self._flats = tuple(flats)
        self._position_of = {id(flat): at for at, flat in enumerate(flats)}
        self._group_of = tuple(group_of)
        self._groups: list[dict[str, Any]] = list(base.param_groups)
        self._locations = tuple(locations)
        windows = [slice(location.start, location.start + location.size) for location in locations]
        self._fragments = tuple(
            self._flats[location.flat].detach()[window] for location, window in zip(locations, windows, strict=True)
        )
        self._place_of = {
            id(fragment): _Place(location.flat, window)
            for fragment, location, window in zip(self._fragments, locations, windows, strict=True)
        }
        self._by_flat: list[list[Tensor]] = [[] for _ in flats]
        for fragment, location in zip(self._fragments, locations, strict=True):
            self._by_flat[location.flat].append(fragment)
        self.whole = FragmentOptimizer(self, range(len(flats)))
        """The optimizer of all fragments."""
        self._parts: dict[tuple[int, ...], FragmentOptimizer] = {}
        self._addresses = [flat.data_ptr() for flat in flats]
        self._grads: dict[int, Tensor | None] = {}  # gradient of each flat tensor that the fragments have pieces of

    def layers(self, group: Group) -> Layers:
        """Return the layers of the fragments; see `layers.map_layers`. Raises `ConfigurationError` as it does."""
        named = [(location.name, piece) for location, piece in zip(self._locations, self._fragments, strict=True)]
        return group_layers(named, group, known=frozenset(self._place_of))

    def holdings(self) -> dict[int, Holding]:
        """Return the holding of each fragment, keyed by its id."""
        return {
            id(fragment): location.holding for fragment, location in zip(self._fragments, self._locations, strict=True)
        }

    def note_step(self) -> None:
        """Note which flat tensors a step that begins will move, and the present groups of the optimizer.

        DeepSpeed leaves only those of its next step in the optimizer, and a loaded state replaces the groups.
        """
        stepped = []
        for group in self.base.param_groups:
            for flat in group["params"]:
                at = self._position_of.get(id(flat))
                if at is None:
                    self.has_strangers = True
                else:
                    self._groups[self._group_of[at]] = group
                    stepped.append(at)
        self.stepped = tuple(stepped)

    def part(self) -> FragmentOptimizer:
        """Return the optimizer of the fragments that the step under way moves, with their gradients."""
        if self.stepped not in self._parts:
            self._parts[self.stepped] = FragmentOptimizer(self, self.stepped)
        for at in self.stepped:
            flat, grad = self._flats[at], self._flats[at].grad
            if self._addresses[at] != flat.data_ptr():
                self._bind(at)
            if at in self._grads and self._grads[at] is grad:
                continue  # the same pieces before and after the step, whose versions are compared
            self._grads[at] = grad
            for fragment in self._by_flat[at]:
                fragment.grad = None if grad is None else grad.detach()[self._place_of[id(fragment)].window]
        return self._parts[self.stepped]

    def _bind(self, at: int) -> None:
        """Take the pieces anew from a flat tensor that lies elsewhere now, as after a checkpoint was loaded."""
        held = self._flats[at].detach()
        for fragment in self._by_flat[at]:
            fragment.data = held[self._place_of[id(fragment)].window]
        self._addresses[at] = held.data_ptr()

    def release(self) -> None:
        """Let go of the gradients, so that their memory is free when DeepSpeed lets go of them."""
        for at in self._grads:
            for fragment in self._by_flat[at]:
                fragment.grad = None
        self._grads = {}

    def groups_of(self, flats: Sequence[int]) -> list[dict[str, Any]]:
        """Return the parameter groups of some flat tensors, with their fragments as parameters."""
        members: dict[int, list[Tensor]] = {}
        for at in flats:
            members.setdefault(self._group_of[at], []).extend(self._by_flat[at])
        return [{**self._groups[group], "params": members[group]} for group in sorted(members)]

    def state_of(self, fragment: Tensor) -> Mapping[str, Any]:
        """Return the optimizer state of a fragment: pieces of what has the shape of the flat tensor, all else as it is.

        Raises `KeyError` for any other tensor.
        """
        place = self._place_of[id(fragment)]
        flat = self._flats[place.flat]
        state: Mapping[str, Any] = self.base.state.get(flat, {})
        return {
            name: value.detach()[place.window] if isinstance(value, Tensor) and value.shape == flat.shape else value
            for name, value in state.items()
        }


class FragmentOptimizer(torch.optim.Optimizer):
    """Some fragments in the form in which an optimizer is read: groups, parameters with gradients, and state.

    It is only read: it has no `step` of its own. Any other attribute is that of the optimizer of the flat tensors.
    """

    def __init__(self, partition: Partition, flats: Sequence[int]) -> None:
        # Without the initialisation of torch, which would check and keep parameters and add hooks.
        self._partition = partition
        self._flats_read = tuple(flats)
        self.state: Any = _FragmentStates(partition)

    @property
    def param_groups(self) -> Any:  # type: ignore[override]  # torch keeps a list, which here changes with every step
        """Present groups, with fragments as parameters."""
        return self._partition.groups_of(self._flats_read)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the optimizer of the flat tensors."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._partition.base, name)


class _FragmentStates(Mapping[Tensor, Mapping[str, Any]]):
    """State of each fragment."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition

    def __getitem__(self, fragment: Tensor) -> Mapping[str, Any]:
        return self._partition.state_of(fragment)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(fragment for group in self._partition.whole.param_groups for fragment in group["params"])

    def __len__(self) -> int:
        return sum(1 for _ in self)
