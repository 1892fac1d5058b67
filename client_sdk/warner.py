"""Warnings of the SDK: the first occurrence of each cause is logged, every occurrence is counted.

Warnings go through `logging`, never through `warnings`: a filter that turns warnings into errors would raise into
training.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("client_sdk")


class Warner:
    """Warnings of one run. May be called from any thread; the worst race logs a warning twice."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        """Number of occurrences of each cause."""
        self.last_error: str | None = None
        """Message of the latest occurrence."""

    def warn(self, cause: str, message: str) -> None:
        """Count ``cause`` and log ``message`` the first time. The message says what to do."""
        seen = self.counts.get(cause, 0)
        self.counts[cause] = seen + 1
        self.last_error = message
        if not seen:
            logger.warning("spikewatch: %s", message, extra={"action": cause})

    def note(self, cause: str, message: str) -> None:
        """Count something that also happens in a healthy run, such as a restart of the server, without a warning."""
        self.counts[cause] = self.counts.get(cause, 0) + 1
        self.last_error = message
        logger.debug("spikewatch: %s", message, extra={"action": cause})

    def caught(self, cause: str, doing: str, error: BaseException) -> None:
        """Count an exception that was kept away from training; log it with its traceback the first time."""
        seen = self.counts.get(cause, 0)
        self.counts[cause] = seen + 1
        self.last_error = f"{doing}: {type(error).__name__}: {error}"
        if not seen:
            logger.warning(
                "spikewatch: %s raised %s: %s; training goes on",
                doing,
                type(error).__name__,
                error,
                exc_info=error,
                extra={"action": cause},
            )
