"""The stability limit of gradient descent with momentum and a preconditioner."""

from __future__ import annotations

import math
from dataclasses import dataclass

from client_sdk.optimizers.update_rule import Numbers


def oscillation_gain(direct: Numbers, momentum: Numbers, intake: float, decay: float) -> Numbers:
    """Return the response of the update to a gradient that changes sign every step, which is the factor of Ĥ.

    The first instability of gradient descent has period two. The transfer function of m = decay·m + intake·g at z = −1
    is intake/(1 + decay), so "λ(D·H) · gain < 2/η" is the limit of every family here, with D = 1/(root·√v + floor). It
    gives the published limits: SGD 1; heavy ball 1/(1+μ); Nesterov (1+2μ)/(1+μ) (Cohen et al. 2021, arXiv 2103.00065);
    EMA momentum (1−β1)/(1+β1) (Cohen et al. 2022, arXiv 2207.14484); Adam with bias correction
    (1/(1−β1ᵗ))·(1−β1)/(1+β1) (Bai et al. 2026).

    No instability comes before the one of period two. With u = a·g + b·m and m = μ·m + c·g, the error on a quadratic
    follows z² + (x·(a + b·c) − 1 − μ)·z + μ·(1 − a·x), x = η·λ. By the criterion of Jury it is stable while
    x·(a + b·c/(1+μ)) < 2, the condition at z = −1, and a·μ·x < 1 + μ, which is the weaker one for a, b·c ≥ 0.
    """
    return direct + momentum * (intake / (1.0 + decay))


def averaging_gain(momentum: float, averaging: float) -> float:
    """Return the gain of schedule-free methods, 1 − β + β·c/(2 − c), for a share c of the newest iterate.

    The gradient is taken at y = (1 − β)·z + β·x, it moves z, and x ← (1 − c)·x + c·z (Defazio et al. 2024, arXiv
    2405.15682). At period two, x = c/(2 − c)·z, which gives the factor. With c → 0 it is the limit 2/((1 − β)·η) of
    Song et al. 2025, arXiv 2507.09846.
    """
    return 1.0 - momentum + momentum * averaging / (2.0 - averaging)


def stability_limit(lr: float, decoupled_weight_decay: float = 0.0) -> float:
    """Return the limit of a stable λ_max(Ĥ): 2/η, minus γ for decoupled weight decay; infinite at η = 0.

    >>> stability_limit(0.01)
    200.0
    >>> stability_limit(0.001, decoupled_weight_decay=0.1)
    1999.9
    """
    return 2.0 / lr - decoupled_weight_decay if lr > 0 else float("inf")


@dataclass(frozen=True, kw_only=True)
class GradientResponse:
    """Response of an optimizer's update to a gradient that is multiplied by the same negative number at every step."""

    direct: float
    """Factor of the gradient itself in the update."""
    momentum: float
    """Factor of m in the update."""
    intake: float
    """Share of a new gradient in m."""
    decay: float
    """Decay of m."""

    def stability_ratio(self, growth: float) -> float:
        """Return λ over the limit of a direction whose gradient grows by ρ = exp(``growth``) a step and alternates.

        With z = −ρ in the transfer function of m, the step (z − 1)·θ = −η·λ·(direct + momentum·intake·z/(z − decay))·θ
        gives η·λ. Its ratio to the value at ρ = 1, the limit, is (1+ρ)/2 for SGD and
        (ρ + 1 + β1 + β1/ρ)/(2·(1+β1)) for EMA momentum. It holds for a quadratic loss and constant D.

        >>> GradientResponse(direct=1.0, momentum=0.0, intake=1.0, decay=0.0).stability_ratio(0.0)
        1.0
        >>> round(GradientResponse(direct=0.0, momentum=1.0, intake=0.1, decay=0.9).stability_ratio(0.1), 4)
        1.0051
        """
        rho = math.exp(growth)
        at_limit, now = (
            self.direct + self.momentum * self.intake * factor / (factor + self.decay) for factor in (1.0, rho)
        )
        return (1.0 + rho) / 2.0 * at_limit / now


def stability_ratio(lambda_max: float, lr: float, decoupled_weight_decay: float = 0.0) -> float:
    """Return how close a run is to its limit, λ_max over `stability_limit`; 1 is the limit, 0 is returned at η = 0.

    ``lr`` is the largest learning rate η_max of all groups, because λ_max belongs to the operator diag(η)·Ĥ/η_max, in
    which each coordinate has the rate of its own group. The ratio is therefore the largest eigenvalue of diag(η)·Ĥ
    divided by 2, and does not depend on which rate is called η.

    >>> stability_ratio(150.0, 0.01)
    0.75
    >>> stability_ratio(150.0, 0.0)
    0.0
    """
    return lambda_max / stability_limit(lr, decoupled_weight_decay)
