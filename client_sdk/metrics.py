"""What the user logs, as float64: numbers, numpy scalars, tensors of one element.

Owns the rules for names and values and the decision which values must come from a device later. Imports no torch:
a tensor is recognised by its face.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from client_sdk.protocol import MAX_NAME_CHARS, MAX_STEP
from client_sdk.warner import Warner

MAX_KNOWN: Final = 10_000  # names remembered as good
_NOTHING: Final[dict[str, Any]] = {}  # never written to


class BadValueError(ValueError):
    """A logged value that is no number. The text says what it is."""


class MetricReader:
    """Reads what one run is given to log. A name is judged once. Called from any thread."""

    def __init__(self, warner: Warner) -> None:
        self._warner = warner
        self._known: set[str] = set()

    def read(self, metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Split ``metrics`` into host floats and device tensors. Bad values are left out, warned of and counted; the
        names of floats are left to `judged`, which may be another thread's."""
        if type(metrics) is dict:  # of floats alone, at nearly every step; `map` and a set cost cold caches half more
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
                    "bad_metric", f"metric {name!r} is {error}; it is skipped. Log a number or a tensor of one element"
                )
        return scalars, deferred

    def judged(self, scalars: dict[str, float]) -> dict[str, float]:
        """What has a good name; the rest is warned of and counted."""
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
    """A number, numpy scalar, or one-element array or CPU tensor as a float. Raises `BadValueError` for others."""
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
    """A step number, 0 ≤ step < 2**63. Raises `BadValueError`."""
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
    """True for a torch tensor, told by its face."""
    return hasattr(value, "detach") and hasattr(value, "numel") and hasattr(value, "device")


def is_on_device(value: Any) -> bool:
    """True for a torch tensor whose value is not in host memory."""
    return is_tensor(value) and value.device.type != "cpu"


def _describe_name(name: object) -> str:
    if isinstance(name, str) and len(name) > MAX_NAME_CHARS:
        return (
            f"the metric name {name[:32] + '…'!r} has {len(name)} characters; it is skipped. "
            f"Use at most {MAX_NAME_CHARS}"
        )
    return f"the metric name {name!r:.80} is not 1 to {MAX_NAME_CHARS} printable characters; it is skipped"
