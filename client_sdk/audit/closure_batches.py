"""Checks of the batches that a closure of `log` holds: whether they repeat, and how their gradients were joined.

The closure holds the tensors of its batch. Its gradient is computed at a few records only, and only where several
micro-batches make a step. Called on the training thread.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.audit.callers import find_in_callers
from client_sdk.audit.fault import Fault
from client_sdk.audit.samples import is_plain

REPEATED: Final = 50  # records
MAX_BYTES: Final = 4096  # of a tensor that enter its fingerprint
MAX_TENSORS: Final = 8
PROBES: Final = 4  # gradients of the closure that are computed
SAMPLED: Final = 4096  # coordinates of a parameter that are compared
PARAMETERS: Final = 8
COSINE: Final = 0.9  # of the two gradients, above which they are of the same batch
NEAR: Final = 0.15  # relative distance from the number of micro-batches
SAME_LOSS: Final = 0.1  # relative difference of the closure's loss and the logged one

Evaluate = Callable[[Sequence[Tensor]], tuple[float, list[Tensor]]]
"""Function from some parameters to the loss of the closure and its gradients, without a trace in training."""


class RepeatedBatch:
    """Fingerprints of the batches that the closures hold."""

    def __init__(self) -> None:
        self._print: bytes | None = None
        self._held: list[Tensor] = []
        self._count = 0
        self.is_moot = False
        """Whether batches differ or are the same tensors on purpose, so that there is nothing to look for."""

    def observe(self, closure: object, step: int) -> Fault | None:
        """Take in the closure of a record, and return the fault of a batch that is made anew and always the same."""
        if self.is_moot:
            return None
        found = batch_of(closure)
        if not found or any(tensor.device.type != "cpu" for tensor in found):
            self.is_moot = True  # to read a batch would wait for the device
            return None
        # The memory of the batch before is still held, so that what lies at the same place is the same tensor: a
        # constant, or the whole data set.
        places = {_place(tensor) for tensor in self._held}
        fresh = [tensor for tensor in found if _place(tensor) not in places]
        fingerprint = _fingerprint(fresh) if fresh else None
        if self._held and (fingerprint is None or (self._print is not None and fingerprint != self._print)):
            self.is_moot = True
            return None
        if self._held:
            self._print = fingerprint  # from the second batch on, as only then constants are known
        self._held = found
        self._count += 1
        if self._count < REPEATED:
            return None
        self.is_moot = True
        loader = find_in_callers(_has_batches)
        if loader is None:
            return None  # perhaps all data, read anew at each step
        rows = len(fresh[0])
        return Fault(
            "batch-repeated",
            f"the batches of {REPEATED} records, up to step {step:,}, have the same {rows} rows each time, while "
            f"the DataLoader has {len(loader):,} batches",
            evidence={"records": REPEATED, "rows": rows, "batches": len(loader), "step": step},
        )


def _has_batches(value: Any) -> bool:
    """Return whether an object is a DataLoader that is known to have several batches."""
    if not isinstance(value, torch.utils.data.DataLoader):
        return False
    try:
        return len(value) > 1
    except TypeError:  # a stream without a length
        return False


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def batch_of(closure: object) -> list[Tensor]:
    """Return the tensors that a function holds, at most `MAX_TENSORS`.

    >>> batch = torch.ones(2, 3)
    >>> [tuple(tensor.shape) for tensor in batch_of(lambda: batch.sum())]
    [(2, 3)]
    """
    function = closure
    values: list[Any] = []
    while hasattr(function, "func") and hasattr(function, "args"):  # functools.partial
        values += [*function.args, *getattr(function, "keywords", {}).values()]
        function = function.func
    if isinstance(function, FunctionType):
        values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for cell in function.__closure__ or ():
            try:
                values.append(cell.cell_contents)
            except ValueError:
                continue  # a name that is not bound yet
        values += [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]
    return list(_tensors(values))[:MAX_TENSORS]


def _tensors(values: Any, depth: int = 0) -> Iterator[Tensor]:
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, Tensor):
            if is_plain(value) and not value.requires_grad and value.dim() and value.numel() > 1:
                yield value
        elif isinstance(value, tuple | list | dict) and depth < 2:
            yield from _tensors(value, depth + 1)


def _fingerprint(tensors: Sequence[Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        values = tensor.detach().reshape(-1)
        kept = values[:: max(1, -(-values.numel() * values.element_size() // MAX_BYTES))].contiguous()
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(kept.view(torch.uint8).numpy().tobytes())
    return digest.digest()


class JoinedGradients:
    """The gradients that the optimizer was given, against that of the closure."""

    def __init__(self) -> None:
        self._left = PROBES
        self._step: list[tuple[Tensor, Tensor]] = []  # parameters, and samples of their gradients at the last step
        self.is_probed = False
        """Whether the last `probe` computed a gradient."""

    @property
    def is_due(self) -> bool:
        """Whether the next `probe` may compute a gradient."""
        return bool(self._step)

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer, micro_batches: int | None) -> None:
        """Keep samples of the gradients if several micro-batches made them."""
        self._step = []
        if self._left <= 0 or micro_batches is None or micro_batches < 2:
            return
        present = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and is_plain(parameter) and is_plain(parameter.grad)
        ]
        chosen = present[:: max(1, -(-len(present) // PARAMETERS))]
        self._step = [(parameter, _sampled(parameter.grad)) for parameter in chosen if parameter.grad is not None]

    def probe(self, evaluate: Evaluate, loss: float | None, micro_batches: int | None, step: int) -> Fault | None:
        """Compute the gradient of the closure, and return the fault of gradients that were summed.

        ``loss`` is the value that the record has, which must be that of the closure.
        """
        self.is_probed = False
        kept, self._step = self._step, []
        if not kept or micro_batches is None or micro_batches < 2 or loss is None or self._left <= 0:
            return None
        self._left -= 1
        self.is_probed = True
        value, gradients = evaluate([parameter for parameter, _ in kept])
        if not math.isfinite(value) or not math.isclose(value, loss, rel_tol=SAME_LOSS):
            return None
        given = torch.cat([sample for _, sample in kept]).double().cpu()
        own = torch.cat([_sampled(gradient) for gradient in gradients]).double().cpu()
        length, own_length = float(given.norm()), float(own.norm())
        if not (math.isfinite(length) and own_length > 0 and length > 0):
            return None
        cosine = float(given @ own) / (length * own_length)
        factor = float(given @ own) / own_length**2
        if cosine < COSINE or abs(factor / micro_batches - 1) > NEAR:
            return None
        return Fault(
            "micro-batches-summed",
            f"the gradient of step {step:,}, of {micro_batches} micro-batches, is {factor:.3g} times that of the "
            "logged "
            "loss",
            evidence={
                "micro_batches": micro_batches, "factor": round(factor, 4), "cosine": round(cosine, 4), "step": step,
            },
        )  # fmt: skip


def _sampled(tensor: Tensor) -> Tensor:
    values = tensor.detach().reshape(-1)
    return values[:: max(1, -(-values.numel() // SAMPLED))].clone()
