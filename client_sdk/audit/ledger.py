"""The ledger of a run's audit: how often each check ran, and what it found, once for each check."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from client_sdk.audit.fault import Fault
from client_sdk.protocol import Audit, AuditFinding

REPORTED_EVERY: Final = 16  # records after which the counts are reported again
REPORTED_AFTER: Final = 5.0  # seconds after which they are reported in any case
MAX_LAYERS: Final = 8  # names of layers in a finding


class Ledger:
    """Counts and findings of all watchers of a run. May be called from any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._runs: dict[str, int] = {}
        self._reported: dict[str, int] = {}
        self._found: dict[str, AuditFinding] = {}
        self._news: list[AuditFinding] = []
        self._records = 0
        self._due_at_record = 1
        self._due_at = 0.0

    @property
    def findings(self) -> tuple[AuditFinding, ...]:
        """Everything that was found, in the order in which it was."""
        return tuple(self._found.values())

    def has_found(self, check: str) -> bool:
        """Return whether a check has found something, so that it need not run any more."""
        return check in self._found

    def ran(self, *checks: str, times: int = 1) -> None:
        """Count that checks ran."""
        with self._lock:
            for check in checks:
                self._runs[check] = self._runs.get(check, 0) + times

    def found(self, fault: Fault, step: int | None = None) -> None:
        """Take in a fault. Only the first one of a check is kept.

        ``step`` is that of the run; None if it is that of the next record.
        """
        with self._lock:
            if fault.check in self._found:
                return
            finding = AuditFinding(
                check=fault.check,
                message=fault.message,
                layers=fault.layers[:MAX_LAYERS],
                evidence=dict(fault.evidence),
                step=step,
            )
            self._found[fault.check] = finding
            self._news.append(finding)

    def report(self) -> Audit | None:
        """Return what the next record is to carry: new findings at once, counts now and then; None for nothing.

        Counts are reported at the first, second, fourth … record and then at every `REPORTED_EVERY`-th.
        """
        with self._lock:
            self._records += 1
            now = self._monotonic()
            is_due = self._records >= self._due_at_record or now >= self._due_at
            if not self._news and not is_due:
                return None
            runs = {check: count for check, count in self._runs.items() if count != self._reported.get(check)}
            if not runs and not self._news:
                return None
            if is_due:
                self._due_at_record = self._records + min(self._records, REPORTED_EVERY)
                self._due_at = now + REPORTED_AFTER
            self._reported = dict(self._runs)
            news, self._news = tuple(self._news), []
        return Audit(runs=runs, findings=news)
