"""λ_grad and λ_max agree with dense float64 Hessians and SciPy, at one point and along trainings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client_sdk.budget import BRIEF, Budget
from client_sdk.curvature import Probe, tracking
from client_sdk.curvature.tracking import GOOD_ERROR, MOST_AT_POINT
from client_sdk.optimizers import kind_of
from client_sdk.warner import Warner
from tests.support.curvature_problem import OPTIMIZERS, Problem, counted_products
from tests.support.dense_hessian import dense_hessian, dense_preconditioner, largest_eigenvalue

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_curvature_equals_the_dense_oracle(name: str) -> None:
    problem = Problem(OPTIMIZERS[name])
    lambda_max, lambda_grad = problem.expected()
    first = problem.measure()
    assert first["lambda_grad"] == pytest.approx(lambda_grad, rel=1e-9)
    assert first["lambda_max"] <= lambda_max * (1 + 1e-9)
    assert first["lambda_max"] == pytest.approx(lambda_max, rel=0.02), "the products of the first round come close"
    later = problem.measure(times=12)
    assert later["lambda_max"] == pytest.approx(lambda_max, rel=2e-4)
    assert later["lambda_max"] >= lambda_max * (1 - later["lambda_max_error"] - 1e-9)


def test_parameter_groups_carry_their_own_learning_rate() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=0)
    parameters = list(problem.model.parameters())
    problem.optimizer = torch.optim.Adam(
        [
            {"params": parameters[:2], "lr": 0.02, "betas": (0.5, 0.99)},
            {"params": parameters[2:5], "lr": 0.001},
            {"params": parameters[5:], "lr": 0.01, "eps": 1e-3},
        ]
    )
    problem.probe = Probe(problem.model, problem.optimizer, "adam", every=1, warner=problem.warner)
    for _ in range(5):
        problem.step()
    lambda_max, lambda_grad = problem.expected()
    values = problem.measure(times=12)
    assert values["lr"] == 0.02
    assert values["lambda_grad"] == pytest.approx(lambda_grad, rel=1e-9)
    assert values["lambda_max"] == pytest.approx(lambda_max, rel=2e-4)


def test_coupled_weight_decay_is_part_of_the_loss() -> None:
    problem = Problem(lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.2))
    lambda_max, lambda_grad = problem.expected()
    values = problem.measure(times=12)
    assert values["lambda_grad"] == pytest.approx(lambda_grad, rel=1e-9)
    assert values["lambda_max"] == pytest.approx(lambda_max, rel=2e-4)


def test_a_group_with_learning_rate_zero_does_not_count() -> None:
    problem = Problem(OPTIMIZERS["sgd"], steps=0)
    parameters = list(problem.model.parameters())
    problem.optimizer = torch.optim.SGD([{"params": parameters[:4], "lr": 0.1}, {"params": parameters[4:], "lr": 0.0}])
    problem.probe = Probe(problem.model, problem.optimizer, "sgd", every=1, warner=problem.warner)
    values = problem.measure(times=12)
    gradient, hessian = dense_hessian(problem.model, problem.loss_of)
    diagonal = dense_preconditioner(problem.model, problem.optimizer)
    moving = np.where(diagonal > 0, gradient, 0.0)
    assert values["lambda_max"] == pytest.approx(largest_eigenvalue(diagonal, hessian), rel=2e-4)
    assert values["lambda_grad"] == pytest.approx(float(moving @ hessian @ moving / (moving @ moving)), rel=1e-9)


def test_largest_is_not_the_largest_in_magnitude() -> None:
    problem = Problem(OPTIMIZERS["adam"], scale=-1.0)  # maximises the loss, whose large eigenvalues are negative
    _, hessian = dense_hessian(problem.model, problem.loss_of)
    values = np.linalg.eigvalsh(hessian)
    assert -values[0] > 1.5 * values[-1]
    lambda_max, _ = problem.expected()
    assert problem.measure(times=20)["lambda_max"] == pytest.approx(lambda_max, rel=2e-3)


def test_few_products_follow_a_training_run(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=20)
    problem.measure(times=3)
    products = counted_products(monkeypatch)
    for _ in range(10):
        problem.step()
        products.clear()
        values = problem.measure()
        assert len(products) <= 5, "with those for λ_grad and the second direction"
        assert values["lambda_max"] == pytest.approx(problem.expected()[0], rel=0.01)


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_one_product_a_step_follows_a_training_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited budget spreads the products over the steps, and the error of each reading covers the truth."""
    budget = Budget(0.9)
    problem = Problem(OPTIMIZERS[name], steps=20)
    problem.probe = Probe(
        problem.model, problem.optimizer, kind_of(problem.optimizer), every=1, warner=problem.warner, budget=budget
    )
    products = counted_products(monkeypatch)
    errors, first = [], 0
    for step in range(80):
        budget.end_step(10.0)  # seconds, beside which these products are cheap
        problem.step()
        products.clear()
        copied = problem.probe.measure(step, problem.closure, lr=None)
        assert len(products) <= 1
        scalars = {} if copied is None else copied.scalars()
        if "lambda_max" in scalars:
            truth = problem.expected()[0]
            first = first or step
            errors.append(scalars["lambda_max"] / truth - 1)
            assert scalars["lambda_max"] <= truth * (1 + 1e-9)
    assert 0 < first <= 25
    assert len(errors) >= 10
    assert np.median(np.abs(errors)) <= 2 * GOOD_ERROR


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_brief_steps_are_read_at_one_point(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of brief steps reads λ_max with as many products as the reading takes, and with few after the first."""
    budget = Budget(100.0)  # so that every record has a reading, however long it takes
    problem = Problem(OPTIMIZERS[name], steps=20)
    problem.probe = Probe(
        problem.model, problem.optimizer, kind_of(problem.optimizer), every=1, warner=problem.warner, budget=budget
    )
    products = counted_products(monkeypatch)
    errors, covered, counts = [], [], []
    for step in range(40):
        budget.end_step(0.9 * BRIEF)
        for _ in range(3):
            problem.step()
        products.clear()
        copied = problem.probe.measure(step, problem.closure, lr=None)
        scalars = {} if copied is None else copied.scalars()
        if copied is not None:
            assert "lambda_max" in scalars, "every measurement is a reading"
            truth, along = problem.expected()
            errors.append(abs(scalars["lambda_max"] / truth - 1))
            counts.append(len(products) - ("lambda_grad" in scalars))
            assert scalars["lambda_max"] <= truth * (1 + 1e-9)
            covered.append(errors[-1] <= scalars["lambda_max_error"] + 1e-9)
            assert scalars.get("lambda_grad", along) == pytest.approx(along, rel=1e-9)
    assert len(errors) >= 25
    assert np.mean(covered) >= 0.7, "the error leaves out only directions that the space has not seen"
    assert max(errors) <= 0.1
    assert max(counts) <= MOST_AT_POINT
    assert np.median(errors) <= GOOD_ERROR
    assert problem.probe.directions.is_known


def test_fused_attention_is_measured_exactly() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(4, 6, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    warner = Warner()
    probe = Probe(layer, optimizer, "adam", every=1, warner=warner)

    def closure() -> Tensor:
        output: Tensor = layer(x)
        return (output[..., 0] - x[..., 1]).pow(2).mean()

    for _ in range(3):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
    copied = probe.measure(1, closure, lr=0.01)
    assert copied is not None
    assert set(copied.scalars()) == {"lambda_grad", "lambda_max", "lambda_max_error", "stability_ratio"}
    assert warner.counts == {}


def test_linear_losses_have_no_curvature() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer, "sgd", every=1, warner=Warner())
    copied = probe.measure(1, lambda: model(torch.ones(2, 3)).sum(), lr=0.1)
    assert copied is not None
    assert copied.values()["lambda_grad"] == 0.0
    assert copied.values()["lambda_max"] == 0.0


def test_curvature_inside_an_autocast_region_is_that_of_the_region() -> None:
    inside, outside = (Problem(OPTIMIZERS["adam"], steps=5, dtype=torch.float32) for _ in range(2))

    def autocast_closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return outside.closure()

    with torch.autocast("cpu", torch.bfloat16):
        copied = inside.probe.measure(100, inside.closure, lr=0.01)
        assert torch.is_autocast_enabled("cpu")
    expected = outside.probe.measure(100, autocast_closure, lr=0.01)
    assert copied is not None, inside.warner.last_error
    assert expected is not None
    assert copied.values() == pytest.approx(expected.values(), rel=1e-5)


def test_unconverged_values_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MAX_EXTENSIONS", 1 - tracking.MANY_PRODUCTS)
    problem = Problem(OPTIMIZERS["adam-eps-tiny"])
    copied = problem.probe.measure(1, problem.closure, lr=0.01)
    assert copied is not None
    assert copied.values()["lambda_max_error"] > tracking.WORST_ERROR
    assert set(copied.scalars()) == {"lambda_grad"}
    assert not problem.probe.directions.is_known


def test_no_curvature_before_the_first_step() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=0)
    assert problem.probe.measure(1, problem.closure, lr=0.01) is None
    assert problem.warner.counts == {}
