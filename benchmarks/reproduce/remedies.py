"""Fewer spikes with a lower β2 and with a larger ε, at the same seeds (Bai et al., ICML 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.reproduce.figure import AMBER, BLUE, COLOURS, Mark, Panel, svg
from benchmarks.reproduce.finding import Check, Finding
from benchmarks.reproduce.trainings import Array, tanh_net
from server.evaluation.labels import label

DEFAULT = (0.999, 1e-8)
SETTINGS = (DEFAULT, (0.99, 1e-8), (0.95, 1e-8), (0.9, 1e-8), (0.999, 1e-3), (0.999, 1e-2), (0.999, 1e-1))
"""Pairs of β2 and ε."""
STEPS = 1_200
Setting = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One training and its spikes."""

    losses: Array
    spikes: int
    height: float
    """Largest rise of the loss in a spike; 0 without one."""

    @property
    def last(self) -> float:
        """Return the median of the last 40 losses."""
        return float(np.median(self.losses[-40:]))


def train(setting: Setting, seed: int) -> Counted:
    """Train the net of 1,000 points with β2 and ε of ``setting``."""
    beta2, eps = setting
    training = tanh_net(seed, points=1_000, width=32, beta2=beta2, eps=eps)
    losses = np.array([training.step() for _ in range(STEPS)])
    events, _ = label(losses)
    return Counted(losses=losses, spikes=len(events), height=max((event.height for event in events), default=0.0))


def measure(pool: Executor, seeds: int) -> Finding:
    """Return the finding over ``seeds`` trainings of each setting."""
    jobs = list(product(SETTINGS, range(seeds)))
    runs = dict(zip(jobs, pool.map(train, *zip(*jobs, strict=True)), strict=True))
    counts = {setting: [runs[setting, seed].spikes for seed in range(seeds)] for setting in SETTINGS}
    total = {setting: sum(counted) for setting, counted in counts.items()}
    before = total[DEFAULT]
    rows = [
        [
            f"{setting[0]:g}", f"{setting[1]:g}", str(total[setting]), ", ".join(map(str, counts[setting])),
            f"{max(runs[setting, seed].height for seed in range(seeds)):.4f}",
            f"{np.median([runs[setting, seed].last for seed in range(seeds)]):.0e}",
        ]
        for setting in SETTINGS
    ]  # fmt: skip

    def fewer(setting: Setting, share: float, *, reproduces: bool = True) -> Check:
        return Check(
            claim=f"{_name(setting)}: at most {share:.0%} of the spikes",
            found=f"{total[setting]} of {before}",
            passed=total[setting] <= share * before,
            reproduces=reproduces,
        )

    def nowhere_more(settings: Sequence[Setting], *, reproduces: bool = True) -> Check:
        worse = [
            _name(setting)
            for setting in settings
            for now, then in zip(counts[setting], counts[DEFAULT], strict=True)
            if now > then
        ]
        return Check(
            claim=f"{', '.join(map(_name, settings))}: no seed has more spikes",
            found=f"{len(worse)} of {len(settings) * seeds} pairs have more",
            passed=not worse,
            reproduces=reproduces,
        )

    shown = (DEFAULT, (0.9, 1e-8), (0.999, 1e-2))
    panels = [
        [
            Panel(
                title=f"β2 = {setting[0]:g}, ε = {setting[1]:g}: loss", x_label="step", logarithmic=True,
                marks=[Mark(x=np.arange(STEPS), y=runs[setting, min(1, seeds - 1)].losses, colour=COLOURS[at])],
            )
            for at, setting in enumerate(shown)
        ],
        [
            Panel(
                title="spikes at ε = 1e-8", x_label="β2", categories=[f"{one[0]:g}" for one in SETTINGS[:4]],
                marks=[Mark(x=np.arange(4), y=[total[one] for one in SETTINGS[:4]], kind="bars", colour=BLUE)],
            ),
            Panel(
                title="spikes at β2 = 0.999", x_label="ε",
                categories=[f"{one[1]:g}" for one in (DEFAULT, *SETTINGS[4:])],
                marks=[
                    Mark(x=np.arange(4), y=[total[one] for one in (DEFAULT, *SETTINGS[4:])], kind="bars", colour=AMBER)
                ],
            ),
        ],
    ]  # fmt: skip
    middle = (0.99, 1e-8)
    return Finding(
        name="remedies",
        title="Fewer spikes with a lower β2 and with a larger ε",
        paper="The spikes come from a second moment that is too slow for the gradient, so a smaller β2 makes them "
        "rarer, and a larger ε bounds the curvature along directions whose v has decayed; ε = 0.1 removed the "
        "spikes of their fully connected net (Bai et al., ICML 2026; abstract read, the setting with ε = 0.1 quoted "
        "from a secondary source).",
        method=f"A tanh net 50-32-32-1 on 1,000 points, full batch, Adam with η = 0.01, {STEPS:,} steps. The same "
        f"{seeds} seeds, so the same data and first weights, with each setting. Spikes are those that the labels of "
        "`server.evaluation` find.",
        header=("β2", "ε", "spikes", "of each seed", "largest rise", "last loss, median"),
        rows=rows,
        checks=[
            Check(claim="the default spikes at least once a seed", found=str(before), passed=before >= seeds),
            fewer((0.99, 1e-8), 0.75, reproduces=False),
            fewer((0.95, 1e-8), 0.75),
            fewer((0.9, 1e-8), 0.1),
            fewer((0.999, 1e-3), 0.75),
            fewer((0.999, 1e-2), 0.1),
            fewer((0.999, 1e-1), 0.1),
            nowhere_more(SETTINGS[1:3], reproduces=False),
            nowhere_more(SETTINGS[3:]),
        ],
        figure=svg(panels, "Losses and numbers of spikes with several values of β2 and ε"),
        caption="Above, the same seed with the default, with β2 = 0.9 and with ε = 0.01. Below, the spikes of all "
        "seeds.",
        limits=[
            f"Not every smaller β2 has fewer spikes: β2 = 0.99 has {total[middle]}, the default {before}, and they "
            "are as tall. At β2 = 0.95 there are fewer in total, but not in every seed.",
            "A cure has a price here: see the last column. With ε = 0.1 the loss falls much more slowly, and with "
            "β2 ≤ 0.99 the run stays at the edge of stability, where the loss ripples.",
        ],
    )  # fmt: skip


def _name(setting: Setting) -> str:
    return f"β2 = {setting[0]:g}" if setting[0] != DEFAULT[0] else f"ε = {setting[1]:g}"
