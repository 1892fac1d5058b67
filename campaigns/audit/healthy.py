"""Healthy trainings, at which the audit must find nothing: the set-ups that people train with, and controls."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import client_sdk
from benchmarks.spike_trainings import CASES
from campaigns.audit.fault import FEATURES, OUTPUTS, ROWS, Training, network
from campaigns.audit.trial import Trial, watched
from campaigns.set_ups.catalogue import catalogue
from campaigns.set_ups.child import Heard
from campaigns.set_ups.trial import Trial as SetUpTrial
from client_sdk.protocol import Audit, Record, decode_record
from client_sdk.run import Run
from client_sdk.spool.spool import Spool
from client_sdk.watch import watch
from server.evaluation.recording import CONTROL

STEPS: Final = 60  # of each set-up, more than any check of a fault waits for
SKIPPED: Final = {
    "pure bfloat16, updates lost to rounding": "it has the fault that is looked for",
    "Keras on torch, fit()": "its optimizer is not torch's",
}
FEW: Final = 5  # of which every fifth set-up is a sample
Control = Callable[[Run], int]


@dataclass(kw_only=True)
class Healthy:
    """Findings at healthy trainings."""

    count: int = 0
    runs: int = 0
    """Number of times that checks ran."""
    groups: list[str] = field(default_factory=list)
    """Kinds of trainings with their number."""
    findings: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """Trainings that could not be run, with the reason."""

    def add(self, name: str, trial: Trial) -> None:
        """Count a training."""
        self.count += 1
        self.runs += sum(trial.runs.values())
        if "audit" in trial.warnings:
            self.findings.append(f"{name}: a check raised an exception")
        self.findings += [f"{name}: {finding.check}: {finding.message}" for _, finding in trial.findings.values()]


def try_healthy(*, everything: bool, only: str, report: Callable[[str], None]) -> Healthy:
    """Run the controls and the set-ups of one process whose section or name has the text ``only``.

    ``everything`` is False for every `FEW`-th set-up.
    """
    found = Healthy()
    for name, control in CONTROLS.items() if not only else ():
        found.add(name, watched(control))
    found.groups.append(f"{len(CONTROLS)} controls that come close to a fault")
    own = [name for name, case in CASES.items() if case.cause == CONTROL and not only]
    for name in own:
        found.add(name, watched(partial(_own, name)))
    found.groups.append(f"{len(own)} healthy cases of `benchmarks.spike_trainings`")
    chosen = [
        each
        for each in catalogue().set_ups.values()
        if each.processes == 1 and only.lower() in f"{each.group} {each.name}".lower()
    ]
    tried = 0
    for at, set_up in enumerate(chosen):
        if (not everything and at % FEW) or set_up.name in SKIPPED:
            continue
        try:
            trial = _watched_set_up(set_up.train)
        except Exception as error:
            found.troubles.append(f"{set_up.name}: {type(error).__name__}: {error}")
            continue
        tried += 1
        found.add(set_up.name, trial)
        report(f"{set_up.name:50} {len(trial.findings)} findings, {sum(trial.runs.values())} runs of checks")
    found.groups.append(f"{tried} set-ups of `make set-ups`")
    return found


def _watched_set_up(train: Callable[[SetUpTrial], None]) -> Trial:
    """Train a set-up for `STEPS` steps, and return what the audit says."""
    torch.manual_seed(0)
    torch.compiler.reset()
    heard = Heard()
    logger = logging.getLogger("client_sdk")
    logger.addHandler(heard)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"SPIKEWATCH_MODE": "offline", "SPIKEWATCH_DIR": folder, "HF_HUB_OFFLINE": "1"}
            trial = SetUpTrial(project="audit", is_watched=True, steps=STEPS)
            train(trial)
            trial.end()
            client_sdk.finish()
            reports = [report for path in Path(folder).iterdir() for report in _reports(path)]
    finally:
        logger.removeHandler(heard)
    return _summed(reports, dict.fromkeys(heard.messages, 1))


def _reports(path: Path) -> list[Audit]:
    """Return the reports of the audit in a spool."""
    records: list[Record] = []
    spool = Spool.open(path)
    try:
        while payloads := spool.read(len(records), 1_000_000):
            records += map(decode_record, payloads)
    finally:
        spool.release()
    return [record.audit for record in records if record.audit is not None]


def _summed(reports: list[Audit], warnings: dict[str, int]) -> Trial:
    runs: dict[str, int] = {}
    for report in reports:
        runs |= report.runs
    findings = {finding.check: (0, finding) for report in reports for finding in report.findings}
    return Trial(findings=findings, runs=runs, named_after=None, warnings=warnings)


def _own(name: str, run: Run) -> int:
    """Train a healthy case of the recordings that the detectors are judged by, for `STEPS` steps."""
    case = CASES[name]
    torch.manual_seed(0)
    training = case.build()
    optimizer = case.optimizer(training.model)
    watch(run, training.model, optimizer, every=1)
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = case.rate(step)
        closure = training.new_batch(step)
        optimizer.zero_grad()
        loss = closure()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss, "lr": case.rate(step)}, step=step, closure=closure)
    return 0


# -- controls: trainings that come close to a fault --


def plain(run: Run) -> int:
    """Nothing out of the ordinary, with a closure and the rhythm by default."""
    training = Training(run)
    training.makes_closure = True
    training.watch(every="auto", curvature="auto")
    training.steps(200)
    return 0


def full_batch(run: Run) -> int:
    """The same tensors at each step, as in training on all data at once."""
    training = Training(run)
    training.makes_closure = True
    training.watch()
    batch = training.batch()
    training.steps(120, batch=batch)
    return 0


def accumulated(run: Run) -> int:
    """Micro-batches that are averaged, with the closure of the whole batch and the norm before clipping."""
    training = Training(run)
    training.watch()
    for _ in range(40):
        training.optimizer.zero_grad()
        inputs, targets = training.batch()
        total = torch.zeros(())
        for part in zip(inputs.chunk(4), targets.chunk(4), strict=True):
            loss = training.loss(part) / 4
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), 0.3)
        training.optimizer.step()
        run.log(
            {"loss": total, "grad_norm": norm},
            step=training.step,
            closure=partial(training.loss, (inputs, targets)),
        )
        training.step += 1
    return 0


def zeroed_by_data(run: Run) -> int:
    """Gradients are zeroed through .data, which no version counter shows."""
    training = Training(run)
    training.watch()
    for _ in range(20):
        for parameter in training.model.parameters():
            if parameter.grad is not None:
                parameter.grad.data.zero_()
        training.once(zero=False)
    return 0


def adversaries(run: Run) -> int:
    """A GAN in the usual order: the discriminator gets gradients of the generator that are zeroed later."""
    torch.manual_seed(0)
    generator, discriminator = nn.Linear(4, FEATURES), nn.Linear(FEATURES, 1)
    first = torch.optim.Adam(generator.parameters(), 0.01)
    second = torch.optim.Adam(discriminator.parameters(), 0.01)
    for model, optimizer in ((generator, first), (discriminator, second)):
        watch(run, model, optimizer, every=1, curvature="off")
    for step in range(60):
        fake = generator(torch.randn(ROWS, 4))
        second.zero_grad()
        loss = (discriminator(fake.detach()) + 1 - discriminator(torch.randn(ROWS, FEATURES))).square().mean()
        loss.backward()
        second.step()
        first.zero_grad()
        own = (1 - discriminator(fake)).square().mean()
        own.backward()
        first.step()
        run.log({"loss": loss, "generator": own}, step=step)
    return 0


def constrained(run: Run) -> int:
    """Weights are clamped after every step, as in a Wasserstein GAN."""
    training = Training(run)
    training.watch()
    for _ in range(40):
        training.once()
        for parameter in training.model.parameters():
            parameter.data.clamp_(-0.3, 0.3)
    return 0


def projected(run: Run) -> int:
    """Weights are clamped in place after every step, which changes none of them for a long time."""
    training = Training(run)
    training.watch()
    for _ in range(60):
        training.once()
        with torch.no_grad():
            for parameter in training.model.parameters():
                parameter.clamp_(-0.55, 0.55)
    return 0


class _Bounded(nn.Module):
    """An embedding that limits the norms of its rows within forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, OUTPUTS, max_norm=1.5)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.embed((inputs[:, 0] > 0).long())
        return result


def bounded_embedding(run: Run) -> int:
    """The rows of an embedding reach the norm that it allows in the middle."""
    torch.manual_seed(0)
    model = _Bounded()
    with torch.no_grad():
        model.embed.weight.mul_(0.5)
    training = Training(run, model, lr=0.05)
    training.watch()
    for _ in range(60):
        inputs, targets = training.batch()
        training.once(batch=(inputs, targets + 3.0))
    return 0


def averaged(run: Run) -> int:
    """The weights are exchanged for their average to evaluate, and put back."""
    training = Training(run)
    training.watch()
    for step in range(60):
        training.once()
        if step % 15 == 14:
            training.model.eval()
            before = {name: value.clone() for name, value in training.model.state_dict().items()}
            training.model.load_state_dict({name: value * 0.9 for name, value in before.items()})
            with torch.no_grad():
                training.loss(training.batch())
            training.model.load_state_dict(before)
            training.model.train()
    return 0


def rolled_back(run: Run) -> int:
    """Training goes back to a checkpoint with the state of its optimizer."""
    training = Training(run)
    training.watch()
    training.steps(20)
    weights = {name: value.clone() for name, value in training.model.state_dict().items()}
    state = copy.deepcopy(training.optimizer.state_dict())
    training.steps(20)
    training.model.load_state_dict(weights)
    training.optimizer.load_state_dict(state)
    training.step = 20
    training.steps(20)
    return 0


def resumed(run: Run) -> int:
    """Training continues at a late step with the state of its optimizer."""
    before = Training(run)
    before.optimizer.zero_grad()
    before.loss(before.batch()).backward()
    before.optimizer.step()
    training = Training(run)
    training.optimizer.load_state_dict(before.optimizer.state_dict())
    training.step = 5_000
    training.watch()
    training.steps(20)
    return 0


def counted_in_samples(run: Run) -> int:
    """Steps of the run count samples."""
    training = Training(run)
    training.watch()
    for step in range(1, 40):
        training.step = 512 * step
        training.once()
    return 0


def dropout_evaluated(run: Run) -> int:
    """A model with dropout is evaluated between backward() and step()."""
    torch.manual_seed(0)
    training = Training(run, nn.Sequential(nn.Linear(FEATURES, 12), nn.Dropout(0.1), nn.Linear(12, OUTPUTS)))
    training.watch()
    for _ in range(20):
        training.model.train()
        training.once(before=training.model.eval)
        training.model.train()
    return 0


def frozen_norms(run: Run) -> int:
    """A model with batch normalisation is kept in evaluation mode, to freeze its statistics."""
    torch.manual_seed(0)
    training = Training(run, nn.Sequential(nn.Linear(FEATURES, 12), nn.BatchNorm1d(12), nn.Linear(12, OUTPUTS)))
    training.model.eval()
    training.watch()
    training.steps(20)
    return 0


def scheduled(run: Run) -> int:
    """The learning rate of a schedule is logged before and after it moves."""
    training = Training(run)
    schedule = torch.optim.lr_scheduler.OneCycleLR(training.optimizer, 0.02, total_steps=80)
    training.watch()
    for step in range(60):
        training.logged["lr"] = schedule.get_last_lr()[0]
        training.once()
        schedule.step()
        if step % 2:
            training.logged["lr"] = schedule.get_last_lr()[0]
    return 0


def scaled(run: Run) -> int:
    """A GradScaler whose first scales are too large, and gradients that are unscaled and clipped."""
    training = Training(run)
    training.watch()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=20)
    for step in range(60):
        training.optimizer.zero_grad()
        loss = training.loss(training.batch())
        scaler.scale(loss).backward()
        if step < 6 or step == 40:
            next(training.model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]  # backward has made it
        scaler.unscale_(training.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), 0.5)
        scaler.step(training.optimizer)
        scaler.update()
        run.log({"loss": loss, "grad_norm": norm}, step=step)
    return 0


def warmed_up(run: Run) -> int:
    """bfloat16 weights whose first updates are lost while the learning rate rises, and at the end of a schedule."""
    training = Training(run, network().to(torch.bfloat16), lr=1.0, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        training.optimizer, lambda step: 1e-6 * (1.02**step) if step < 460 else 1e-6 * 1.02**460 * 0.9 ** (step - 460)
    )
    training.watch()
    for _ in range(560):
        inputs, targets = training.batch()
        training.once(batch=(inputs.to(torch.bfloat16), targets.to(torch.bfloat16)))
        schedule.step()
    return 0


def sparse_relu(run: Run) -> int:
    """ReLU layers some of whose units are dead."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, OUTPUTS))
    with torch.no_grad():
        model[0].bias[:40] = -100.0
    training = Training(run, model)
    training.watch()
    training.steps(60)
    return 0


def added_adapters(run: Run) -> int:
    """Half of the parameters are frozen, and are trained from the middle on."""
    training = Training(run)
    model: Any = training.model
    model[0].requires_grad_(False)
    training.optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    training.watch()
    training.steps(30)
    model[0].requires_grad_(True)
    training.steps(30)
    return 0


def on_all_data(run: Run) -> int:
    """Slices of all data are taken anew at each step."""
    training = Training(run)
    training.makes_closure = True
    training.watch()
    inputs, targets = training.batch()
    for _ in range(60):
        training.once(batch=(inputs[:], targets[:]))
    return 0


def sparse_gradients(run: Run) -> int:
    """The gradients of an embedding are sparse."""
    torch.manual_seed(0)
    model = nn.Embedding(8, OUTPUTS, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch(run, model, optimizer, every=1)
    for step in range(20):
        optimizer.zero_grad()
        loss = model(torch.randint(8, (ROWS,))).square().mean()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss}, step=step)
    return 0


def loaded_in_one_batch(run: Run) -> int:
    """A DataLoader whose only batch is all data."""
    training = Training(run)
    training.makes_closure = True
    training.watch()
    inputs = torch.randn(32, FEATURES)
    loader = DataLoader(TensorDataset(inputs, torch.sin(inputs[:, :OUTPUTS])), batch_size=32)
    for _ in range(60):
        for batch in loader:
            training.once(batch=tuple(batch))
    return 0


def coarse_loss(run: Run) -> int:
    """The loss of a full batch is rounded to bfloat16, and repeats."""
    training = Training(run, lr=1e-4)
    training.watch()
    batch = training.batch()
    for _ in range(120):
        training.optimizer.zero_grad()
        loss: Tensor = training.loss(batch)
        loss.backward()
        training.optimizer.step()
        run.log({"loss": float(loss.detach().to(torch.bfloat16))}, step=training.step)
        training.step += 1
    return 0


CONTROLS: Final[dict[str, Control]] = {
    each.__name__.replace("_", " "): each
    for each in (
        plain, full_batch, accumulated, zeroed_by_data, adversaries, constrained, projected,
        bounded_embedding, averaged, rolled_back, resumed,
        counted_in_samples, dropout_evaluated, frozen_norms, scheduled, scaled, warmed_up, sparse_relu, added_adapters,
        on_all_data, coarse_loss, sparse_gradients, loaded_in_one_batch,
    )
}  # fmt: skip
"""Healthy trainings by name."""
