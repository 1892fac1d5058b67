"""The limit that the SDK states for each optimizer, against the one at which the optimizer diverges."""

from __future__ import annotations

from concurrent.futures import Executor

from benchmarks.reproduce.figure import BLUE, Mark, Panel, svg
from benchmarks.reproduce.finding import Check, Finding
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.optimizers import kind_of, stability_limit
from tests.support.frozen_optimizers import OPTIMIZERS, frozen, growth, random_hessian

STEPS = 600
CLOSE = 1e-3  # relative width at which the search ends


def search(name: str) -> float:
    """Return the stability ratio, by the SDK's operator, at which an optimizer begins to diverge on a quadratic."""
    low, high = 0.8, 1.25
    rates = [_rate(name, low), _rate(name, high)]
    assert rates[0] < 1 < rates[1], f"{name} has another limit"
    while high / low > 1 + CLOSE:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _rate(name, middle) < 1 else (low, middle)
    return float((low * high) ** 0.5)


def _rate(name: str, ratio: float) -> float:
    subject = frozen(OPTIMIZERS[name])
    preconditioner = Preconditioner.read(subject.optimizer, kind_of(subject.optimizer))
    assert preconditioner is not None
    limit = stability_limit(float(preconditioner.lr))
    return growth(
        subject, random_hessian(preconditioner.diagonal, ratio * limit, penalty=preconditioner.penalty), STEPS
    )


def measure(pool: Executor, seeds: int) -> Finding:
    """Return the finding; the optimizers are searched once each."""
    found = dict(zip(OPTIMIZERS, pool.map(search, OPTIMIZERS), strict=True))
    furthest = max(found.values(), key=lambda ratio: abs(ratio - 1))
    panel = Panel(
        title="stability ratio at which divergence begins", limits=[1.0],
        x_label="optimizer, in the order of the table",
        marks=[
            Mark(x=range(1, len(found) + 1), y=list(found.values()), kind="dots", colour=BLUE),
            Mark(x=[1, 1], y=[0.97, 1.03], kind="dots", colour="none"),
        ],
    )  # fmt: skip
    return Finding(
        name="known-limits",
        title="The limit of every optimizer that has one",
        paper="The limit of an optimizer with a frozen preconditioner follows from the response of its update to a "
        "gradient of period two: SGD 2/η, heavy ball (2+2μ)/η, Nesterov (2+2μ)/((1+2μ)η) (Cohen et al. 2021, arXiv "
        "2103.00065), RMSprop, Adam and others with their preconditioner (Cohen et al. 2022). For NAdam, RAdam, "
        "Adamax, Adadelta and Adafactor the formulas are ours; docs/explanation/science.md has them.",
        method="Each optimizer on a random quadratic of 17 dimensions with a v that does not move. H is scaled by "
        "the SDK's own operator to a stability ratio, and the ratio at which the distance begins to grow is found "
        f"by halving, to {CLOSE:.1%}.",
        header=("optimizer", "diverges from a ratio of"),
        rows=[[name, f"{ratio:.4f}"] for name, ratio in found.items()],
        checks=[
            Check(
                claim="every optimizer diverges from a ratio of 1 on, to 1 %",
                found=f"the furthest is {furthest:.4f}",
                passed=abs(furthest - 1) < 0.01,
            )
        ],
        figure=svg([[panel]], "Stability ratio at which each optimizer diverges"),
        caption="One dot for each optimizer; the line is the limit.",
        limits=[
            "Lion, Muon, SOAP, Shampoo, Rprop and Adafactor with relative steps have no known limit, and none is "
            "stated. Schedule-free methods and Prodigy are tested 2 % below and above theirs in "
            "`tests/client_sdk/optimizers/test_stability_limits.py`.",
            "Update clipping of Adafactor is not part of the limit: the gradients here are far too small to be "
            "clipped.",
        ],
    )  # fmt: skip
