"""Mapping of common names of metrics to the names that the detectors use. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection

_NOISE = frozenset(
    {"train", "training", "step", "batch", "iter", "total", "optimizer", "optim", "adam", "adamw", "sgd"}
)
_KNOWN: dict[str, frozenset[frozenset[str]]] = {
    "loss": frozenset({frozenset({"loss"})}),
    "lr": frozenset({frozenset({"lr"}), frozenset({"learning", "rate"}), frozenset({"learningrate"})}),
    "grad_norm": frozenset(
        {frozenset({"grad", "norm"}), frozenset({"gradient", "norm"}), frozenset({"gnorm"}), frozenset({"gradnorm"})}
    ),
}


def guess(names: Collection[str]) -> dict[str, str]:
    """Return the known names of metrics, keyed by their present names, for known names that are not present.

    "train/loss" and "Loss/train" are the loss, "val/loss" is not. Among several candidates the shortest is chosen:
    train/loss before train/loss_step.

    >>> guess(["train/loss", "train/loss_step", "val/loss", "lr"])
    {'train/loss': 'loss'}
    """
    found = {}
    for known, forms in _KNOWN.items():
        if known in names:
            continue
        candidates = [name for name in names if _words(name) - _NOISE in forms]
        plainest = sorted(candidates, key=lambda name: (len(_words(name)), len(name), name))
        if plainest:
            found[plainest[0]] = known
    return found


def _words(name: str) -> frozenset[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", name)
    return frozenset(word for word in re.split(r"[^a-z]+", apart.lower()) if word)
