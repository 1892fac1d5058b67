"""The faults of the table, each put into a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from campaigns.audit.fault import FEATURES, OUTPUTS, Injection, Training, network
from client_sdk.run import Run

HEALTHY = 12  # steps before a fault that begins later


@contextmanager
def _kernel(wrong: Callable[..., Tensor]) -> Iterator[None]:
    """Let ``wrong`` take the place of the operation that makes Adam's update."""
    with mock.patch.object(Tensor, "addcdiv_", wrong):
        yield


def _half_of_every_other(self: Tensor, numerator: Tensor, denominator: Tensor, *, value: Any = 1) -> Tensor:
    scale = torch.ones_like(numerator)
    scale.view(-1)[::2] = 0.5
    return torch.add(self, numerator * scale / denominator, alpha=value, out=self)


def _quarter(self: Tensor, numerator: Tensor, denominator: Tensor, *, value: Any = 1) -> Tensor:
    return torch.add(self, numerator / denominator, alpha=value / 4, out=self)


def formula(run: Run) -> int:
    """A kernel computes another update than the formula."""
    training = Training(run)
    training.watch()
    training.steps(3)
    with _kernel(_half_of_every_other):
        training.steps(3)
    return 3


def clipping(run: Run) -> int:
    """Gradients are clipped through a generator that is used up."""
    training = Training(run)
    training.watch()
    parameters = iter(list(training.model.parameters()))
    list(parameters)

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 0.01)
        norms = [parameter.grad.norm() for parameter in training.model.parameters() if parameter.grad is not None]
        training.logged["grad_norm"] = float(torch.stack(norms).norm())

    training.steps(3, before=clip)
    return 0


def clipping_scaled(run: Run) -> int:
    """Gradients are clipped while they are multiplied by the loss scale."""
    training = Training(run)
    training.watch()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        training.optimizer.zero_grad()
        loss = training.loss(training.batch())
        scaler.scale(loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1e6)
        scaler.step(training.optimizer)
        scaler.update()
        run.log({"loss": loss, "grad_norm": norm}, step=training.step)
        training.step += 1
    return 0


def not_zeroed(run: Run) -> int:
    """zero_grad() is never called."""
    training = Training(run)
    training.watch()
    training.steps(6, zero=False)
    return 0


def summed(run: Run) -> int:
    """Four micro-batches are summed, and the mean loss is logged."""
    training = Training(run, lr=1e-4)
    training.watch()
    for _ in range(4):
        training.optimizer.zero_grad()
        inputs, targets = training.batch()
        losses = [training.loss(part) for part in zip(inputs.chunk(4), targets.chunk(4), strict=True)]
        for loss in losses:
            loss.backward()
        training.optimizer.step()
        mean = torch.stack(losses).mean()
        run.log({"loss": mean}, step=training.step, closure=partial(training.loss, (inputs, targets)))
        training.step += 1
    return 1  # at the first step nobody has counted the micro-batches


def schedule(run: Run) -> int:
    """A scheduler was created with the optimizer before this one."""
    training = Training(run)
    decay = torch.optim.lr_scheduler.ExponentialLR(torch.optim.AdamW(training.model.parameters(), 0.01), 0.9)
    decay.optimizer.step()
    training.watch()
    for _ in range(4):
        training.logged["lr"] = decay.get_last_lr()[0]
        training.once()
        decay.step()
    return 1


def baked_rate(run: Run) -> int:
    """A step that was captured uses the learning rate of its capture."""
    training = Training(run)
    training.watch()
    training.steps(3)
    for group in training.optimizer.param_groups:
        group["weight_decay"] = 0.0
    with _kernel(_quarter):
        training.steps(3)
    return 3


def dead_tensors(run: Run) -> int:
    """A layer is initialised anew after the optimizer was created."""
    training = Training(run)
    model: Any = training.model
    model[4] = nn.Linear(12, OUTPUTS)
    training.watch()
    training.steps(3)
    return 0


def unowned(run: Run) -> int:
    """The optimizer has the first layer alone."""
    training = Training(run)
    model: Any = training.model
    training.optimizer = torch.optim.AdamW(model[0].parameters(), 0.01)
    training.watch()
    for _ in range(22):
        model.zero_grad()
        training.once()
    return 0


class _WithUnused(nn.Module):
    """A network with a layer that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.extra = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.net(inputs)
        return result


def unused(run: Run) -> int:
    """A layer is not part of the forward pass."""
    training = Training(run, _WithUnused())
    training.watch()
    training.steps(22)
    return 0


def moments(run: Run) -> int:
    """A checkpoint is loaded in the middle, and the optimizer's state is not."""
    training = Training(run)
    training.watch()
    training.steps(HEALTHY)
    training.optimizer.state.clear()
    training.steps(3)
    return HEALTHY


def moments_on_resume(run: Run) -> int:
    """A training continues at step 5,000 with a new optimizer."""
    training = Training(run)
    training.step = 5_000
    training.watch()
    training.steps(3)
    return 5_001  # one record does not show that steps are counted one by one


def weights(run: Run) -> int:
    """Weights of a checkpoint are loaded between two steps."""
    training = Training(run)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.watch()
    training.steps(HEALTHY)
    training.model.load_state_dict(before)
    training.steps(3)
    return HEALTHY


class _Tied(nn.Module):
    """One matrix on the way in and on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.way_in = nn.Linear(FEATURES, FEATURES, bias=False)
        self.way_out = nn.Linear(FEATURES, FEATURES, bias=False)
        self.way_out.weight = self.way_in.weight

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.way_out(torch.tanh(self.way_in(inputs)))[:, :OUTPUTS]
        return result


def tied(run: Run) -> int:
    """Weights that were tied come apart in the middle."""
    torch.manual_seed(0)
    training = Training(run, _Tied())
    model: Any = training.model
    training.watch()
    training.steps(HEALTHY)
    model.way_out.weight = nn.Parameter(model.way_in.weight.detach().clone())
    training.steps(3)
    return HEALTHY


def norm_off(run: Run) -> int:
    """The norm is logged before the gradients are divided by the number of micro-batches."""
    training = Training(run)
    training.watch()

    def divide() -> None:
        grads = [parameter.grad for parameter in training.model.parameters() if parameter.grad is not None]
        training.logged["grad_norm"] = float(torch.stack([grad.norm() for grad in grads]).norm())
        for grad in grads:
            grad.div_(4)

    training.steps(3, before=divide)
    return 0


def rounding(run: Run) -> int:
    """The weights are bfloat16 and the learning rate is too small for them."""
    training = Training(run, network().to(torch.bfloat16), lr=1e-6, weight_decay=0.0)
    training.watch()
    for _ in range(52):
        inputs, targets = training.batch()
        training.once(batch=(inputs.to(torch.bfloat16), targets.to(torch.bfloat16)))
    return 0


def dead_layer(run: Run) -> int:
    """The units of a ReLU layer are dead."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(), nn.Linear(12, OUTPUTS))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    training = Training(run, model)
    training.watch()
    training.steps(52)
    return 0


def constant_loss(run: Run) -> int:
    """The loss of the first batch is logged at every step."""
    training = Training(run)
    training.watch()
    first = float(training.loss(training.batch()).detach())
    for _ in range(52):
        training.optimizer.zero_grad()
        training.loss(training.batch()).backward()
        training.optimizer.step()
        run.log({"loss": first}, step=training.step)
        training.step += 1
    return 0


def same_batch(run: Run) -> int:
    """The iterator of the data is created anew at each step."""
    training = Training(run)
    training.watch()
    training.makes_closure = True
    inputs = torch.randn(128, FEATURES)
    loader = DataLoader(TensorDataset(inputs, torch.sin(inputs[:, :OUTPUTS])), batch_size=16)
    for _ in range(52):
        training.once(batch=tuple(next(iter(loader))))
    return 0


def evaluation_mode(run: Run) -> int:
    """The model stays in evaluation mode, as from_pretrained() returns it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 12), nn.Dropout(0.1), nn.Linear(12, OUTPUTS))
    model.eval()
    training = Training(run, model)
    training.watch()
    training.steps(3)
    return 0


def evaluation_mode_later(run: Run) -> int:
    """The model stays in evaluation mode after an evaluation."""
    torch.manual_seed(0)
    training = Training(run, nn.Sequential(nn.Linear(FEATURES, 12), nn.Dropout(0.1), nn.Linear(12, OUTPUTS)))
    training.watch()
    training.steps(HEALTHY)
    training.model.eval()
    training.steps(3)
    return HEALTHY + 1  # at the first such step an evaluation between backward() and step() is possible


def loss_scale(run: Run) -> int:
    """Every gradient overflows, so that a GradScaler halves its scale at each step."""
    training = Training(run)
    training.watch()
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    for step in range(40):
        training.optimizer.zero_grad()
        loss = training.loss(training.batch())
        scaler.scale(loss).backward()
        if step >= 4:
            next(training.model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]  # backward has made it
        scaler.step(training.optimizer)
        scaler.update()
        run.log({"loss": loss}, step=step)
    return 15  # the twelfth reduction in a row


def hardware(run: Run) -> int:
    """A matrix product is wrong now and then."""
    training = Training(run)
    handle = training.watch()
    training.steps(3)
    calls = 0
    batch = training.batch()

    def flipped(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return output + 4.0 * (calls % 3 == 2)

    hook = training.model.register_forward_hook(flipped)
    handle.recompute(lambda: training.loss(batch))
    hook.remove()
    training.steps(1)
    return 3


FAULTS = (
    Injection(number=1, name="update that does not follow from the formula", check="update-formula", within=1,
              train=formula),
    Injection(number=2, name="clipping that did not scale", check="clipping-without-effect", within=1, train=clipping,
              config=(("max_grad_norm", 0.01),)),
    Injection(number=2, name="clipping of gradients that are still scaled", check="clipping-without-effect", within=1,
              train=clipping_scaled),
    Injection(number=3, name="gradients accumulated without zeroing", check="gradients-not-zeroed", within=3,
              train=not_zeroed),
    Injection(number=4, name="micro-batches summed", check="micro-batches-summed", within=1, train=summed),
    Injection(number=5, name="learning rate of a schedule not used", check="learning-rate-unused", within=1,
              train=schedule),
    Injection(number=5, name="learning rate of a captured step", check="learning-rate-unused", within=1,
              train=baked_rate),
    Injection(number=6, name="optimizer moves dead tensors", check="dead-parameters", within=1, train=dead_tensors),
    Injection(number=7, name="gradients that no optimizer owns", check="unowned-parameters", within=20, train=unowned),
    Injection(number=7, name="parameters without a gradient", check="unused-parameters", within=20, train=unused),
    Injection(number=8, name="moments lost", check="moments-lost", within=1, train=moments),
    Injection(number=8, name="moments lost on resume", check="moments-lost", within=1, train=moments_on_resume),
    Injection(number=9, name="weights changed between steps", check="weights-changed", within=1, train=weights),
    Injection(number=10, name="tied weights came apart", check="tied-weights", within=1, train=tied),
    Injection(number=12, name="gradient norm off by the accumulation", check="gradient-norm-off", within=1,
              train=norm_off, config=(("gradient_accumulation_steps", 4),)),
    Injection(number=13, name="layer frozen by rounding", check="frozen-by-rounding", within=50, train=rounding),
    Injection(number=14, name="dead layer", check="dead-layer", within=50, train=dead_layer),
    Injection(number=15, name="loss that does not depend on the batch", check="loss-constant", within=50,
              train=constant_loss),
    Injection(number=15, name="the same batch again and again", check="batch-repeated", within=50, train=same_batch),
    Injection(number=16, name="evaluation mode from the start", check="evaluation-mode", within=1,
              train=evaluation_mode),
    Injection(number=16, name="evaluation mode left on", check="evaluation-mode", within=1,
              train=evaluation_mode_later),
    Injection(number=17, name="loss scale collapsing", check="loss-scale", within=1, train=loss_scale),
    Injection(number=18, name="hardware error, on request", check="hardware-error", within=1, train=hardware),
)  # fmt: skip
"""Faults of one process, in the order of their numbers."""
