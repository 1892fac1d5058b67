"""Measures λ_grad, λ_max and λ_step of one model and optimizer, inside `log`, without training noticing.

Owns one probe from the closure to values on their way to the host, the warm start between probes, and what happens
when a closure gives nothing. Called on the training thread; results are read on any.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian, Hessian, NoSecondDerivativeError
from client_sdk.curvature.preconditioner import Preconditioner, UnsupportedError
from client_sdk.curvature.sandbox import ClosureError, IndependentError, Sandbox
from client_sdk.curvature.schedule import Choice, Schedule
from client_sdk.curvature.spectrum import RitzPair, largest_eigenpair
from client_sdk.host import ScalarCopy
from client_sdk.optimizers import Kind
from client_sdk.warner import Warner

WARM_PRODUCTS: Final = 3  # Hessian-vector products for λ_max from the last probe's vector; λ_grad's is one more
REFINING_PRODUCTS: Final = 5  # while the last residual was above GOOD_RESIDUAL
COLD_PRODUCTS: Final = 10  # from a random vector
GOOD_RESIDUAL: Final = 0.1
WORST_RESIDUAL: Final = 0.5  # a value that may be off by half is not reported; the vector is kept and refined
ROUNDING: Final = 64  # a slope under this many units of rounding of the loss says nothing


class StepSignals(Protocol):
    """What the statistics know of the last optimizer step (`stats.StepCopy`)."""

    def ready(self) -> bool:
        """True when `totals` will not wait."""
        ...

    @property
    def totals(self) -> dict[str, float]:
        """`grad_norm`, `decoupling`, `slope`."""
        ...


class CurvatureCopy:
    """One probe's values on their way to the host."""

    def __init__(
        self, tensors: dict[str, Tensor], logged_loss: float | None, signals: StepSignals | None, rounding: float
    ) -> None:
        """``signals`` of the step whose Δw led from the logged loss to the closure's; None where there is no such."""
        self._names = tuple(tensors)
        self._copy = ScalarCopy(list(tensors.values()))
        self._logged_loss = logged_loss
        self._signals = signals
        self._rounding = rounding

    def ready(self) -> bool:
        """True when nothing will wait. Never synchronises a device."""
        return self._copy.ready() and (self._signals is None or self._signals.ready())

    def values(self) -> dict[str, float]:
        """Everything measured by name: loss, lr, gradient_square, lambda_grad, lambda_max, residual; NaN where it went
        wrong."""
        return dict(zip(self._names, self._copy.array().tolist(), strict=True))

    def scalars(self) -> dict[str, float]:
        """What is reported; only values that mean something."""
        values = self.values()
        if is_flat(values):
            return {}  # the loss may have changed, but not by this model's step
        reported = {name: values[name] for name in ("lambda_grad",) if math.isfinite(values[name])}
        if is_reportable(values):
            reported["lambda_max"] = values["lambda_max"]
        step = self._lambda_step(values)
        if step is not None:
            reported["lambda_step"] = step
        return reported

    def _lambda_step(self, values: dict[str, float]) -> float | None:
        """2·(ΔL − gᵀΔw) / (−η·gᵀΔw): the curvature that the step met. ΔL > 0 exactly where it is above 2/η."""
        logged = values.get("logged_loss", self._logged_loss)
        if logged is None or self._signals is None:
            return None
        slope, loss, lr = self._signals.totals["slope"], values["loss"], values["lr"]
        if not slope < -self._rounding * abs(loss) or not lr > 0:
            return None
        curvature = 2.0 * (loss - logged - slope) / (-lr * slope)
        return curvature if math.isfinite(curvature) else None


def is_reportable(values: dict[str, float]) -> bool:
    """True where λ_max is known to within its residual."""
    return math.isfinite(values.get("lambda_max", math.nan)) and values["residual"] <= WORST_RESIDUAL


def is_flat(values: dict[str, float]) -> bool:
    """True where the loss is finite and its gradient exactly zero: it does not depend on these parameters, or not
    now. There is no direction to measure along, and nothing wrong with the closure."""
    return math.isfinite(values["loss"]) and values["gradient_square"] == 0


class Probe:
    """The curvature of one model as its optimizer sees it."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        kind: Kind,
        *,
        every: int,
        warner: Warner,
        is_alone: Callable[[], bool] = lambda: True,
    ) -> None:
        """``is_alone`` False: other models are watched on the same run, and the closure may well be about one of
        them."""
        self._is_alone = is_alone
        self._model, self._optimizer, self._kind = model, optimizer, kind
        self._warner = warner
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        # what other processes take from a shared processor is no reason to probe less
        self._clock = time.process_time if on_cpu else time.perf_counter
        self.schedule = Schedule(every)
        self._flying: list[tuple[int, CurvatureCopy]] = []
        self._timers: list[tuple[Choice, float, _Timer]] = []
        self._direction: Tensor | None = None  # eigenvector in the space of parameters, D^½·x
        self._parameters: tuple[Tensor, ...] = ()
        self._products = COLD_PRODUCTS
        self._is_supported = True
        self._ended: tuple[int, float] | None = None  # step and time of the last call's end
        self._is_verified = False
        self._uses_differences = False

    def measure(
        self,
        step: int,
        closure: Callable[[], Any],
        *,
        lr: float | None,
        loss: Any = None,
        signals: StepSignals | None = None,
    ) -> CurvatureCopy | None:
        """Probe if it is due. ``loss`` and ``signals``: the value logged for this batch before the step, and that step.

        Never raises; what goes wrong is warned of once, counted, and makes the next probe come later.
        """
        self._time_step(step)
        try:
            return self._attempt(step, closure, lr, loss, signals)
        finally:
            self._ended = step, self._clock()

    def _time_step(self, step: int) -> None:
        """Tell the schedule what training took since the last call."""
        if self._ended is not None and step > self._ended[0]:
            self.schedule.observe_step_time((self._clock() - self._ended[1]) / (step - self._ended[0]))

    def _attempt(
        self, step: int, closure: Callable[[], Any], lr: float | None, loss: Any, signals: StepSignals | None
    ) -> CurvatureCopy | None:
        self._collect()
        if not self._is_supported:
            return None
        choice = self.schedule.decide(step, lr)
        if choice == "none" or lr == 0:
            return None
        try:
            return self._measure(step, choice, closure, loss, signals)
        except UnsupportedError as error:
            self._is_supported = False
            self._warner.warn("curvature_unsupported", str(error))
        except IndependentError as error:
            report = self._warner.warn if self._is_alone() else self._warner.note
            report("closure", f"curvature is not measured: {error}")
        except ClosureError as error:
            self._warner.warn("closure", f"curvature is not measured: {error}")
        except torch.OutOfMemoryError:
            self._warner.warn(
                "curvature_memory",
                "not enough memory for an exact Hessian-vector product; finite differences are used from now on. "
                "A closure over a smaller batch would help",
            )
            self._uses_differences = True
        except Exception as error:
            self._warner.caught("curvature", "measuring curvature", error)
        self.schedule.failed(step)
        return None

    def _measure(
        self, step: int, choice: Choice, closure: Callable[[], Any], loss: Any, signals: StepSignals | None
    ) -> CurvatureCopy | None:
        _refuse_distributed()
        preconditioner = Preconditioner.read(self._optimizer, self._kind)
        if preconditioner is None:
            return None
        self.schedule.started(choice, step)
        timer = _Timer(preconditioner.diagonal.device, self._clock)
        usual = self._share_of_usual(choice, preconditioner)
        with Sandbox(self._model, preconditioner.parameters) as sandbox:
            tensors = self._probe(choice, sandbox, closure, preconditioner)
            is_comparable = sandbox.is_deterministic and signals is not None
        timer.stop()
        self._timers.append((choice, usual, timer))
        logged = loss if isinstance(loss, int | float) and not isinstance(loss, bool) else None
        if isinstance(loss, Tensor) and loss.numel() == 1 and is_comparable:
            tensors["logged_loss"] = loss
        rounding = ROUNDING * torch.finfo(tensors["loss"].dtype).eps
        copy = CurvatureCopy(
            tensors, None if logged is None else float(logged), signals if is_comparable else None, rounding
        )
        self._flying.append((step, copy))
        return copy

    def _probe(
        self, choice: Choice, sandbox: Sandbox, closure: Callable[[], Any], preconditioner: Preconditioner
    ) -> dict[str, Tensor]:
        if not self._uses_differences:
            try:
                hessian = ExactHessian(sandbox, closure, preconditioner, verify=not self._is_verified)
                self._is_verified = True
                return self._evaluate(choice, hessian, preconditioner)
            except NoSecondDerivativeError as error:
                self._uses_differences = True
                self._warner.warn(
                    "finite_differences",
                    f"the model cannot be differentiated twice ({error}); curvature is measured by finite differences, "
                    "which is exact to about 1 % in float32 and useless for bfloat16 weights",
                )
        return self._evaluate(choice, DifferenceHessian(sandbox, closure, preconditioner), preconditioner)

    @torch.no_grad()
    def _evaluate(self, choice: Choice, hessian: Hessian, preconditioner: Preconditioner) -> dict[str, Tensor]:
        """λ_grad = gᵀĤg/‖g‖² and, where asked for, λ_max of D^½(H + γ)D^½."""
        diagonal = preconditioner.diagonal
        root = diagonal.sqrt()
        inverse_root = torch.where(root > 0, 1.0 / root, 0.0)  # 0 where a group's learning rate is 0: it does not move
        gradient = torch.where(root > 0, hessian.gradient, 0.0)

        def curved(vector: Tensor) -> Tensor:
            product = hessian.product(vector)
            return product if preconditioner.penalty is None else product + preconditioner.penalty * vector

        if preconditioner.penalty is not None:
            weights = torch.cat([p.reshape(-1).to(diagonal.dtype) for p in preconditioner.parameters])
            gradient = gradient + torch.where(root > 0, preconditioner.penalty * weights, 0.0)
        image = curved(gradient)
        square = torch.dot(gradient, gradient)
        values = {
            "loss": hessian.loss,
            "lr": preconditioner.lr,
            "gradient_square": square,
            "lambda_grad": torch.dot(gradient, diagonal * image) / square,
        }
        if choice == "full":
            known = gradient * inverse_root, root * image
            pair = self._largest(lambda x: root * curved(root * x), preconditioner, inverse_root, known)
            values["lambda_max"], values["residual"] = pair.value, pair.residual
        return values

    def _largest(
        self,
        product: Callable[[Tensor], Tensor],
        preconditioner: Preconditioner,
        inverse_root: Tensor,
        known: tuple[Tensor, Tensor],
    ) -> RitzPair:
        products = self._products_for(preconditioner)
        if self._direction is not None and _same(self._parameters, preconditioner.parameters):
            start = self._direction * inverse_root  # carries the vector over from the last probe's preconditioner
        else:
            generator = torch.Generator(inverse_root.device).manual_seed(0)
            start = torch.randn(
                inverse_root.shape, generator=generator, device=inverse_root.device, dtype=inverse_root.dtype
            )
        pair = largest_eigenpair(product, start, products, [known])
        self._direction, self._parameters = preconditioner.diagonal.sqrt() * pair.vector, preconditioner.parameters
        return pair

    def _products_for(self, preconditioner: Preconditioner) -> int:
        is_warm = self._direction is not None and _same(self._parameters, preconditioner.parameters)
        return self._products if is_warm else COLD_PRODUCTS

    def _share_of_usual(self, choice: Choice, preconditioner: Preconditioner) -> float:
        """Cost of a warm probe over that of this one, by gradients computed: about 3 for the graph, then each product.
        A cold start must not make the schedule believe that every probe is that dear."""
        if choice == "gradient":
            return 1.0
        return (4 + WARM_PRODUCTS) / (4 + self._products_for(preconditioner))

    def _collect(self) -> None:
        """Learn from what has reached the host since the last call; waits for nothing."""
        for choice, share, timer in [entry for entry in self._timers if entry[2].done()]:
            self.schedule.observe_cost(choice, timer.seconds() * share)
            self._timers.remove((choice, share, timer))
        while self._flying and self._flying[0][1].ready():
            step, copy = self._flying.pop(0)
            values = copy.values()
            if is_flat(values):
                self._direction, self._products = None, COLD_PRODUCTS
                self._warner.note("flat_loss", "the closure's loss has no gradient in a watched model")
                self.schedule.failed(step)
                continue
            if not math.isfinite(values["loss"]) or not math.isfinite(values["lambda_grad"]):
                self._direction, self._products = None, COLD_PRODUCTS
                self._warner.warn(
                    "closure_nonfinite",
                    "the closure's loss or its curvature is NaN or infinite, so nothing is reported. If the training "
                    "loss is finite, the closure must compute that same loss",
                )
                self.schedule.failed(step)
                continue
            lambda_max = values.get("lambda_max")
            if lambda_max is not None:
                residual = values["residual"]
                self._products = WARM_PRODUCTS if residual <= GOOD_RESIDUAL else REFINING_PRODUCTS
                if not math.isfinite(residual):
                    self._direction = None
            known = lambda_max if is_reportable(values) else None
            self.schedule.observe_curvature(step, values["lr"], known, values["lambda_grad"])


class _Timer:
    """How long a probe kept the device busy; on the CPU, how long it took."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._device = device
        self._events: tuple[Any, Any] | None = None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                self._events[0].record()
        self._started = clock()
        self._stopped = self._started

    def stop(self) -> None:
        self._stopped = self._clock()
        if self._events is not None:
            with torch.cuda.device(self._device):
                self._events[1].record()

    def done(self) -> bool:
        return self._events is None or bool(self._events[1].query())

    def seconds(self) -> float:
        on_host = self._stopped - self._started
        return on_host if self._events is None else max(on_host, self._events[0].elapsed_time(self._events[1]) / 1000)


def _same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return len(first) == len(second) and all(one is other for one, other in zip(first, second, strict=True))


def _refuse_distributed() -> None:
    """The schedule follows each process's own clock, so that collectives inside the closure could wait forever."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise UnsupportedError("curvature is measured only in runs of one process; statistics go on")
