"""Cost and error of curvature: products for λ_max, time and memory of each method, and the budget over whole trainings.

    python -m benchmarks.curvature_cost [--models 20] [--steps 600] [--parts products,methods,…] [--clock cpu]

`products` counts the Hessian-vector products until λ_max is within 1 % of the value in float64, at one point of a
training (cold) and after a further step (warm), beside PyHessian, curvlinops and SciPy's eigsh for the same eigenvalue.
`methods` measures one record of each method, in training steps and MiB. `budget` trains random models with a closure at
every record and measures from outside what share of the time the SDK takes. `crossing` is the step at which λ_max of a
tanh network was first read above its limit. With `--clock cpu`, the time is that of the training thread on a processor
everywhere, also in the SDK, so that other work on the machine does not count. PyHessian (`pyhessian`) and curvlinops
(`curvlinops-for-pytorch`) are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import importlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

import client_sdk
from benchmarks.spool_series import series_of
from benchmarks.watch_overhead import peak_extra
from client_sdk.budget import FIRST, Budget
from client_sdk.curvature import METHODS, Method, Probe
from client_sdk.curvature.hessian import ExactHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.curvature.tracking import Tracking
from client_sdk.optimizers import kind_of
from client_sdk.stats import Meter
from client_sdk.warner import Warner

Vector = NDArray[np.float64]
EXACT: Final = 0.01  # relative error at which products are counted
WINDOW: Final = 200  # steps over which the budget holds


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model on one batch of random data."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    targets: Tensor
    criterion: Callable[[Tensor, Tensor], Tensor]

    def loss(self) -> Tensor:
        """Return the loss of the batch."""
        return self.criterion(self.model(self.inputs), self.targets)

    def step(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def random_training(seed: int, *, sgd: bool = False, scale: int = 1) -> Training:
    """Return a random model: a perceptron or a small convolutional network, of random depth, width and activation."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    activation = [nn.Tanh, nn.GELU, nn.SiLU, nn.ReLU][int(rng.integers(4))]
    width, depth, count = int(rng.integers(16, 97)) * scale, int(rng.integers(1, 4)), int(rng.integers(64, 385))
    if rng.random() < 0.3:
        layers: list[nn.Module] = [nn.Conv2d(1, width // 4, 3, padding=1), activation()]
        for _ in range(depth):
            layers += [nn.Conv2d(width // 4, width // 4, 3, padding=1), activation()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(width // 4 * 4, 10))
        inputs, kind = torch.randn(count // 4, 1, 8, 8), "cnn"
    else:
        layers = [nn.Linear(20, width), activation()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), activation()]
        model, inputs, kind = nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(count, 20), "mlp"
    is_classifier = rng.random() < 0.5
    signal = inputs.flatten(1)[:, :10]
    targets = signal.argmax(1) if is_classifier else torch.sin(2 * signal)
    criterion = F.cross_entropy if is_classifier else F.mse_loss
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), 0.05)
        if sgd
        else torch.optim.Adam(model.parameters(), 10 ** rng.uniform(-3.3, -2.0), betas=(0.9, 0.999))
    )
    name = f"{kind} {activation.__name__} {'cross-entropy' if is_classifier else 'squared error'} {width}x{depth}"
    return Training(name=name, model=model, optimizer=optimizer, inputs=inputs, targets=targets, criterion=criterion)


# -- products --


class Operator:
    """D^½·H·D^½ of a training at its present point, in float64, which counts its products."""

    def __init__(self, training: Training) -> None:
        self.count = 0
        preconditioner = Preconditioner.read(training.optimizer, kind_of(training.optimizer))
        assert preconditioner is not None
        self._parameters = preconditioner.parameters
        self.root = preconditioner.diagonal.sqrt()
        grads = torch.autograd.grad(training.loss(), self._parameters, create_graph=True)
        self._grad = torch.cat([grad.reshape(-1) for grad in grads])
        self.gradient = self._grad.detach()

    def product(self, vector: Tensor) -> Tensor:
        """Return the image A·x of a vector x, shape (N,)."""
        self.count += 1
        grads = torch.autograd.grad(self._grad @ (self.root * vector), self._parameters, retain_graph=True)
        return self.root * torch.cat([grad.reshape(-1) for grad in grads])

    def scipy(self) -> LinearOperator:
        """Return the operator for SciPy."""
        size = len(self.root)

        def matvec(vector: Vector) -> Vector:
            product: Vector = self.product(torch.tensor(vector.ravel()).to(self.root)).double().numpy()
            return product

        return LinearOperator((size, size), matvec=matvec, dtype=np.float64)

    def truth(self) -> float:
        """Return the largest eigenvalue to about ten digits."""
        value: float = float(eigsh(self.scipy(), k=1, which="LA", tol=1e-9, return_eigenvectors=False)[0])
        self.count = 0
        return value


def tracked_products(tracking: Tracking, operator: Operator, truth: float, *, most: int = 40) -> int:
    """Return the number of products after which `Tracking` has read λ_max to `EXACT`."""
    for count in range(1, most + 1):
        aim = tracking.plan()
        vector = tracking.vector(aim, operator.root, operator.root * operator.gradient)
        values = {k: float(v) for k, v in tracking.take(aim, vector, operator.product(vector)).items()}
        tracking.observe(aim, values)
        if "lambda_max" in values and abs(values["lambda_max"] / truth - 1) <= EXACT:
            return count
    return most


def eigsh_products(operator: Operator, truth: float) -> int:
    """Return the fewest products with which SciPy's eigsh finds the value, over tolerances and sizes of its space."""
    fewest = 10**6
    for tolerance in (0.3, 0.1, 0.03, 0.01):
        for space in (3, 4, 6, 10):
            operator.count = 0
            values = eigsh(
                operator.scipy(), k=1, which="LA", tol=tolerance, ncv=space, maxiter=100, return_eigenvectors=False
            )
            if abs(float(values[0]) / truth - 1) <= EXACT:
                fewest = min(fewest, operator.count)
    operator.count = 0
    return fewest


def pyhessian_products(training: Training, truth: float) -> int | None:
    """Return the products of PyHessian's power iteration at its default tolerance, or None if it is not installed."""
    try:
        library = importlib.import_module("pyhessian")
        utils: Any = importlib.import_module("pyhessian.hessian")
    except ImportError:
        return None
    count = 0
    inner = utils.hessian_vector_product

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return inner(*args)

    utils.hessian_vector_product = counted
    try:
        solver = library.hessian(training.model, training.criterion, (training.inputs, training.targets), cuda=False)
        values, _ = solver.eigenvalues(maxIter=100, tol=1e-3, top_n=1)
    finally:
        utils.hessian_vector_product = inner
    return count if abs(values[0] / truth - 1) <= EXACT else -count


def curvlinops_products(training: Training, truth: float) -> int | None:
    """Return the products of curvlinops with eigsh at a tolerance of 1 %, or None if it is not installed."""
    try:
        library = importlib.import_module("curvlinops")
    except ImportError:
        return None
    criterion = nn.CrossEntropyLoss() if training.criterion is F.cross_entropy else nn.MSELoss()
    parameters = dict(training.model.named_parameters())
    data = [(training.inputs, training.targets)]
    operator = library.HessianLinearOperator(
        training.model, criterion, parameters, data, check_deterministic=False
    ).to_scipy()
    count = 0

    def matvec(vector: Vector) -> Vector:
        nonlocal count
        count += 1
        product: Vector = operator.matvec(vector.astype(operator.dtype))
        return product

    size = operator.shape[0]
    counted = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
    value = float(eigsh(counted, k=1, which="LA", tol=EXACT, return_eigenvectors=False)[0])
    return count if abs(value / truth - 1) <= EXACT else -count


def measure_products(models: int) -> None:
    """Print the products until λ_max is within 1 %, cold and warm, and those of other libraries on the raw Hessian."""
    rows: dict[str, list[int]] = {}

    def add(name: str, count: int | None) -> None:
        if count is not None:
            rows.setdefault(name, []).append(count)

    for seed in range(models):
        for kind, sgd in (("Adam", False), ("SGD", True)):
            training = random_training(seed, sgd=sgd)
            for _ in range(100):
                training.step()
            operator = Operator(training)
            truth, tracking = operator.truth(), Tracking()
            if not truth > 0:
                continue
            add(f"Spikewatch, cold, {kind}", tracked_products(tracking, operator, truth))
            add(f"eigsh with the best of 16 settings, {kind}", eigsh_products(operator, truth))
            if sgd:
                add("PyHessian, SGD", pyhessian_products(training, truth))
                add("curvlinops and eigsh, SGD", curvlinops_products(training, truth))
            for _ in range(5):
                training.step()
                after = Operator(training)
                if (truth := after.truth()) > 0:
                    add(f"Spikewatch, warm, {kind}", tracked_products(tracking, after, truth))
    print(f"products until λ_max is within {EXACT:.0%}, {models} random models; goals: cold 6, warm 2")
    print(f"  {'':<44} {'median':>7} {'90 %':>6} {'most':>6} {'missed':>7}")
    for name, counts in rows.items():
        found = [abs(count) for count in counts]
        missed = sum(count < 0 or (count >= 40 and name.startswith("Spike")) for count in counts)
        print(f"  {name:<44} {median(found):7.0f} {np.quantile(found, 0.9):6.0f} {max(found):6d} {missed:7d}")


# -- methods --


def measure_methods() -> None:
    """Print what one record of each method takes, in training steps and MiB."""
    torch.manual_seed(0)
    sizes = [256, 1024, 1024, 10]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
    model = nn.Sequential(*layers[:-1])
    inputs = torch.randn(512, 256)
    training = Training(
        name="",
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        inputs=inputs,
        targets=torch.sin(inputs[:, :10]),
        criterion=F.mse_loss,
    )
    bare = [_seconds(training.step) for _ in range(20)]
    print(f"one record of a network of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    print(f"  {'':<44} {'× a step':>9} {'extra MiB':>10}")
    step = median(bare)
    weights = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    with Sandbox(model, list(model.parameters())) as sandbox:
        preconditioner = Preconditioner.read(training.optimizer, "adam")
        assert preconditioner is not None
        vector = torch.randn(len(preconditioner.diagonal))
        exact = [
            _seconds(lambda: ExactHessian(sandbox, training.loss, preconditioner).product(vector)) for _ in range(7)
        ]
    print(f"  {'exact product alone':<44} {median(exact) / step:9.2f}")
    for method in METHODS:
        if method in ("auto", "off"):
            continue
        seconds, extra = _records(training, method)
        print(f"  {method:<44} {seconds / step:9.2f} {extra:10.1f}")
    print(f"  the weights alone take {weights:.1f} MiB")


def _records(training: Training, method: Method) -> tuple[float, float]:
    probe = Probe(
        training.model,
        training.optimizer,
        kind_of(training.optimizer),
        every=1,
        warner=Warner(),
        method=method,
        budget=_ample(),
    )
    times, most = [], 0.0
    for at in range(40):
        probe.before_step(1e-3)
        training.step()
        made: list[bool] = []

        def record(at: int = at, made: list[bool] = made) -> None:
            made.append(probe.measure(at, training.loss, lr=1e-3) is not None)

        if at == 30:
            most = peak_extra(torch.device("cpu"), record) or 0.0
        else:
            seconds = _seconds(record)
            if made[0]:
                times.append(seconds)
    return median(times), most


def _ample() -> Budget:
    """Return a budget that allows every record one product."""
    budget = Budget(0.99)
    for _ in range(FIRST):
        budget.end_step(1e3)
    return budget


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


# -- budget --


@contextmanager
def measured_from_outside() -> Iterator[list[float]]:
    """Yield a list whose last entry grows by the seconds that hooks and measurements of curvature take."""
    spent = [0.0]
    probe_methods = {name: getattr(Probe, name) for name in ("before_step", "follow", "measure")}

    def timed(inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **options)
            finally:
                spent[-1] += time.perf_counter() - started

        return outer

    meter_methods = {name: getattr(Meter, name) for name in ("before_step", "measure")}
    for owner, methods in ((Probe, probe_methods), (Meter, meter_methods)):
        for name, inner in methods.items():
            setattr(owner, name, timed(inner))
    try:
        yield spent
    finally:
        for owner, methods in ((Probe, probe_methods), (Meter, meter_methods)):
            for name, inner in methods.items():
                setattr(owner, name, inner)


def measure_budget(models: int, steps: int) -> None:
    """Print the largest share of the time over any 200 steps that measuring took in random trainings."""
    print(
        f"share of the training's time at budget 0.05, {models} random models, {steps} steps, goal: 5 % over 200 steps"
    )
    kept = 0
    for seed in range(models):
        training = random_training(seed, scale=2)
        own, spent, around, readings = _train(training, steps, budget=0.05)
        windows = [
            float(spent[at : at + WINDOW].sum() / own[at : at + WINDOW].sum()) for at in range(steps - WINDOW + 1)
        ]
        kept += max(windows) <= 0.05
        print(
            f"  {training.name:<36} step {median(own) * 1e3:6.2f} ms   worst 200 steps {max(windows):6.1%}   "
            f"longest record {spent.max() / median(own):5.1f} steps   readings of λ_max {readings}   "
            f"hooks and log besides {median(around) * 1e6:4.0f} µs",
            flush=True,
        )
    print(f"  kept in {kept} of {models}")


def _train(training: Training, steps: int, *, budget: float) -> tuple[Vector, Vector, Vector, int]:
    """Return the seconds of each step of the training alone, of measuring, and of hooks and log besides, [steps] each.

    The last number is how often λ_max was read.
    """
    own, spent, around = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    with tempfile.TemporaryDirectory() as directory, measured_from_outside() as clock:
        run = client_sdk.init(project="benchmark", mode="offline", directory=directory)
        handle = client_sdk.watch(training.model, training.optimizer, budget=budget)
        hooks = _timed_hooks(training.optimizer)
        for step in range(steps):
            started, clock[-1], hooks[-1] = time.perf_counter(), 0.0, 0.0
            training.step()
            logged = time.perf_counter()
            client_sdk.log({"loss": 0.0}, step=step, closure=training.loss)
            ended = time.perf_counter()
            spent[step] = clock[-1]
            around[step] = hooks[-1] + ended - logged - spent[step]
            own[step] = ended - started - spent[step] - around[step]
        handle.remove()
        run.finish()
        series = series_of(Path(directory), steps)
    return own, spent, around, int(np.isfinite(series.get("lambda_max", np.full(1, np.nan))).sum())


def _timed_hooks(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return a list whose last entry grows by the seconds that the hooks of ``optimizer`` take."""
    spent = [0.0]
    for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
        for key, inner in list(hooks.items()):

            def outer(*args: Any, inner: Any = inner, **options: Any) -> Any:
                started = time.perf_counter()
                try:
                    return inner(*args, **options)
                finally:
                    spent[-1] += time.perf_counter() - started

            hooks[key] = outer
    return spent


# -- crossing --


def measure_crossing() -> None:
    """Print when the crossing of λ_max over 2/η before the spike of a tanh network is read, for several budgets."""
    print("first reading of λ_max above 2/η = 200 after step 400 of a tanh network whose loss spikes later")
    for budget in (0.05, 0.25, 1.0, math.inf):
        torch.manual_seed(0)
        inputs, direction = torch.randn(200, 50), torch.randn(50, 1) / 50**0.5
        targets = torch.sin(3 * inputs @ direction) + inputs @ direction
        model = nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        training = Training(
            name="tanh",
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.999)),
            inputs=inputs,
            targets=targets,
            criterion=F.mse_loss,
        )
        steps = 760
        losses = np.zeros(steps)
        with tempfile.TemporaryDirectory() as directory:
            run = client_sdk.init(project="benchmark", mode="offline", directory=directory)
            handle = client_sdk.watch(model, training.optimizer, budget=budget)
            for step in range(steps):
                training.step()
                losses[step] = float(training.loss().detach())
                client_sdk.log({"loss": losses[step]}, step=step, closure=training.loss)
            handle.remove()
            run.finish()
            lambdas = series_of(Path(directory), steps).get("lambda_max", np.full(steps, np.nan))
        calm = 400 + int(losses[400:].argmin())
        onset = next((at for at in range(calm, steps) if losses[at] > 100 * losses[calm]), None)
        crossing = next((at for at in range(400, steps) if lambdas[at] > 200), None)
        print(f"  budget {budget:<6} crossing read at {crossing}, loss rises at {onset}, readings "
              f"{int(np.isfinite(lambdas).sum())}", flush=True)  # fmt: skip


def main() -> None:
    """Measure the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--parts", default="products,methods,budget,crossing")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.clock == "cpu":
        time.perf_counter = time.thread_time
    parts: dict[str, Callable[[], None]] = {
        "products": lambda: measure_products(options.models),
        "methods": measure_methods,
        "budget": lambda: measure_budget(options.models, options.steps),
        "crossing": measure_crossing,
    }
    for name in options.parts.split(","):
        parts[name]()


if __name__ == "__main__":
    main()
