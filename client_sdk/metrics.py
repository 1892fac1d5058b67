"""Metrics that the user logs, as float64: numbers, NumPy scalars and tensors of one element.

Owns the rules for names and values, and decides which values must be copied from a device later. Does not import torch:
a tensor is recognised by its attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from client_sdk.protocol import MAX_NAME_CHARS, MAX_STEP
from client_sdk.warner import Warner

MAX_KNOWN: Final = 10_000  # valid names that are remembered
_NOTHING: Final[dict[str, Any]] = {}  # never modified


class BadValueError(ValueError):
    """A logged value is not a number; the text describes the value."""


class MetricReader:
    """Reader of the metrics that one run logs, which checks each name once. Called from any thread."""

    def __init__(self, warner: Warner) -> None:
        self._warner = warner
        self._known: set[str] = set()

    def read(self, metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Split ``metrics`` into host floats and device tensors.

        Invalid values are left out, counted and reported by a warning. The names of floats are not checked here but by
        `checked`, which may run on another thread.
        """
        # Nearly every call has a dictionary of floats only. With cold caches, `map` and a set would take 50 % longer.
        if type(metrics) is dict:
            for value in metrics.values():
                if type(value) is not float:
                    break
            else:
                return metrics.copy(), _NOTHING
        scalars: dict[str, float] = {}
        deferred: dict[str, Any] = {}
        for name, value in metrics.items():
            if not self._is_good(name):
                continue
            if type(value) is float:
                scalars[name] = value
                continue
            try:
                if is_on_device(value):
                    if value.numel() != 1 or value.is_complex():
                        raise BadValueError(f"a tensor of shape {tuple(value.shape)} and type {value.dtype}")
                    deferred[name] = value.detach()
                else:
                    scalars[name] = as_float(value)
            except BadValueError as error:
                self._warner.warn(
                    "bad_metric",
                    f"the metric {name!r} is {error}; it is skipped. Log a number or a tensor of one element",
                )
        return scalars, deferred

    def checked(self, scalars: dict[str, float]) -> dict[str, float]:
        """Return the scalars with valid names; the others are counted and reported by a warning."""
        if self._known.issuperset(scalars):
            return scalars
        return {name: value for name, value in scalars.items() if self._is_good(name)}

    def _is_good(self, name: object) -> bool:
        if name in self._known:
            return True
        if type(name) is not str or not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
            self._warner.warn("bad_name", _describe_name(name))
            return False
        if len(self._known) < MAX_KNOWN:
            self._known.add(name)
        return True


def as_float(value: Any) -> float:
    """Return a number, NumPy scalar, or array or CPU tensor of one element as a float.

    Raises `BadValueError` for any other value.

    >>> as_float(np.array([2.5]))
    2.5
    """
    if isinstance(value, str | bytes | bytearray) or value is None:
        raise BadValueError(f"{type(value).__name__}, not a number")
    if is_tensor(value):
        if value.numel() != 1:
            raise BadValueError(f"a tensor of shape {tuple(value.shape)}")
        value = value.detach().reshape(()).item()
    elif isinstance(value, np.ndarray):
        if value.size != 1:
            raise BadValueError(f"an array of shape {value.shape}")
        value = value.reshape(()).item()
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadValueError(f"{type(value).__name__}, not a real number ({error})") from error


def as_step(value: Any) -> int:
    """Return ``value`` as a step number, 0 ≤ step < 2**63. Raises `BadValueError` if it is not one."""
    if type(value) is not int:
        if is_on_device(value):
            raise BadValueError("a tensor on a device; pass a number, as reading it would wait for the device")
        number = as_float(value)
        step = int(value) if number.is_integer() else None
        if step is None:
            raise BadValueError(repr(number))
        value = step
    if not 0 <= value <= MAX_STEP:
        raise BadValueError(f"{value if abs(value) < 2**80 else 'a huge number'}")
    return int(value)


def is_tensor(value: Any) -> bool:
    """Return whether ``value`` is a torch tensor, judging by its attributes."""
    return hasattr(value, "detach") and hasattr(value, "numel") and hasattr(value, "device")


def is_on_device(value: Any) -> bool:
    """Return whether ``value`` is a torch tensor outside host memory."""
    return is_tensor(value) and value.device.type != "cpu"


def _describe_name(name: object) -> str:
    if isinstance(name, str) and len(name) > MAX_NAME_CHARS:
        return (
            f"the metric name {name[:32] + '…'!r} has {len(name)} characters; it is skipped. "
            f"Use at most {MAX_NAME_CHARS}"
        )
    return f"the metric name {name!r:.80} is not 1 to {MAX_NAME_CHARS} printable characters; it is skipped"
