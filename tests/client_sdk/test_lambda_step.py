"""λ_step is that of the closure's own batch and of the step that was made, or is left out."""

from __future__ import annotations

import pytest
import torch

from client_sdk.curvature import Probe
from client_sdk.optimizers import stability_limit
from tests.support.curvature_problem import OPTIMIZERS, OPTIMIZERS_OF_UNKNOWN_LIMIT, Problem

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks


@pytest.mark.parametrize("clip", [None, 0.01], ids=["plain", "clipped"])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("name", ["adam", "sgd", "adamw", "sign"])
@pytest.mark.parametrize("lr", [0.003, 0.3])
def test_lambda_step_belongs_to_the_batch_of_the_closure(
    name: str, lr: float, micro_batches: int, clip: float | None
) -> None:
    problem = Problem((OPTIMIZERS | OPTIMIZERS_OF_UNKNOWN_LIMIT)[name], steps=5)
    for group in problem.optimizer.param_groups:
        group["lr"] = lr
    for step in (100, 200):
        problem.probe.measure(step, problem.closure, lr=lr)
    before = [p.detach().clone() for p in problem.model.parameters()]
    gradient = torch.autograd.grad(loss := problem.closure(), list(problem.model.parameters()))
    problem.probe.before_step(lr)
    problem.step(clip=clip, micro_batches=micro_batches)
    for group in problem.optimizer.param_groups:
        group["lr"] = 7.0  # a scheduler that was called before `log`
    slope = sum(
        float((g * (p.detach() - old)).sum())
        for p, g, old in zip(problem.model.parameters(), gradient, before, strict=True)
    )
    after = [p.detach().clone() for p in problem.model.parameters()]
    copied = problem.probe.measure(300, problem.closure, lr=7.0)
    assert copied is not None
    assert all(torch.equal(p, old) for p, old in zip(problem.model.parameters(), after, strict=True))
    change = float((problem.closure() - loss).detach())
    if slope >= 0:
        assert "lambda_step" not in copied.scalars(), "the step did not descend on this batch"
        return
    assert copied.scalars()["lambda_step"] == pytest.approx(2 * (change - slope) / (-lr * slope), rel=1e-4)
    assert (copied.scalars()["lambda_step"] > stability_limit(lr)) == (change > 0)


def test_lambda_step_compares_both_ends_with_the_same_random_numbers() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=3)
    noisy = lambda: problem.closure() * (1 + 0.5 * torch.rand((), dtype=torch.float64))  # noqa: E731
    problem.measure(times=2)
    problem.probe.before_step(0.01)
    before = problem.step()
    copied = problem.probe.measure(300, noisy, lr=0.01)
    assert copied is not None
    values = copied.values()
    after = float(problem.closure().detach())
    assert values["loss"] / values["loss_before"] == pytest.approx(after / before, rel=1e-9)


def test_a_step_that_changed_nothing_has_no_lambda_step() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=3)
    problem.measure(times=2)
    problem.probe.before_step(0.01)  # GradScaler skipped the step, or the hook of another optimizer failed
    copied = problem.probe.measure(300, problem.closure, lr=0.01)
    assert copied is not None
    assert copied.values()["slope"] == 0
    assert "lambda_step" not in copied.scalars()


def test_weights_are_kept_only_for_the_step_before_a_probe() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=3)
    problem.probe = Probe(problem.model, problem.optimizer, "adam", every=50, warner=problem.warner)
    reported = []
    for step in range(200):
        for _ in range(3):  # three optimizer steps for each `log`
            problem.probe.before_step(0.01)
            problem.step()
        copied = problem.probe.measure(step, problem.closure, lr=0.01)
        if copied is not None:
            reported.append("slope" in copied.values())
    assert len(reported) > 5
    assert all(reported[1:]), "every probe but one at the very start knew that it was coming"
