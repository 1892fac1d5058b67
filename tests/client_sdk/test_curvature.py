"""λ_grad, λ_max and λ_step agree with dense float64 Hessians and SciPy, and with the behaviour of optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client_sdk.budget import BRIEF, Budget
from client_sdk.curvature import Method, Probe, tracking
from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.curvature.spectrum import Estimate, SearchSpace, by_squaring
from client_sdk.curvature.tracking import GOOD_ERROR, MOST_AT_POINT, Tracking
from client_sdk.optimizers import kind_of, oscillation_gain, stability_limit
from client_sdk.warner import Warner
from tests.support.dense_hessian import dense_hessian, dense_preconditioner, largest_eigenvalue

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-b1-0": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.999)),
    "adam-b2-0.9": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.9)),
    "adam-eps-0.1": lambda p: torch.optim.Adam(p, lr=0.01, eps=0.1),
    "adam-eps-tiny": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-15),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "heavy-ball": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "ema": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
}


class SignDescent(torch.optim.Optimizer):
    """An optimizer whose stability limit is not known."""

    def __init__(self, parameters: Iterable[Any], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad.sign())


OPTIMIZERS_OF_UNKNOWN_LIMIT: dict[str, Make] = {"sign": lambda p: SignDescent(p, lr=0.01)}


class Problem:
    """A small network, its data, and an optimizer that has taken some steps."""

    def __init__(self, make: Make, *, steps: int = 10, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        self.x = torch.randn(30, 5, dtype=dtype)
        self.y = torch.sin(2 * self.x.sum(1, keepdim=True))
        self.scale = scale
        self.optimizer = make(self.model.parameters())
        self.warner = Warner()
        self.at = 0
        self.probe = Probe(self.model, self.optimizer, kind_of(self.optimizer), every=1, warner=self.warner)
        for _ in range(steps):
            self.step()

    def loss_of(self, model: nn.Module) -> Tensor:
        return self.scale * F.mse_loss(model(self.x), self.y)

    def closure(self) -> Tensor:
        return self.loss_of(self.model)

    def step(self, *, clip: float | None = None, micro_batches: int = 1) -> float:
        """Take one optimizer step and return the loss before it.

        With ``clip``, the gradient norm is clipped. With several ``micro_batches``, all but the first have other data.
        """
        self.optimizer.zero_grad()
        loss = self.closure()
        loss.backward()
        for _ in range(micro_batches - 1):
            F.mse_loss(self.model(torch.randn_like(self.x)), self.y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        return float(loss.detach())

    def measure(self, times: int = 1) -> dict[str, float]:
        """Measure at the same point until λ_max was read ``times`` times, and return the last of each value."""
        values: dict[str, float] = {}
        while times:
            self.at += 100
            copied = self.probe.measure(self.at, self.closure, lr=None)
            assert copied is not None, self.warner.last_error
            values |= copied.values()
            times -= "lambda_max" in copied.values()
        return values

    def expected(self) -> tuple[float, float]:
        """Return λ_max and λ_grad, computed from dense matrices."""
        gradient, hessian = dense_hessian(self.model, self.loss_of)
        decay = self.optimizer.param_groups[0]["weight_decay"]
        if decay and not self.optimizer.param_groups[0].get("decoupled_weight_decay"):
            hessian = hessian + decay * np.eye(len(hessian))
            gradient = gradient + decay * np.concatenate([p.detach().numpy().ravel() for p in self.model.parameters()])
        diagonal = dense_preconditioner(self.model, self.optimizer)
        along = float(gradient @ (diagonal * (hessian @ gradient)) / (gradient @ gradient))
        return largest_eigenvalue(diagonal, hessian), along


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


def search(matrix: Tensor, products: int) -> tuple[SearchSpace, Estimate]:
    """Spend ``products`` products on extending a space, and one more on a reading."""
    space = SearchSpace()
    space.move(torch.ones(len(matrix), dtype=matrix.dtype))
    vector = space.beginning(torch.zeros(len(matrix), dtype=matrix.dtype))
    for _ in range(products):
        space.extend(vector, matrix @ vector)
        vector = space.residual()
    vector = space.improved()
    return space, space.renew(0, vector, matrix @ vector)


@pytest.mark.parametrize("spectrum", [(3.0, 1.0, -8.0), (-1.0, -2.0, -9.0), (0.0, 0.0, 0.0), (5.0, 5.0, 5.0)])
def test_the_leading_pair_of_known_spectra(spectrum: tuple[float, ...]) -> None:
    space, estimate = search(torch.diag(torch.tensor(spectrum, dtype=torch.float64)), 3)
    (pair,) = space.pairs(1)
    assert float(estimate.value) == pytest.approx(max(spectrum), abs=1e-9)
    assert float(pair.value) == pytest.approx(max(spectrum), abs=1e-9)
    assert estimate.error.isnan() or float(estimate.error) < 1e-6


def test_the_error_covers_the_true_value() -> None:
    covered = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))
        values = torch.linspace(-1.0, 1.0, 60, dtype=torch.float64) ** 3
        values[-2:] = torch.tensor([2.0, 3.0], dtype=torch.float64)  # outliers above a bulk, as Hessians have them
        matrix = basis @ torch.diag(values) @ basis.T
        for products in (6, 8, 12):
            _, estimate = search(matrix, products)
            assert float(estimate.value) <= 3.0 + 1e-9
            covered.append(float(estimate.value * (1 + estimate.error)) >= 3.0 - 1e-9)
    assert sum(covered) >= 0.95 * len(covered)


def test_a_space_that_is_full_goes_on_from_its_leading_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    _, estimate = search(matrix, 60)
    assert float(estimate.value) == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-6)


def test_repeated_squaring_takes_the_place_of_eigh() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        matrix = matrix + matrix.T
        values, vectors = by_squaring(matrix, torch.linalg.vector_norm(matrix))
        expected = torch.linalg.eigvalsh(matrix).flip(0)
        assert torch.allclose(vectors.T @ vectors, torch.eye(6, dtype=torch.float64), atol=1e-9)
        assert values[:2].tolist() == pytest.approx(expected[:2].tolist(), rel=1e-2)
        assert float(values.sum()) == pytest.approx(float(expected.sum()), abs=1e-9)


def test_known_directions_are_taken_in_only_where_they_are_new() -> None:
    matrix = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    tracking = Tracking()
    root = torch.ones(4, dtype=torch.float64)
    start = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    vector = tracking.vector("begin", root, start)
    tracking.take("begin", vector, matrix @ vector)
    best = torch.tensor([7.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    for _ in range(3):
        tracking.take_known(best, matrix @ best, root)
    vector = tracking.vector("read", root, None)
    values = tracking.take("read", vector, matrix @ vector)
    assert float(values["lambda_max"]) == pytest.approx(4.0, rel=1e-3)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that every exact product from now on is appended to."""
    made: list[Tensor] = []
    product = ExactHessian.product

    def counted(self: ExactHessian, vector: Tensor) -> Tensor:
        made.append(product(self, vector))
        return made[-1]

    monkeypatch.setattr(ExactHessian, "product", counted)
    return made


def test_few_products_follow_a_training_run(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=20)
    problem.measure(times=3)
    products = _counted(monkeypatch)
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
    products = _counted(monkeypatch)
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
    products = _counted(monkeypatch)
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


def test_scarce_products_read_early_with_an_error_that_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))
    values = torch.linspace(-1.0, 1.0, 60, dtype=torch.float64) ** 3
    values[-2:] = torch.tensor([2.0, 3.0], dtype=torch.float64)  # outliers above a bulk, as Hessians have them
    matrix, root = basis @ torch.diag(values) @ basis.T, torch.ones(60, dtype=torch.float64)
    aims, readings = [], []
    tracking = Tracking()
    for _ in range(12):
        aim = tracking.plan(is_scarce=True)
        vector = tracking.vector(aim, root, basis.sum(1))
        found = {name: float(value) for name, value in tracking.take(aim, vector, matrix @ vector).items()}
        tracking.observe(aim, found)
        aims.append(aim)
        if aim == "read":
            readings.append(found)
    assert aims[:5] == ["begin", "extend", "read", "extend", "read"]
    assert readings[0]["lambda_max_error"] > GOOD_ERROR
    assert all(found["lambda_max"] * (1 + found["lambda_max_error"]) >= 3.0 - 1e-9 for found in readings)
    assert readings[-1]["lambda_max"] == pytest.approx(3.0, rel=GOOD_ERROR)


def test_finite_differences_agree_with_double_backward() -> None:
    problem = Problem(OPTIMIZERS["adam"], dtype=torch.float32)
    preconditioner = Preconditioner.read(problem.optimizer, "adam")
    assert preconditioner is not None
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(len(preconditioner.diagonal), generator=generator)
    before = [p.detach().clone() for p in problem.model.parameters()]
    with Sandbox(problem.model, preconditioner.parameters) as sandbox:
        exact = ExactHessian(sandbox, problem.closure, preconditioner).product(direction)
        differences = DifferenceHessian(sandbox, problem.closure, preconditioner).product(direction)
    assert float((exact - differences).norm() / exact.norm()) < 0.01
    assert all(torch.equal(p, old) for p, old in zip(problem.model.parameters(), before, strict=True))


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = 1 - x.tanh() ** 2
        return grad * slope


def _tanh(x: Tensor) -> Tensor:
    result: Tensor = _OnceDifferentiable.apply(x)  # type: ignore[no-untyped-call]
    return result


def _without_second_derivative(problem: Problem) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        hidden = _tanh(problem.model[0](problem.x))
        hidden = _tanh(problem.model[2](hidden))
        return F.mse_loss(problem.model[4](hidden), problem.y)

    return closure


def test_models_without_second_derivative_fall_back_to_differences() -> None:
    problem = Problem(OPTIMIZERS["adam"])
    lambda_max, lambda_grad = problem.expected()
    problem.closure = _without_second_derivative(problem)  # type: ignore[method-assign]
    values = problem.measure(times=4)
    assert values["lambda_grad"] == pytest.approx(lambda_grad, rel=0.01)
    assert values["lambda_max"] == pytest.approx(lambda_max, rel=0.01)
    assert problem.warner.counts == {"finite_differences": 1}


def _measured(problem: Problem, closure: Callable[[], Tensor], steps: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for step in range(steps):
        problem.probe.before_step(0.01)
        problem.step()
        copied = problem.probe.measure(step, closure, lr=0.01)
        found |= {} if copied is None else copied.scalars()
    return found


def _probe(problem: Problem, method: Method) -> Probe:
    kind = kind_of(problem.optimizer)
    return Probe(problem.model, problem.optimizer, kind, every=1, warner=problem.warner, method=method)


def test_short_floats_without_second_derivative_are_measured_by_losses_alone() -> None:
    problem = Problem(OPTIMIZERS["sgd"], dtype=torch.bfloat16, steps=3)
    found = _measured(problem, _without_second_derivative(problem), 40)
    assert problem.warner.counts == {"curvature_forward": 1}
    assert "cannot be differentiated twice" in (problem.warner.last_error or "")
    assert not {"lambda_max", "lambda_grad"} & set(found)


def test_a_method_that_was_chosen_is_not_replaced() -> None:
    problem = Problem(OPTIMIZERS["adam"])
    problem.probe = _probe(problem, "exact")
    found = _measured(problem, _without_second_derivative(problem), 20)
    assert found == {}
    assert problem.warner.counts == {"curvature_unsupported": 1}
    assert "cannot be differentiated twice" in (problem.warner.last_error or "")


def test_no_product_is_made_where_losses_alone_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExactHessian, "product", lambda *_: pytest.fail("a product was made"))
    problem = Problem(OPTIMIZERS["adam"])
    problem.probe = _probe(problem, "forward")
    found = _measured(problem, problem.closure, 40)
    assert {"critical_sharpness", "lambda_step"} <= set(found)
    assert problem.warner.counts == {}


def test_memory_that_is_too_small_is_named_and_the_next_methods_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    problem = Problem(OPTIMIZERS["adam"])
    monkeypatch.setattr(ExactHessian, "product", product)
    assert "lambda_max" in _measured(problem, problem.closure, 20)
    assert problem.warner.counts == {"finite_differences": 1}
    monkeypatch.setattr(DifferenceHessian, "product", product)
    assert "critical_sharpness" in _measured(problem, problem.closure, 60)
    assert problem.warner.counts == {"finite_differences": 1, "curvature_forward": 1}


def test_nothing_is_measured_where_curvature_is_off() -> None:
    problem = Problem(OPTIMIZERS["adam"])
    problem.probe = _probe(problem, "off")
    assert _measured(problem, lambda: pytest.fail("the closure was called"), 20) == {}


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


def test_unknown_optimizers_are_named_once() -> None:
    problem = Problem(OPTIMIZERS_OF_UNKNOWN_LIMIT["sign"])
    found = []
    for step in range(30):
        if problem.probe.is_used:
            problem.probe.before_step(0.01)
        problem.step()
        copied = problem.probe.measure(step, problem.closure, lr=0.01)
        found.append({} if copied is None else copied.scalars())
    assert problem.warner.counts == {"curvature_unsupported": 1}
    names = {name for scalars in found for name in scalars}
    assert names == {"lambda_step", "critical_sharpness", "critical_sharpness_error"}
    assert "SignDescent" in (problem.warner.last_error or "")


def _went_backward(problem: Problem) -> Tensor:
    problem.optimizer.zero_grad()
    loss = problem.closure()
    loss.backward()
    return loss


CLOSURES: dict[str, tuple[Callable[[Problem], Any], str]] = {
    "raises": (lambda problem: 1 / 0, "ZeroDivisionError"),
    "number": (lambda problem: float(problem.closure()), "returned float"),
    "nothing": (lambda problem: None, "returned NoneType"),
    "vector": (lambda problem: problem.model(problem.x), "shape"),
    "no-graph": (lambda problem: problem.closure().detach(), "no graph"),
    "backward": (_went_backward, "must not call backward"),
    "unrelated": (lambda problem: torch.ones((), requires_grad=True) * 2, "does not depend"),
}


@pytest.mark.parametrize("name", CLOSURES)
def test_unusable_closures_cause_one_warning_and_back_off(name: str) -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=3)
    closure, message = CLOSURES[name]
    grads = [None if p.grad is None else p.grad.clone() for p in problem.model.parameters()]
    tried = 0

    def counted() -> Any:
        nonlocal tried
        tried += 1
        return closure(problem)

    copies = [problem.probe.measure(step, counted, lr=0.01) for step in range(300)]
    assert 1 < tried < 20
    for parameter, grad in zip(problem.model.parameters(), grads, strict=True):
        assert parameter.grad is not None
        assert grad is not None
        assert torch.equal(parameter.grad, grad)
    assert copies == [None] * 300
    assert problem.warner.counts == {"closure": tried}
    assert message in (problem.warner.last_error or "")


def test_nan_losses_are_not_reported_and_counted() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=3)
    first = problem.probe.measure(0, lambda: problem.closure() * float("nan"), lr=0.01)
    assert first is not None
    assert first.scalars() == {}
    problem.probe.measure(1, problem.closure, lr=0.01)
    assert problem.warner.counts == {"closure_nonfinite": 1}
    later = problem.probe.measure(40, problem.closure, lr=0.01)
    assert later is not None
    assert "lambda_max" in later.scalars()


@pytest.mark.parametrize(
    ("make", "gain"),
    [
        (lambda p, lr: torch.optim.SGD(p, lr=lr), 1.0),
        (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), 1 / 1.9),
        (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.9), 0.1 / 1.9),
        (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True), 2.8 / 1.9),
    ],
    ids=["sgd", "heavy-ball", "ema", "nesterov"],
)
@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_limits_separate_convergence_from_divergence(
    make: Callable[[Any, float], torch.optim.Optimizer], gain: float, ratio: float
) -> None:
    curvature = 3.0
    lr = ratio * 2.0 / (gain * curvature)  # so that λ·gain = ratio · 2/η
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = make([weight], lr)
    for _ in range(1500):
        optimizer.zero_grad()
        (0.5 * curvature * weight**2).sum().backward()
        optimizer.step()
    assert (abs(float(weight.detach())) > 1e3) == (ratio > 1)


@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_adams_limit_separates_convergence_from_divergence(ratio: float) -> None:
    lr, curvature, beta2, t = 0.01, 1.0, 1 - 1e-12, 1e9
    root = (0.1 / 1.9) * curvature / (ratio * stability_limit(lr))  # the √v̂ for which λ = ratio · 2/η
    weight = nn.Parameter(torch.full((1,), 1e-12, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=lr, betas=(0.9, beta2), eps=0.0)
    optimizer.state[weight] = {
        "step": torch.tensor(t, dtype=torch.float64),
        "exp_avg": torch.zeros_like(weight),
        "exp_avg_sq": torch.full_like(weight, root**2 * -math.expm1(t * math.log1p(-1e-12))),
    }
    for _ in range(60):  # few enough that v does not react
        optimizer.zero_grad()
        (0.5 * curvature * weight**2).sum().backward()
        optimizer.step()
    assert (abs(float(weight.detach())) > 1e-9) == (ratio > 1)


@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_decoupled_weight_decay_lowers_the_limit(ratio: float) -> None:
    lr, decay = 0.1, 5.0
    curvature = ratio * stability_limit(lr, decay)
    weight = 1.0
    for _ in range(1500):
        weight = weight * (1 - lr * decay) - lr * curvature * weight
    assert (abs(weight) > 1e3) == (ratio > 1)


def test_gains_are_the_published_factors() -> None:
    one = np.ones(1)
    warm = 1 - 0.9**7
    assert oscillation_gain(one, 0 * one, 1.0, 0.0) == 1
    assert oscillation_gain(0 * one, one, 1.0, 0.9) == pytest.approx(1 / 1.9)
    assert oscillation_gain(one, 0.9 * one, 1.0, 0.9) == pytest.approx(2.8 / 1.9)
    assert oscillation_gain(0 * one, one, 0.1, 0.9) == pytest.approx(0.1 / 1.9)
    assert oscillation_gain(0 * one, one / warm, 0.1, 0.9) == pytest.approx((1 / warm) * (0.1 / 1.9))


def test_limit_is_two_over_eta() -> None:
    assert stability_limit(0.01) == 200.0
    assert stability_limit(0.01, decoupled_weight_decay=0.1) == pytest.approx(199.9)
    assert stability_limit(0.0) == math.inf
