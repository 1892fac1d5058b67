"""One training of the study: a case, a seed and a remedy, and what came of it."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import torch

import client_sdk
from benchmarks.spike_trainings import CASES
from campaigns.guard_study.remedies import REMEDIES
from server.evaluation.labels import label

LAST = 40
"""Losses whose median is the final loss."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one training."""

    case: str
    seed: int
    remedy: str
    cause: str
    heights: tuple[float, ...]
    """Rise of the loss at each labelled spike, in units of its level before."""
    acts: int
    touched: int
    final: float
    best: float
    steps: int
    seconds: float
    """Processor time of the training thread."""
    fingerprint: str
    """Sum of all losses as a hexadecimal number, which tells whether two trainings are the same to the bit."""


def run(name: str, seed: int, remedy_name: str, *, steps: int) -> Outcome:
    """Train a case once with a remedy, both by their names, for ``steps`` steps at most, and return the outcome."""
    case, remedy = CASES[name], REMEDIES[remedy_name]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    case = remedy.applied_to(case)
    training = case.build()
    optimizer = case.optimizer(training.model)
    if remedy.has_own_groups:
        settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        groups = [{"params": [one], **settings} for one in training.model.parameters()]
        optimizer = torch.optim.AdamW(groups) if case.weight_decay else torch.optim.Adam(groups)
    hook = None if remedy.before_step is None else remedy.before_step(optimizer)
    losses: list[float] = []
    steps = min(case.steps, steps)
    with tempfile.TemporaryDirectory() as directory:
        watched = client_sdk.init(project="guard study", mode="offline", directory=Path(directory))
        handle = None
        if remedy.policy is not None:
            handle = client_sdk.guard(optimizer, mode=remedy.mode, policy=remedy.policy)
        began = time.thread_time()
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = case.rate(step)
            batch_loss = training.new_batch(step)
            optimizer.zero_grad()
            loss = batch_loss()
            loss.backward()
            if hook is not None:
                hook()
            optimizer.step()
            losses.append(loss.item())
            watched.log({"loss": losses[-1]}, step=step)
            if not math.isfinite(losses[-1]):
                break
        seconds = time.thread_time() - began
        watched.finish(0.0)
    series = np.array(losses)
    events = label(series)[0]
    return Outcome(
        case=name,
        seed=seed,
        remedy=remedy_name,
        cause=case.cause,
        heights=tuple(_rise(event.height, event.base, is_finite=event.finite) for event in events),
        acts=0 if handle is None else len(handle.acts),
        touched=0 if handle is None else handle.touched,
        final=float(np.median(series[-LAST:])),
        best=float(np.nanmin(series)),
        steps=steps,
        seconds=seconds,
        fingerprint=math.fsum(losses).hex() if np.isfinite(series).all() else "not finite",
    )


def _rise(height: float, base: float, *, is_finite: bool) -> float:
    return height / abs(base) if is_finite and base != 0 else math.inf
