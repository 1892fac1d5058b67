"""Measurement of λ_grad, λ_max and λ_step of one model and optimizer, inside `log` and without effect on training.

Owns one probe from the closure to values on their way to the host, the warm start between probes, and the handling of
closures that fail. Called on the training thread; results may be read on any thread.

Sources: λ_max and λ_grad of the preconditioned Hessian, Bai et al. (ICML 2026); `step_probe` measures λ_step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian, Hessian, NoSecondDerivativeError
from client_sdk.curvature.preconditioner import Preconditioner, UnsupportedError
from client_sdk.curvature.sandbox import ClosureError, IndependentError, Sandbox
from client_sdk.curvature.schedule import Choice, Schedule
from client_sdk.curvature.spectrum import RitzPair, largest_eigenpairs
from client_sdk.curvature.step_probe import StepSnapshot, step_curvature
from client_sdk.curvature.unstable_directions import UnstableDirections
from client_sdk.host import ScalarCopy
from client_sdk.optimizers import Kind
from client_sdk.warner import Warner

WARM_PRODUCTS: Final = 3  # Hessian-vector products for λ_max from the last probe's vector; λ_grad needs one more
REFINING_PRODUCTS: Final = 5  # the same while the last residual was above GOOD_RESIDUAL
COLD_PRODUCTS: Final = 10  # the same from a random vector
DIRECTIONS: Final = 2  # eigenvectors that are followed between probes
GOOD_RESIDUAL: Final = 0.1  # relative residual of λ_max
WORST_RESIDUAL: Final = 0.5  # above this λ_max is not reported, but its vector is kept and refined
ROUNDING: Final = 64  # units of rounding of the loss below which a slope is meaningless


class CurvatureCopy:
    """Values of one probe on their way to the host."""

    def __init__(self, tensors: dict[str, Tensor], rounding: float) -> None:
        """Start copying the 0-d ``tensors``, keyed by name, to the host.

        ``rounding`` is the size of the slope, relative to the loss, below which λ_step is not reported.
        """
        self._names = tuple(tensors)
        self._copy = ScalarCopy(list(tensors.values()))
        self._rounding = rounding

    def ready(self) -> bool:
        """Return whether all values have reached the host. Never synchronises a device."""
        return self._copy.ready()

    def values(self) -> dict[str, float]:
        """Return everything that was measured, by name, with NaN where a measurement failed.

        The names are loss, lr, gradient_square and lambda_grad, for a full probe also lambda_max and residual, and
        those of `StepSnapshot.measure` if the weights before the step were kept. An optimizer whose stability limit is
        not known has only loss and the latter.
        """
        return dict(zip(self._names, self._copy.array().tolist(), strict=True))

    def scalars(self) -> dict[str, float]:
        """Return the scalars to report: lambda_grad, lambda_max and lambda_step, each only if it is meaningful."""
        values = self.values()
        if is_flat(values):
            return {}  # the loss may have changed, but not because of this model's step
        reported = {}
        if math.isfinite(values.get("lambda_grad", math.nan)):
            reported["lambda_grad"] = values["lambda_grad"]
        if is_reportable(values):
            reported["lambda_max"] = values["lambda_max"]
        if "slope" in values:
            step = step_curvature(
                loss=values["loss"],
                loss_before=values["loss_before"],
                slope=values["slope"],
                lr=values["step_lr"],
                rounding=self._rounding,
            )
            if step is not None:
                reported["lambda_step"] = step
        return reported


def is_reportable(values: dict[str, float]) -> bool:
    """Return whether λ_max was measured with an acceptable residual."""
    return math.isfinite(values.get("lambda_max", math.nan)) and values["residual"] <= WORST_RESIDUAL


def is_flat(values: dict[str, float]) -> bool:
    """Return whether the loss is finite and its gradient exactly zero.

    The loss then does not depend on these parameters at the moment. There is no direction to measure along, and the
    closure is not at fault.
    """
    return math.isfinite(values["loss"]) and values.get("gradient_square") == 0


class Probe:
    """Probe of the curvature of one model, in the norm of its optimizer."""

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
        """Prepare to probe ``model`` with ``every`` steps between full probes while the run is calm.

        ``is_alone`` returns False if other models are watched on the same run: the closure may then belong to one of
        them.
        """
        self._is_alone = is_alone
        self._model, self._optimizer, self._kind = model, optimizer, kind
        self._warner = warner
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        # Processor time: the load of other processes on a shared CPU is not a reason to probe less.
        self._clock = time.process_time if on_cpu else time.perf_counter
        self.schedule = Schedule(every)
        self.directions = UnstableDirections()
        """Directions of the last full probe, whose amplitudes the caller follows at every step."""
        self._flying: list[tuple[int, CurvatureCopy]] = []
        self._timers: list[tuple[Choice, float, _Timer]] = []
        self._vectors: list[Tensor] = []  # eigenvectors in the space of the parameters, D^½·x, [N] each
        self._parameters: tuple[Tensor, ...] = ()
        self._products = COLD_PRODUCTS
        self._has_limit = True  # whether λ_grad and λ_max can be measured
        self._is_refused = False
        self._refusal = ""
        self._snapshot: StepSnapshot | None = None
        self._steps = 0  # optimizer steps since the last call of `measure`
        self._steps_a_call: int | None = None  # those between the last two calls; None before the first
        self._ended: tuple[int, float] | None = None  # step and time at which the last call ended
        self._is_verified = False
        self._uses_differences = False

    @property
    def is_used(self) -> bool:
        """Whether `measure` has been called, so that `before_step` must be called before every optimizer step."""
        return self._steps_a_call is not None and not self._is_refused

    def before_step(self, lr: float | Tensor | None) -> None:
        """Keep the weights before an optimizer step if a probe is expected at the `log` that follows it.

        ``lr`` is the largest learning rate of the step. Without these weights a probe has no λ_step.
        """
        self._steps += 1
        if self._steps_a_call is None or self._steps < self._steps_a_call or lr is None:
            return  # of the steps between two calls only the last is measured
        self._snapshot = None  # frees the memory of an earlier step first
        if self.schedule.expects_probe(lr if isinstance(lr, float) else None):
            parameters = [
                parameter
                for group in self._optimizer.param_groups
                for parameter in group["params"]
                if parameter.requires_grad and not parameter.is_complex()
            ]
            self._snapshot = StepSnapshot(parameters, lr)

    def measure(self, step: int, closure: Callable[[], Any], *, lr: float | None) -> CurvatureCopy | None:
        """Probe the curvature at ``step`` if a probe is due, and return its values on their way to the host.

        Never raises: a failure is reported once, counted, and delays the next probe.
        """
        self._time_step(step)
        snapshot, self._snapshot = self._snapshot, None
        self._steps_a_call, self._steps = max(1, self._steps), 0
        try:
            return self._attempt(step, closure, lr, snapshot)
        finally:
            self._ended = step, self._clock()

    def distrust(self, reason: str) -> None:
        """Measure no λ_grad and λ_max from now on, because the preconditioner is not what the weights move by."""
        if self._has_limit:
            self._has_limit = False
            self._forget()
            self._warner.note("curvature_unsupported", f"{reason}. Only λ_step is measured")

    def refuse(self, reason: str) -> None:
        """Measure nothing, and say the ``reason`` once a closure is given."""
        self._refusal = reason

    def _time_step(self, step: int) -> None:
        """Give the schedule the time that training took for each step since the last call."""
        if self._ended is not None and step > self._ended[0]:
            self.schedule.observe_step_time((self._clock() - self._ended[1]) / (step - self._ended[0]))

    def _attempt(
        self, step: int, closure: Callable[[], Any], lr: float | None, snapshot: StepSnapshot | None
    ) -> CurvatureCopy | None:
        self._collect()
        if self._is_refused:
            return None
        if self._refusal:
            self._is_refused = True
            self._warner.warn("curvature_unsupported", self._refusal)
            return None
        choice = self.schedule.decide(step, lr)
        if choice == "none" or lr == 0:
            return None
        try:
            return self._measure(step, choice, closure, snapshot)
        except UnsupportedError as error:
            self._is_refused = True
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
                "To avoid them, compute the closure on a smaller batch",
            )
            self._uses_differences = True
        except Exception as error:
            self._warner.caught("curvature", "measuring curvature", error)
        self.schedule.failed(step)
        return None

    def _measure(
        self, step: int, choice: Choice, closure: Callable[[], Any], snapshot: StepSnapshot | None
    ) -> CurvatureCopy | None:
        _refuse_distributed()
        preconditioner = self._read_preconditioner()
        if preconditioner is None and (self._has_limit or snapshot is None):
            return None
        self.schedule.started(choice, step)
        timer = _Timer(next(self._model.parameters()).device, self._clock)
        usual = 1.0 if preconditioner is None else self._share_of_usual(choice, preconditioner)
        protected = () if preconditioner is None else preconditioner.parameters
        with Sandbox(self._model, protected) as sandbox:
            if preconditioner is None:
                tensors = {"loss": sandbox.evaluate(closure).detach()}
            else:
                tensors = self._probe(choice, sandbox, closure, preconditioner)
            if snapshot is not None:
                tensors |= snapshot.measure(sandbox, closure)
        timer.stop()
        self._timers.append((choice, usual, timer))
        copy = CurvatureCopy(tensors, ROUNDING * torch.finfo(tensors["loss"].dtype).eps)
        self._flying.append((step, copy))
        return copy

    def _read_preconditioner(self) -> Preconditioner | None:
        """Return the preconditioner, or None before the first step and where the stability limit is not known."""
        if not self._has_limit:
            return None
        try:
            return Preconditioner.read(self._optimizer, self._kind)
        except UnsupportedError as error:
            self._has_limit = False
            self._warner.warn("curvature_unsupported", f"{error}. Only λ_step is measured")
            return None

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
        """Return λ_grad = gᵀĤg/‖g‖² and, for a full probe, λ_max of D^½(H + γ)D^½, with their context."""
        diagonal = preconditioner.diagonal  # [N]
        root = diagonal.sqrt()  # [N]
        inverse_root = torch.where(root > 0, 1.0 / root, 0.0)  # [N]; 0 for groups with learning rate 0, which are fixed
        gradient = torch.where(root > 0, hessian.gradient, 0.0)  # [N]

        def curved(vector: Tensor) -> Tensor:
            product = hessian.product(vector)
            return product if preconditioner.penalty is None else product + preconditioner.penalty * vector

        if preconditioner.penalty is not None:
            weights = torch.cat([p.reshape(-1).to(diagonal.dtype) for p in preconditioner.parameters])
            gradient = gradient + torch.where(root > 0, preconditioner.penalty * weights, 0.0)
        image = curved(gradient)  # [N]
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
        others: list[Tensor] = []
        if self._vectors and _same(self._parameters, preconditioner.parameters):
            # The last eigenvectors in the coordinates of this preconditioner.
            start, *others = (vector * inverse_root for vector in self._vectors)
        else:
            generator = torch.Generator(inverse_root.device).manual_seed(0)
            start = torch.randn(
                inverse_root.shape, generator=generator, device=inverse_root.device, dtype=inverse_root.dtype
            )
        pairs = largest_eigenpairs(product, start, products, [known], others=others, count=DIRECTIONS)
        root = preconditioner.diagonal.sqrt()
        self._vectors, self._parameters = [root * pair.vector for pair in pairs], preconditioner.parameters
        self.directions.replace(pairs, root, preconditioner.parameters)
        return pairs[0]

    def _products_for(self, preconditioner: Preconditioner) -> int:
        is_warm = bool(self._vectors) and _same(self._parameters, preconditioner.parameters)
        return self._products if is_warm else COLD_PRODUCTS

    def _share_of_usual(self, choice: Choice, preconditioner: Preconditioner) -> float:
        """Return the cost of a warm probe relative to this one, in gradients: about 3 for the graph, then each product.

        It keeps the schedule from treating the cost of a cold start as that of every probe.
        """
        if choice == "gradient":
            return 1.0
        return (4 + WARM_PRODUCTS) / (4 + self._products_for(preconditioner))

    def _collect(self) -> None:
        """Update the schedule and the warm start with the values that have reached the host, without waiting."""
        for choice, share, timer in [entry for entry in self._timers if entry[2].done()]:
            self.schedule.observe_cost(choice, timer.seconds() * share)
            self._timers.remove((choice, share, timer))
        while self._flying and self._flying[0][1].ready():
            step, copy = self._flying.pop(0)
            values = copy.values()
            if is_flat(values):
                self._forget()
                self._warner.note("flat_loss", "the closure's loss has no gradient in a watched model")
                self.schedule.failed(step)
                continue
            if not math.isfinite(values["loss"]) or not math.isfinite(values.get("lambda_grad", 0.0)):
                self._forget()
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
                    self._vectors = []
                if not residual <= WORST_RESIDUAL:
                    self.directions.forget()
            known = lambda_max if is_reportable(values) else None
            self.schedule.observe_curvature(
                step, values.get("lr", math.nan), known, values.get("lambda_grad", math.nan)
            )

    def _forget(self) -> None:
        """Start from a random vector at the next full probe."""
        self._vectors, self._products = [], COLD_PRODUCTS
        self.directions.forget()


class _Timer:
    """Timer of the time for which a probe kept the device busy, or of its processor time on the CPU."""

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
    """Raise `UnsupportedError` in a distributed training.

    The schedule follows the clock of each process, so collective operations inside the closure could wait forever.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise UnsupportedError(
            "curvature is measured only in runs of one process; layer statistics are measured as usual"
        )
