"""Measurement of λ_grad, λ_max and λ_step of one model and optimizer, inside `log` and without effect on training.

Owns one measurement from the closure to values on their way to the host, and the handling of closures and operators
that fail. `Schedule` decides when, `Tracking` what a product is spent on. Called on the training thread; results may be
read on any thread.

Sources: λ_max and λ_grad of the preconditioned Hessian, Bai et al. (ICML 2026); `step_probe` measures λ_step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.budget import WINDOW, Budget
from client_sdk.curvature.exchange import AbandonedError
from client_sdk.curvature.flight import Flight
from client_sdk.curvature.following import Following
from client_sdk.curvature.forward_probe import ForwardProbe
from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian, Hessian, NoSecondDerivativeError
from client_sdk.curvature.inner_product import WHOLE, InnerProduct
from client_sdk.curvature.method import INSTEAD, Method, MethodChoice
from client_sdk.curvature.preconditioner import Preconditioner, UnsupportedError, same_tensors
from client_sdk.curvature.products import evaluate_products
from client_sdk.curvature.reading import CurvatureCopy, is_flat, is_reportable, rounding_of
from client_sdk.curvature.sandbox import ClosureError, IndependentError, Sandbox
from client_sdk.curvature.schedule import Choice, Schedule
from client_sdk.curvature.step_probe import StepSnapshot
from client_sdk.curvature.timer import Allowance, Timer
from client_sdk.curvature.tracking import Aim, Tracking
from client_sdk.curvature.unreduced import without_reduction
from client_sdk.curvature.unstable_directions import UnstableDirections
from client_sdk.optimizers import Kind, response_of_all
from client_sdk.warner import Warner

PATIENCE: Final = 2 * WINDOW  # records after which it is said that λ_max has not been read


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
        budget: Budget | None = None,
        method: Method = "auto",
        is_alone: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepare to probe ``model`` with ``every`` steps between readings of λ_max while the run is calm.

        The time that it takes stays within ``budget``; None sets no limit. ``method`` is explained at `watch`.
        ``is_alone`` returns False if other models are watched on the same run: the closure may then belong to one of
        them.
        """
        self._is_alone = is_alone
        self._model, self._optimizer, self._kind = model, optimizer, kind
        self._warner = warner
        self._budget = Budget(math.inf) if budget is None else budget
        is_on_host = all(parameter.device.type == "cpu" for parameter in model.parameters())
        self.schedule = Schedule(every, self._budget, reads_at_point=is_on_host)
        self.directions = UnstableDirections()
        """Directions of largest curvature, whose amplitudes the caller follows at every step."""
        self._tracking = Tracking()
        self._inner: InnerProduct = WHOLE  # of the measurement under way
        self._takes_parts = False  # whether parameters may be divided among the ranks that measure together
        self._parameters: tuple[Tensor, ...] = ()  # those of the tracked vectors
        self._flying: list[Flight] = []
        self._timers: list[tuple[Choice, Timer, Timer | None]] = []
        self._following = Following(self.directions, self._budget, self._say_once)
        self._methods = MethodChoice(method, warner)
        self._forward = ForwardProbe()
        self._is_refused = method == "off"
        self._refusal = ""
        self._snapshot: StepSnapshot | None = None
        self._rest = 0  # records to come at which nothing is decided
        self._steps = 0  # optimizer steps since the last call of `measure`
        self._steps_a_call: int | None = None  # those between the last two calls; None before the first
        self._is_verified = False
        self._allowance = Allowance(math.inf)  # of the measurement under way
        self._reads_at_point = False  # whether the measurement under way judges each product before the next
        self._has_said_budget = False
        self._calls = 0  # of `measure`
        self._read_at: int | None = None  # step of the last reading of λ_max that was reported

    @property
    def is_used(self) -> bool:
        """Whether `measure` has been called, so that `before_step` must be called before every optimizer step."""
        return self._steps_a_call is not None and not self._is_refused

    def age(self, step: int) -> int | None:
        """Return the number of steps from the last reported λ_max to ``step``; None before the first."""
        return None if self._read_at is None or self._read_at > step else step - self._read_at

    def before_step(self, lr: float | Tensor | None) -> None:
        """Keep the weights before an optimizer step if λ_step will be wanted at the `log` that follows it.

        ``lr`` is the largest learning rate of the step. Without these weights a measurement has no λ_step.
        """
        self._steps += 1
        self.directions.lr = lr if isinstance(lr, float) else None
        if self._rest or self._steps_a_call is None or self._steps < self._steps_a_call or lr is None:
            return  # of the steps between two calls only the last is measured
        self._snapshot = None  # frees the memory of an earlier step first
        if self._expects_step(lr if isinstance(lr, float) else None):
            parameters = [
                parameter
                for group in self._optimizer.param_groups
                for parameter in group["params"]
                if parameter.requires_grad and not parameter.is_complex()
            ]
            self._snapshot = StepSnapshot(parameters, lr)

    def _expects_step(self, lr: float | None) -> bool:
        """Return whether the next `measure` will want the weights before its step."""
        if not self.schedule.expects(lr):
            return False
        return self.schedule.wants_step or (not self._methods.has_products and self._forward.needs_step)

    def follow(self) -> None:
        """Take in the gradients of the step that is under way, if following the directions is within the budget."""
        self._following.follow()

    def measure(self, step: int, closure: Callable[[], Any], *, lr: float | None) -> CurvatureCopy | None:
        """Make the measurement that is due at ``step``, if any, and return its values on their way to the host.

        Never raises: a failure is reported once, counted, and delays the next measurement.
        """
        if self._rest:
            self.pass_by(step)
            return None
        began = time.perf_counter()
        self._steps_a_call, self._steps = max(1, self._steps), 0
        snapshot, self._snapshot = self._snapshot, None
        self._collect()
        if self._is_refused:
            return None
        if self._refusal:
            self._is_refused = True
            self._warner.warn("curvature_unsupported", self._refusal)
            return None
        choice = self._choose(step, lr)
        if choice == "none" or lr == 0:
            self._rest = self.schedule.records_to_rest(lr, time.perf_counter() - began)
            return None
        try:
            with without_reduction():
                return self._measure(step, choice, closure, snapshot)
        except UnsupportedError as error:
            self._refuse(error)
        except NoSecondDerivativeError:
            pass  # the method that has taken over makes the next measurement
        except IndependentError as error:
            report = self._warner.warn if self._is_alone() else self._warner.note
            report("closure", f"curvature is not measured: {error}")
        except AbandonedError as error:
            self._warner.note("closure", f"curvature is not measured: {error}")
        except ClosureError as error:
            self._warner.warn("closure", f"curvature is not measured: {error}")
        except torch.OutOfMemoryError:
            try:
                self._take_over("there is not enough memory; compute the closure on a smaller batch to avoid this")
            except UnsupportedError as error:
                self._refuse(error)
        except Exception as error:
            self._warner.caught("curvature", "measuring curvature", error)
        self.schedule.failed(step)
        return None

    @property
    def is_resting(self) -> bool:
        """Whether `pass_step` and `pass_by` may take the place of `before_step`, `follow` and `measure`.

        That is the case at times where steps are so short that a decision at each of them would cost too much.
        """
        return self._rest > 0 and self._following.is_resting

    def pass_step(self) -> None:
        """Note a step of the optimizer at which nothing is due."""
        self._steps += 1
        self._following.pass_step()

    def pass_by(self, step: int) -> None:
        """Note a `log` with a closure at ``step`` at which nothing is due."""
        self._steps_a_call, self._steps = max(1, self._steps), 0
        self._rest -= 1
        self._calls += 1
        self.schedule.pass_by(step)

    def _choose(self, step: int, lr: float | None) -> Choice:
        """Return the measurement that is to be made at ``step``."""
        choice = self.schedule.decide(step, lr)
        if self.schedule.is_beyond_budget:
            self._say_once(
                f"one Hessian-vector product takes the time of {self.schedule.reading_steps:.0f} steps, more than the "
                f"budget of {self._budget.share:.3g} allows over {WINDOW} steps, so that curvature is not measured. "
                "Pass a larger budget to watch(), or compute the closure on a smaller batch"
            )
        self._calls += 1
        if (
            self._calls > PATIENCE
            and self._read_at is None
            and self._methods.has_products
            and not math.isinf(self._budget.share)
        ):
            part = "reading it" if self.schedule.is_brief else "each of its Hessian-vector products"
            self._say_once(
                f"λ_max was not read in {PATIENCE} records, because {part} takes the time of "
                f"{self.schedule.reading_steps:.1f} steps and the budget is {self._budget.share:.3g} of the training's "
                "time. A larger budget, such as watch(…, budget=1.0), reads it sooner"
            )
        return choice

    def refuse(self, reason: str) -> None:
        """Measure nothing, and say the ``reason`` once a closure is given."""
        self._refusal = reason

    def distrust(self, reason: str) -> None:
        """Measure no λ_grad and λ_max from now on, because the preconditioner is not what the weights move by."""
        if self._methods.has_products:
            self._use_losses_alone()
            self._warner.note("curvature_unsupported", f"{reason}. {INSTEAD}")

    def _say_once(self, message: str) -> None:
        """Say what the budget does not allow, the first time."""
        if not self._has_said_budget:
            self._has_said_budget = True
            self._warner.warn("curvature_budget", message)

    def _measure(
        self, step: int, choice: Choice, closure: Callable[[], Any], snapshot: StepSnapshot | None
    ) -> CurvatureCopy | None:
        device = next(self._model.parameters()).device
        timer, step_timer = Timer(device), None
        self._allowance = Allowance(self.schedule.allowance)
        preconditioner = self._read_preconditioner()
        if preconditioner is None and (
            self._methods.has_products or not self._forward.has_work(choice, has_step=snapshot is not None)
        ):
            return None
        aim: Aim | None = None
        if preconditioner is not None and not same_tensors(self._parameters, preconditioner.parameters):
            self._forget()
            self._parameters = preconditioner.parameters
        if choice == "track":
            aim = self._tracking.plan(is_scarce=self.schedule.is_scarce)
        self._reads_at_point = choice == "reading" or (choice == "both" and self.schedule.is_brief)
        self.schedule.started(choice, step)
        protected = () if preconditioner is None else preconditioner.parameters
        try:
            with Sandbox(self._model, protected) as sandbox:
                if preconditioner is not None:
                    tensors = self._probe(choice, aim, sandbox, closure, preconditioner)
                else:
                    tensors = self._forward.measure(choice, sandbox, closure, snapshot)
                    snapshot = None
                    if not tensors:
                        return None
                timer.stop()
                if snapshot is not None:
                    step_timer = Timer(device)
                    tensors |= snapshot.measure(sandbox, closure)
                    step_timer.stop()
        finally:
            self._account(choice, timer, step_timer)
        copy = CurvatureCopy(tensors, rounding_of(tensors["loss"]))
        self._flying.append(Flight(step=step, aim=aim, choice=choice, is_judged=self._reads_at_point, copy=copy))
        return copy

    def _account(self, choice: Choice, timer: Timer, step_timer: Timer | None) -> None:
        """Keep the timers until the time of the device is known; the caller charges the budget with the host's."""
        if timer.on_host == 0.0:
            timer.stop()  # the measurement failed
        if step_timer is not None and step_timer.on_host == 0.0:
            step_timer.stop()
        self._timers.append((choice, timer, step_timer))

    def _read_preconditioner(self) -> Preconditioner | None:
        """Return the preconditioner, or None before the first step and where the stability limit is not known."""
        if not self._methods.has_products:
            return None
        try:
            return Preconditioner.read(self._optimizer, self._kind, takes_parts=self._takes_parts)
        except UnsupportedError as error:
            self._use_losses_alone()
            self._warner.warn("curvature_unsupported", f"{error}. {INSTEAD}")
            return None

    def _probe(
        self,
        choice: Choice,
        aim: Aim | None,
        sandbox: Sandbox,
        closure: Callable[[], Any],
        preconditioner: Preconditioner,
    ) -> dict[str, Tensor]:
        if preconditioner.is_divided and self._methods.method == "exact":
            raise UnsupportedError(
                "double backward does not reach parameters that are DTensors, so that curvature is not measured by "
                "'exact'; watch(…, curvature=\"auto\") uses finite differences for them"
            )
        if not self._methods.uses_differences and not preconditioner.is_divided:
            try:
                hessian = self._exact(sandbox, closure, preconditioner)
                return self._evaluate(choice, aim, hessian, preconditioner)
            except NoSecondDerivativeError as error:
                self._take_over(f"the model cannot be differentiated twice ({error})")
                if not self._methods.has_products:
                    raise
        differences = DifferenceHessian(sandbox, closure, preconditioner, inner=self._inner)
        return self._evaluate(choice, aim, differences, preconditioner)

    def _exact(self, sandbox: Sandbox, closure: Callable[[], Any], preconditioner: Preconditioner) -> ExactHessian:
        hessian = ExactHessian(sandbox, closure, preconditioner, verify=not self._is_verified)
        self._is_verified = True
        return hessian

    def _take_over(self, reason: str) -> None:
        """Go on with the next method after the present one has failed. Raises `UnsupportedError` if there is none."""
        self._methods.take_over(reason, self._parameters)
        if not self._methods.has_products:
            self._forget()

    def _refuse(self, error: UnsupportedError) -> None:
        self._is_refused = True
        self._warner.warn("curvature_unsupported", str(error))

    def _use_losses_alone(self) -> None:
        self._methods.has_products = False
        self._forget()

    @torch.no_grad()
    def _evaluate(
        self, choice: Choice, aim: Aim | None, hessian: Hessian, preconditioner: Preconditioner
    ) -> dict[str, Tensor]:
        """Compute the products of ``choice``; ``aim`` says what the one of "track" is for."""
        values = evaluate_products(
            choice,
            aim,
            hessian,
            preconditioner,
            tracking=self._tracking,
            inner=self._inner,
            at_point=self._allowance if self._reads_at_point else None,
            is_rare=self._reads_at_point and self.schedule.is_rare,
        )
        if pairs := self._tracking.pairs():
            root = preconditioner.diagonal.sqrt()
            self.directions.replace(pairs, root, preconditioner.parameters, inner=self._inner)
            is_penalised = preconditioner.penalty is not None  # what moves the weights is not the gradient alone then
            self.directions.response = None if is_penalised else response_of_all(self._optimizer, self._kind)
        return values

    def _collect(self) -> None:
        """Update schedule, tracking and budget with the values that have reached the host, without waiting."""
        for entry in [entry for entry in self._timers if all(timer is None or timer.done() for timer in entry[1:])]:
            choice, timer, step_timer = entry
            self._timers.remove(entry)
            if choice != "none":
                self.schedule.observe_cost(choice, timer.seconds())
            late = timer.seconds() - timer.on_host
            if step_timer is not None:
                self.schedule.observe_cost("step", step_timer.seconds())
                late += step_timer.seconds() - step_timer.on_host
            self._budget.spend(late, "curvature")
        while self._flying and self._flying[0].copy.ready():
            self._observe(self._flying.pop(0))

    def _observe(self, flight: Flight) -> None:
        step, values = flight.step, flight.copy.values()
        is_flat_loss = is_flat(values)
        is_finite = math.isfinite(values["loss"]) and math.isfinite(values.get("lambda_grad", 0.0))
        if is_flat_loss or not is_finite:
            self._forget()
            self.schedule.failed(step)
            if is_flat_loss:
                self._warner.note("flat_loss", "the closure's loss has no gradient in a watched model")
            else:
                self._warner.warn(
                    "closure_nonfinite",
                    "the closure's loss or its curvature is NaN or infinite, so nothing is reported. If the training "
                    "loss is finite, the closure must compute that same loss",
                )
            return
        self.schedule.succeeded()
        lr = values.get("lr", math.nan)
        if "lambda_grad" in values:
            self.schedule.observe_lambda_grad(step, lr, values["lambda_grad"])
        if is_reportable(values):
            self._read_at = step
            self.schedule.observe_lambda_max(step, lr, values["lambda_max"])
        if math.isfinite(values.get("critical_sharpness", math.nan)):
            self.schedule.observe_lambda_max(step, values["step_lr"], values["critical_sharpness"])
        is_tracked = flight.is_judged or (
            flight.choice != "gradient" and "lr" in values and self._tracking.observe(flight.aim, values)
        )
        if is_tracked or values.get("is_over"):
            self.schedule.round_ended(step)
        if not self._tracking.pairs():
            self.directions.forget()

    def _forget(self) -> None:
        """Begin anew with the next product."""
        self._tracking.forget()
        self.directions.forget()
