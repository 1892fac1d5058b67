"""Optimizers: those of torch, and of the libraries that people add."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn, optim

from campaigns.set_ups.loops import Bag, Make, plain, steps, with_closure
from campaigns.set_ups.set_up import Catalogue
from campaigns.set_ups.trial import FEATURES, OUTPUTS, Trial, loss_of, network

MOVES = ("weight_norm", "update_norm")
"""Statistics that have a meaning for a step which evaluates several gradients."""

TORCH: dict[str, Make] = {
    "SGD": lambda p: optim.SGD(p, 0.05),
    "SGD, momentum": lambda p: optim.SGD(p, 0.05, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "SGD, Nesterov": lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, 0.01, weight_decay=0.01),
    "Adam, amsgrad": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, 0.01),
    "AdamW, foreach": lambda p: optim.AdamW(p, 0.01, foreach=True),
    "AdamW, fused": lambda p: optim.AdamW(p, 0.01, fused=True),
    "AdamW, maximize": lambda p: optim.AdamW(p, 0.001, maximize=True),
    "AdamW, learning rate in a tensor": lambda p: optim.AdamW(p, torch.tensor(0.01), foreach=False),
    "Adamax": lambda p: optim.Adamax(p, 0.01),
    "NAdam": lambda p: optim.NAdam(p, 0.01),
    "RAdam": lambda p: optim.RAdam(p, 0.01),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01),
    "RMSprop, centered, momentum": lambda p: optim.RMSprop(p, 0.01, centered=True, momentum=0.9),
    "Rprop": lambda p: optim.Rprop(p, 0.01),
    "ASGD": lambda p: optim.ASGD(p, 0.05),
    "Adagrad": lambda p: optim.Adagrad(p, 0.05),
    "Adadelta": lambda p: optim.Adadelta(p, 1.0),
    "Adafactor": lambda p: optim.Adafactor(p, 0.01),
}


NO_LIMIT = ("optimizer",)
"""Cause of the word about an optimizer without a second moment or without a known update rule."""
WITHOUT_LIMIT = frozenset({"Rprop", "ASGD", "Lion", "Shampoo", "Muon", "AdEMAMix", "Lion8bit"})
"""Optimizers that need this word; gradients, weights and their movement are measured all the same."""


def add(catalogue: Catalogue) -> None:
    """Add the set-ups of this section."""
    for name, make in TORCH.items():
        catalogue.add(f"torch {name}", "Optimizers", plain(make), says=_says(name))
    catalogue.add("torch AdamW, capturable, compiled", "Optimizers", _capturable)
    catalogue.add("torch AdamW, differentiable", "Optimizers", _differentiable)
    catalogue.add("torch Muon, with AdamW for vectors", "Optimizers", _muon, says=NO_LIMIT)
    catalogue.add(
        "torch SparseAdam", "Optimizers", plain(lambda p: optim.SparseAdam(list(p), 0.01), Bag), says=NO_LIMIT
    )
    lbfgs = with_closure(lambda p: optim.LBFGS(p, 0.5, max_iter=3), needs=MOVES)
    catalogue.add("torch LBFGS", "Optimizers", lbfgs, says=NO_LIMIT)
    for name in ("AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"):
        catalogue.add(f"schedulefree {name}", "Optimizers", plain(_schedule_free(name)))
    catalogue.add("Prodigy", "Optimizers", plain(_prodigy))
    for name in ("Lion", "SOAP", "Shampoo", "Muon", "AdEMAMix"):
        catalogue.add(f"pytorch_optimizer {name}", "Optimizers", plain(_pytorch_optimizer(name)), says=_says(name))
    catalogue.add("pytorch_optimizer Lookahead", "Optimizers", plain(_lookahead), says=NO_LIMIT)
    catalogue.add("pytorch_optimizer SAM", "Optimizers", _sam)
    catalogue.add("transformers Adafactor", "Optimizers", plain(_adafactor(relative=True)))
    catalogue.add("transformers Adafactor, fixed rate", "Optimizers", plain(_adafactor(relative=False)))
    for name in ("AdamW", "AdamW8bit", "PagedAdamW8bit", "Lion8bit"):
        catalogue.add(f"bitsandbytes {name}", "Optimizers", plain(_bitsandbytes(name), _wide), says=_says(name))


def _says(name: str) -> tuple[str, ...]:
    return NO_LIMIT if name in WITHOUT_LIMIT else ()


def _muon(trial: Trial) -> None:
    model = network()
    matrices = [value for value in model.parameters() if value.ndim == 2]
    muon = optim.Muon(matrices, lr=0.02)
    adam = optim.AdamW([value for value in model.parameters() if value.ndim != 2], lr=0.02)
    trial.begin(model, muon, adam)
    steps(trial, model, muon, adam, by=lambda: (muon.step(), adam.step()))


def _differentiable(trial: Trial) -> None:
    model = network()
    optimizer = optim.AdamW(model.parameters(), 0.01, differentiable=True)
    trial.begin(model, optimizer)

    def step() -> None:
        model.requires_grad_(False)  # else the step itself would be recorded, which torch refuses for leaves
        optimizer.step()
        model.requires_grad_(True)

    steps(trial, model, optimizer, by=step)


def _capturable(trial: Trial) -> None:
    model = network()
    optimizer = optim.AdamW(model.parameters(), 0.01, capturable=True)
    trial.begin(model, optimizer)
    # Torch lets a capturable optimizer run on the CPU only where it is compiled.
    steps(trial, model, optimizer, by=torch.compile(optimizer.step, backend="aot_eager"))


def _schedule_free(name: str) -> Make:
    def make(parameters: Any) -> Any:
        import schedulefree

        return getattr(schedulefree, name)(parameters, lr=0.01)

    return make


def _prodigy(parameters: Any) -> Any:
    from prodigyopt import Prodigy

    return Prodigy(parameters, d0=1e-3)


def _pytorch_optimizer(name: str) -> Make:
    def make(parameters: Any) -> Any:
        import pytorch_optimizer

        given = list(parameters)
        if name == "Muon":  # two-dimensional parameters by Muon, the others by AdamW
            given = [
                {"params": [value for value in given if value.ndim == 2], "use_muon": True},
                {"params": [value for value in given if value.ndim != 2], "use_muon": False},
            ]
        return getattr(pytorch_optimizer, name)(given, lr=0.01)

    return make


def _lookahead(parameters: Any) -> Any:
    from pytorch_optimizer import Lookahead

    return Lookahead(optim.AdamW(parameters, 0.01), k=3)


def _sam(trial: Trial) -> None:
    from pytorch_optimizer import SAM

    trial.needs = MOVES
    model = network()
    optimizer = SAM(model.parameters(), base_optimizer=optim.AdamW, lr=0.01)
    trial.steps = 40  # the SDK waits some steps until it says that the optimizer makes none
    trial.begin(model, optimizer)
    for batch in trial.batches():

        def both(batch: Any = batch) -> None:
            optimizer.first_step(zero_grad=True)
            loss_of(model, batch).backward()
            optimizer.second_step(zero_grad=True)

        loss = loss_of(model, batch)
        loss.backward()
        trial.step(optimizer, both)
        trial.log(loss)


def _adafactor(*, relative: bool) -> Make:
    def make(parameters: Any) -> Any:
        from transformers.optimization import Adafactor

        if relative:
            return Adafactor(parameters)
        return Adafactor(parameters, lr=0.01, relative_step=False, scale_parameter=False)

    return make


def _wide() -> nn.Module:
    """Return a network whose matrices are large enough to have a quantised state."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 1024), nn.Tanh(), nn.Linear(1024, OUTPUTS))


def _bitsandbytes(name: str) -> Make:
    def make(parameters: Any) -> Any:
        import bitsandbytes

        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        return getattr(bitsandbytes.optim, name)(parameters, lr=0.001)

    return make
