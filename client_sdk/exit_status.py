"""Whether the program fails: exceptions in flight, and `sys.exit` with a status that reports a failure.

Python keeps no trace of a `SystemExit` that ends the process, so `sys.exit` is wrapped. The wrapper calls the original
and raises what that raises; it only attaches a mark to the exception. If the mark is released while Python code runs on
the thread, somebody caught the exception; otherwise it reached the interpreter and ends the process.

Trade-off: a `SystemExit` that is raised without `sys.exit` is not seen, unless it passes through `Run.finish`.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any, Final

MARK: Final = "_spikewatch_mark"
"""Name of the attribute of a `SystemExit` that holds its mark."""
NOT_CRASHES: Final = (KeyboardInterrupt, StopIteration, StopAsyncIteration, GeneratorExit)
"""Exceptions that end a training without being a failure of it."""


class _Exit:
    """The last call of `sys.exit` on the main thread that reported a failure and that nothing has caught."""

    number = 0
    failing: int | None = None
    """Number of that call, or None."""


class _Mark:
    """Attribute of a `SystemExit` that detects where the exception is released."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        if _Exit.failing == self._number and sys._getframe().f_back is not None:
            _Exit.failing = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()  # a pickled exception needs no import of this package


def is_failure(status: object) -> bool:
    """Return whether a status of `sys.exit` reports a failure: a number other than 0, or a message."""
    return status is not None and status != 0


def exception_in_flight() -> int | None:
    """Return the identity of the exception that is being handled by the calling thread, or None."""
    error = sys.exc_info()[1]
    return None if error is None else id(error)


def fails_now(known: int | None) -> bool:
    """Return whether an exception that is a failure is in flight, as in a ``finally`` or ``except`` block.

    ``known`` is the identity of an exception that does not count, because it was in flight before the run.
    """
    error = sys.exc_info()[1]
    if error is None or id(error) == known:
        return False
    if isinstance(error, SystemExit):
        return is_failure(error.code)
    return not isinstance(error, NOT_CRASHES)


def failed_at_exit() -> bool:
    """Return whether an uncaught exception or a failing `sys.exit` ends the program. Called at exit.

    An interruption by Ctrl-C does not fail, and neither does an exception of an interactive session.
    """
    if hasattr(sys, "ps1"):
        return False
    error = getattr(sys, "last_type", None)
    return _Exit.failing is not None or (error is not None and not issubclass(error, KeyboardInterrupt))


def observe_exit() -> None:
    """Wrap `sys.exit`, once."""
    original: Any = sys.exit
    if hasattr(original, "_is_observed_by_spikewatch"):
        return

    @functools.wraps(original)
    def exit_observed(*arguments: Any, **options: Any) -> Any:
        try:
            return original(*arguments, **options)
        except SystemExit as error:
            _note(error)
            raise

    exit_observed._is_observed_by_spikewatch = True  # type: ignore[attr-defined]
    sys.exit = exit_observed


def _note(error: SystemExit) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # ends that thread only
    if not is_failure(error.code):
        _Exit.failing = None
        return
    _Exit.number += 1
    _Exit.failing = _Exit.number
    setattr(error, MARK, _Mark(_Exit.number))
