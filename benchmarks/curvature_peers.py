"""The largest eigenvalue of one operator by several means that count their products: the SDK, eigsh, and two libraries.

PyHessian (`pyhessian`) and curvlinops (`curvlinops-for-pytorch`) are left out where they are not installed.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from benchmarks.random_trainings import Training
from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.curvature.tracking import GOOD_ERROR, Tracking
from client_sdk.optimizers import kind_of

Vector = NDArray[np.float64]
MOST: Final = 100  # products after which a reading is given up
SETTINGS: Final = tuple((tolerance, space) for tolerance in (0.3, 0.1, 0.03, 0.01) for space in (3, 4, 6, 10))
"""Tolerances of `eigsh` and sizes of its space, of which the best is chosen with the answer known."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An eigenvalue and the products that it took."""

    value: float
    products: int

    def error(self, truth: float) -> float:
        """Return the relative error."""
        return abs(self.value / truth - 1)


class TooManyError(Exception):
    """More products than are allowed."""


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

    def applied(self, vector: Vector) -> Vector:
        """Return the image of a vector for SciPy."""
        image: Vector = self.product(torch.tensor(vector.ravel()).to(self.root)).double().numpy()
        return image

    def scipy(self) -> LinearOperator:
        """Return the operator for SciPy."""
        size = len(self.root)
        return LinearOperator((size, size), matvec=self.applied, dtype=np.float64)

    def truth(self) -> float:
        """Return the largest eigenvalue to about ten digits."""
        value: float = float(eigsh(self.scipy(), k=1, which="LA", tol=1e-9, return_eigenvectors=False)[0])
        self.count = 0
        return value


def by_spikewatch(training: Training, tracking: Tracking, hessian: type[ExactHessian | DifferenceHessian]) -> Found:
    """Read λ_max of the present point until its own error bar is below `GOOD_ERROR`, from what ``tracking`` knows."""
    preconditioner = Preconditioner.read(training.optimizer, kind_of(training.optimizer))
    assert preconditioner is not None
    count = 0
    with Sandbox(training.model, preconditioner.parameters) as sandbox, torch.no_grad():
        products = hessian(sandbox, training.loss, preconditioner)
        root = preconditioner.diagonal.sqrt()

        def product(vector: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return root * products.product(root * vector)

        error, value = math.inf, math.nan
        while error > GOOD_ERROR and count < MOST:
            aim = tracking.plan()
            vector = tracking.vector(aim, root, root * products.gradient)
            values = {name: float(found) for name, found in tracking.take(aim, vector, product(vector)).items()}
            tracking.observe(aim, values)
            if "lambda_max" in values:
                value, error = values["lambda_max"], values["lambda_max_error"]
    return Found(value=value, products=count)


def by_eigsh(operator: Operator, tolerance: float, space: int, most: int = MOST) -> Found | None:
    """Return the eigenvalue that SciPy's eigsh finds, or None if that takes more than ``most`` products."""
    operator.count = 0

    def product(vector: Vector) -> Vector:
        if operator.count >= most:
            raise TooManyError
        return operator.applied(vector)

    size = len(operator.root)
    bounded = LinearOperator((size, size), matvec=product, dtype=np.float64)
    try:
        values = eigsh(bounded, k=1, which="LA", tol=tolerance, ncv=space, maxiter=100, return_eigenvectors=False)
    except (ArpackNoConvergence, TooManyError):
        return None
    return Found(value=float(values[0]), products=operator.count)


def by_tuned_eigsh(operator: Operator, truth: float, exact: float) -> tuple[Found, tuple[float, int]] | None:
    """Return what eigsh finds with the setting by which ``truth`` to ``exact`` takes the fewest products, and that."""
    best: tuple[Found, tuple[float, int]] | None = None
    for setting in SETTINGS:
        found = by_eigsh(operator, *setting, most=MOST if best is None else best[0].products)
        if found is not None and found.error(truth) <= exact and (best is None or found.products < best[0].products):
            best = found, setting
    return best


def by_pyhessian(training: Training) -> Found | None:
    """Return the value of PyHessian's power iteration at its default tolerance, or None if it is not installed."""
    try:
        library = importlib.import_module("pyhessian")
        module: Any = importlib.import_module("pyhessian.hessian")
    except ImportError:
        return None
    count = 0
    inner = module.hessian_vector_product

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return inner(*args)

    module.hessian_vector_product = counted
    try:
        solver = library.hessian(training.model, training.criterion, (training.inputs, training.targets), cuda=False)
        values, _ = solver.eigenvalues(maxIter=100, tol=1e-3, top_n=1)
    finally:
        module.hessian_vector_product = inner
        training.model.train()
        training.optimizer.zero_grad()
    return Found(value=float(values[0]), products=count)


def by_curvlinops(training: Training, tolerance: float) -> Found | None:
    """Return the value of eigsh on the Hessian of curvlinops, or None if it is not installed."""
    try:
        library = importlib.import_module("curvlinops")
    except ImportError:
        return None
    criterion = nn.CrossEntropyLoss() if training.criterion is F.cross_entropy else nn.MSELoss()
    parameters = list(training.model.parameters())
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
    try:
        value = float(eigsh(counted, k=1, which="LA", tol=tolerance, return_eigenvectors=False)[0])
    except NotImplementedError:  # its products need a derivative that torch does not have in forward mode, as of SiLU
        return Found(value=math.nan, products=0)
    return Found(value=value, products=count)
