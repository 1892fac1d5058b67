"""Cases of the fused kernels of layer statistics, with the float64 oracle of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from client_sdk.optimizers import ELEMENTWISE_TERMS
from client_sdk.stats.entry import Entry
from client_sdk.stats.sums import FLAT, SUMS, Coordinates, Flags, Reduce, Terms, coordinate_sums, names_of

ROUNDING = 2e-6
"""Accepted error, relative to the sum of absolute values; a float32 has 6e-8."""
TERMS = (0.3, 1.1, 1.5, 1e-3, 0.4, 0.1, 0.2)
"""Some value for each of `ELEMENTWISE_TERMS`."""
ABSOLUTE = replace(FLAT, dot=lambda a, b: torch.dot(a.abs(), b.abs()), total=lambda a: a.abs().sum())
"""Reduction that gives the scale of each sum."""
ADAM = Flags(
    updates=True, first=True, second=True, squared=True, uses_gradient=False, divided=False, coupled=False,
    decoupled=False, negated=False, intake=0.1,
)  # fmt: skip
FAMILIES = {
    "adam": ADAM,
    "nadam": replace(ADAM, uses_gradient=True),
    "adamax": replace(ADAM, squared=False),
    "rmsprop": replace(ADAM, first=False, uses_gradient=True),
    "rmsprop-momentum": replace(ADAM, divided=True),
    "sgd": replace(ADAM, first=False, second=False, squared=False, uses_gradient=True),
    "sgd-momentum": replace(ADAM, second=False, squared=False),
    "sgd-nesterov": replace(ADAM, second=False, squared=False, uses_gradient=True),
    "sgd-nesterov-folded": replace(ADAM, second=False, squared=False, uses_gradient=True, folded=0.9),
}
"""Flags of every family of optimizers; weight decay, and `maximize` are combined with each."""


@dataclass(frozen=True)
class Case:
    """Entries that are measured together."""

    name: str
    entries: Sequence[Entry]


def entry(flags: Flags, *shape: int, seed: int = 0, of: Callable[[Tensor], Tensor] = lambda x: x) -> Entry:
    """Return an entry with random coordinates, each tensor passed through ``of``."""
    generator = torch.Generator().manual_seed(seed)
    w, g, m = (of(torch.randn(shape, generator=generator)) for _ in range(3))
    v = of(torch.rand(shape, generator=generator))
    return Entry(w, g, m if flags.first else None, v if flags.second else None, flags, 0, 0)


def cases() -> Iterator[Case]:
    """Yield every case."""
    for name, flags in FAMILIES.items():
        combined = [
            entry(replace(flags, coupled=decay == "L2", decoupled=decay == "decoupled", negated=negated), 777)
            for decay, negated in product(("none", "L2", "decoupled"), (False, True))
        ]
        yield Case(name, combined)
    unknown = replace(ADAM, updates=False, first=False, second=False)
    yield Case("unknown optimizer", [entry(unknown, 900)])
    without_formula = [replace(ADAM, updates=False, coupled=coupled, negated=coupled) for coupled in (False, True)]
    yield Case("moments without a formula", [entry(flags, 777) for flags in without_formula])
    yield Case("odd sizes", [entry(ADAM, size, seed=size) for size in (1, 2, 511, 512, 513, 1024, 1025)])
    yield Case("many chunks", [entry(unknown, 33_001), entry(unknown, 5, seed=1)])
    low = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    for name, dtype in low.items():
        whole = entry(ADAM, 1000)
        yield Case(f"gradient {name}", [whole._replace(grad=whole.grad.to(dtype))])
        yield Case(f"everything {name}", [entry(ADAM, 1000, of=partial(_as, dtype))])
    whole = entry(ADAM, 1000)
    assert whole.first is not None
    assert whole.second is not None
    mixed = whole._replace(grad=whole.grad.bfloat16(), first=whole.first.bfloat16(), second=whole.second.bfloat16())
    yield Case("state bfloat16", [mixed, whole])
    yield Case(
        "matrix", [entry(ADAM, 33, 41), entry(ADAM, 5, 3, 4, 4, of=_channels_last), entry(ADAM, 9, 30, of=_turned)]
    )
    yield Case("unaligned", [entry(ADAM, 1025, of=lambda x: torch.cat([x[:1], x])[1:])])
    broken = entry(ADAM, 1000)
    broken.grad[[3, 500, 999]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    yield Case("non-finite gradient", [broken, entry(ADAM, 100)])
    overflown = entry(ADAM, 1000)
    overflown.grad[7] = 1e30
    yield Case("overflow", [overflown])
    state = entry(ADAM, 1000)
    assert state.first is not None
    assert state.second is not None
    state.first[5], state.second[6], state.second[8] = torch.nan, torch.nan, 0.0
    yield Case("non-finite state", [state])
    zero = entry(ADAM, 600, of=torch.zeros_like)
    yield Case("zeros", [zero])
    huge = entry(ADAM, 3000, of=lambda x: x * 1e-18)
    yield Case("tiny numbers", [huge])


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last)


def _turned(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t()


def oracle(entry: Entry, reduce: Reduce) -> list[float | None]:
    """Return the sums of one entry by the formulas of `sums` in float64; None for a sum that does not exist."""
    if not entry.parameter.numel():
        return [0.0 if name in names_of(entry.flags) else None for name in SUMS]
    terms = Terms(**dict(zip(ELEMENTWISE_TERMS, torch.tensor(TERMS, dtype=torch.float64), strict=True)))
    flat = entry.coordinates()
    x = Coordinates(
        g=flat.g.double(),
        w=flat.w.double(),
        m=None if flat.m is None else flat.m.double(),
        v=None if flat.v is None else flat.v.double(),
    )
    sums = coordinate_sums(entry.flags, terms, reduce, x)
    return [float(sums[name]) if name in sums else None for name in SUMS]


def differences(
    got: Sequence[Sequence[float]],
    want: Sequence[Sequence[float | None]],
    scale: Sequence[Sequence[float | None]],
) -> list[str]:
    """Return in words which sums differ from the oracle by more than the rounding of float32."""
    found = []
    for row, (mine, theirs, scales) in enumerate(zip(got, want, scale, strict=True)):
        for name, value, true, size in zip(SUMS, mine, theirs, scales, strict=True):
            if true is None or not math.isfinite(true):
                is_same = math.isnan(value) if true is None or math.isnan(true) else value == true
            elif abs(true) > torch.finfo(torch.float32).max:
                is_same = value == math.copysign(math.inf, true)
            else:
                assert size is not None
                is_same = abs(value - true) <= ROUNDING * abs(size)
            if not is_same:
                found.append(f"tensor {row}: {name} is {value}, not {true}")
    return found
