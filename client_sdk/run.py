"""One training run: what `log` is given, on its way into the spool.

Owns the boundary with training: after `init` nothing here raises, blocks, or waits for a device or the server. Each
cause of trouble is warned of once and counted. The only module of the SDK that builds spool and sender.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

import msgspec

from client_sdk.config import Settings
from client_sdk.errors import ConfigurationError, SpoolError
from client_sdk.inbox import AlertInbox, Callback
from client_sdk.measurement import HostCopy, Instrument, Pending
from client_sdk.metrics import BadValueError, MetricReader, as_step
from client_sdk.panel import Panel
from client_sdk.progress import REDRAW, Progress
from client_sdk.protocol import MAX_LAYOUTS, MAX_STEP, PROTOCOL_VERSION, Alert, Finish, Hello, Layout
from client_sdk.recorder import Recorder, Staged
from client_sdk.recovery import Recovery, deliver_elsewhere, say_what_is_left
from client_sdk.run_status import State, Status
from client_sdk.sender import Sender
from client_sdk.spool.spool import Spool
from client_sdk.warner import Warner

_NO_PARTS: Final[list[tuple[int, Pending]]] = []
_alive: Final[weakref.WeakSet[Run]] = weakref.WeakSet()
"""What a forked child must let go of: runs belong to the process that made them."""


class Attachment:
    """An instrument on a run. `remove` takes it off."""

    def __init__(self, run: Run, instrument: Instrument, layout: Layout) -> None:
        self._run = run
        self._instrument = instrument
        self.layout = layout
        """Numbered; of all instruments of the run together."""

    def remove(self) -> None:
        """Stop measuring. May be called again, and after `finish`."""
        self._run.detach(self._instrument)


class Run:
    """One training run. Made by `init`; every method may be called from the training thread at any time."""

    def __init__(self, settings: Settings) -> None:
        """Returns at once; the sender thread connects meanwhile. Never raises for a missing disk or server.

        Rank 0 of a distributed training joins the run now, the others when they log."""
        self.settings = settings
        self.id = settings.run_id or uuid.uuid4().hex
        self._warner = Warner()
        self._reader = MetricReader(self._warner)
        self._state: State = "running"
        self._is_open = False
        self._is_forked = False
        self._panel: Panel | None = None
        self._layout_count = 0
        self._inbox = AlertInbox(self._warner, began_at=time.time())
        self._alerts = self._inbox.waiting
        self._dropped = 0
        self._last_step = -1
        self._last_time: float | None = None
        self._spool: Spool | None = None
        self._recorder: Recorder | None = None
        self._sender: Sender | None = None
        self._hello = Hello(
            version=PROTOCOL_VERSION,
            run_id=self.id,
            writer=uuid.uuid4().hex,
            project=settings.project,
            name=settings.name,
            rank=settings.rank,
            config=settings.config,
            tags=settings.tags,
            started_at=time.time(),
            sdk=f"python/{_sdk_version()}",
        )
        _alive.add(self)
        if settings.mode != "disabled" and settings.rank == 0:
            self._open()

    # -- what the user calls --

    def log(
        self, metrics: Mapping[str, Any], step: int | None = None, closure: Callable[[], Any] | None = None
    ) -> None:
        """Record ``metrics`` (numbers, or tensors of one element on any device) at ``step`` (default: the last + 1).

        ``closure`` returns the loss of a batch, for curvature at the present parameters. Never raises or waits.
        """
        # One straight line without helpers: between two steps of training the caches hold something else, and each
        # function more costs microseconds.
        try:
            if not self._is_open and not self._open_late():
                return
            recorder = self._recorder
            assert recorder is not None
            if self._alerts:
                self._tell_alerts()
            moment = time.perf_counter()
            if step is None:
                step = self._last_step + 1
            if type(step) is not int or not 0 <= step <= MAX_STEP:
                step = as_step(step)
            if type(metrics) is not dict and not isinstance(metrics, Mapping):
                self._warner.warn("bad_metrics", f"log() got {type(metrics).__name__}; expected a dictionary")
                metrics = {}
            now = time.time()
            scalars, deferred = self._reader.read(metrics)
            panel = self._panel
            parts = _NO_PARTS
            if panel is not None:
                try:
                    parts = panel.measure(step, metrics, closure)
                except Exception as error:
                    self._warner.caught("measure", "measuring", error)
            if step != self._last_step:
                if step > self._last_step and self._last_time is not None and "step_time" not in scalars:
                    scalars["step_time"] = (moment - self._last_time) / (step - self._last_step)
                self._last_step, self._last_time = step, moment
            copy = _copy_to_host(list(deferred.values())) if deferred else None
            recorder.stage(Staged(step, now, scalars, tuple(deferred), copy, panel, parts))
        except BadValueError as error:
            self._dropped += 1
            self._warner.warn("bad_step", f"step is {error}; the record is dropped. Use 0 ≤ step < 2**63")
        except Exception as error:
            self._dropped += 1
            self._warner.caught("log", "log()", error)

    def on_alert(self, callback: Callback) -> None:
        """Call ``callback`` on the training thread, inside the next `log`, when an alert of the run opens, escalates or
        is resolved: `TrainingAlert.change` says which, and each comes once, also after a lost connection.

        Every rank that logs hears of every alert of the run, each in a `log` of its own. What the callback raises is
        reported, and training goes on; training waits for it, and is told where that takes more than a second.
        """
        if not callable(callback):
            self._warner.warn("bad_callback", f"on_alert got {callback!r:.80}, which cannot be called; it is ignored")
            return
        self._inbox.add(callback)

    def off_alert(self, callback: Callback) -> None:
        """Take back `on_alert`; a callback that was not there is mentioned once."""
        if not self._inbox.remove(callback):
            self._warner.warn("bad_callback", f"off_alert got {callback!r:.80}, which on_alert never did")

    @property
    def open_alerts(self) -> tuple[Alert, ...]:
        """Those that are open as far as this process knows, with the date that was told last."""
        return self._inbox.open

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything logged so far is acknowledged. False when that took longer than ``timeout`` seconds,
        and offline."""
        if self._spool is None or self._recorder is None:
            return True
        if self._is_forked:
            return False
        try:
            return self._flush(self._spool, self._recorder, timeout)
        except Exception as error:
            self._warner.caught("flush", "flush()", error)
            return False

    def finish(self, timeout: float = 30.0, *, state: Literal["finished", "crashed"] = "finished") -> None:
        """Send what is left, for at most ``timeout`` seconds; the rest stays in the spool for the next `init` or
        `python -m client_sdk sync`. May be called again."""
        if self._state != "running" or self._is_forked:
            return
        try:
            self._finish(timeout, state)
        except Exception as error:
            self._warner.caught("finish", "finish()", error)

    def status(self) -> Status:
        """Where the run stands."""
        spool, recorder, sender = self._spool, self._recorder, self._sender
        dropped = (
            self._dropped + (0 if recorder is None else recorder.dropped) + (0 if sender is None else sender.refused)
        )
        return Status(
            run_id=self.id,
            mode=self.settings.mode,
            state=self._state,
            logged=0 if spool is None or recorder is None else spool.last_seq + recorder.waiting,
            acknowledged=0 if spool is None else spool.acknowledged,
            thinned=0 if spool is None else spool.thinned,
            queued_bytes=0 if spool is None else spool.queued_bytes,
            dropped=dropped,
            connected=sender is not None and sender.connected,
            last_error=self._warner.last_error,
            callback_seconds=self._inbox.callback_seconds,
            warnings=dict(self._warner.counts),
        )

    # -- what an instrument calls --

    @property
    def active(self) -> bool:
        """True until `finish`, in the process that made the run."""
        return self._state == "running" and not self._is_forked

    @property
    def disabled(self) -> bool:
        """True when every call is a no-op."""
        return self.settings.mode == "disabled"

    @property
    def instrument_count(self) -> int:
        """How many instruments are attached."""
        return 0 if self._panel is None else len(self._panel.instruments)

    @property
    def warner(self) -> Warner:
        """Where an instrument reports what it kept away from training."""
        return self._warner

    def attach(self, instrument: Instrument) -> Attachment:
        """Measure with ``instrument`` from the next `log` on; its layout is sent before. Several are combined into one.

        Raises `ConfigurationError` when the layout cannot be sent.
        """
        if 2 * (self._layout_count + 1) > MAX_LAYOUTS:  # each attachment may cost another layout when it is removed
            raise ConfigurationError(f"watch() was called more than {MAX_LAYOUTS // 2} times on one run")
        others = () if self._panel is None else self._panel.instruments
        panel = self._install([*others, instrument])
        assert panel is not None
        return Attachment(self, instrument, panel.layout)

    def detach(self, instrument: Instrument) -> None:
        """Stop measuring with ``instrument``; nothing happens when it is not attached."""
        if self._panel is not None and any(other is instrument for other in self._panel.instruments):
            self._install([other for other in self._panel.instruments if other is not instrument])

    # -- inside: the training thread --

    def _open(self) -> None:
        spool = self._spool = self._make_spool()
        recorder = self._recorder = Recorder(spool, self._reader, self._warner)
        if self.settings.mode == "online":
            recovery = Recovery(self.settings.directory, self.settings.endpoint, self._warner)
            self._sender = Sender(
                spool,
                self.settings.endpoint,
                self._warner,
                on_alert=self._inbox.deliver,
                earlier=recovery.claim(spool.hello),
            )
            self._sender.start()
            recovery.start()
        recorder.start()
        self._is_open = True

    def _open_late(self) -> bool:
        """What `log` does first when the run is not open: a rank that logs for the first time joins now. False when the
        call is to be ignored."""
        if self.disabled:
            return False
        if self._is_forked:
            self._dropped += 1
            self._warner.warn("forked", "log() in a forked process is ignored; call client_sdk.init() there")
            return False
        if self._state != "running":
            self._dropped += 1
            self._warner.warn("finished", "log() after finish() is ignored; call client_sdk.init() for another run")
            return False
        self._open()
        return True

    def _make_spool(self) -> Spool:
        try:
            return Spool.create(self.settings.directory, self._hello, disk_limit=self.settings.spool_bytes)
        except SpoolError as error:
            self._warner.warn(
                "spool",
                f"{error}. Records are kept in memory only, and lost if the process dies; "
                "pass directory=… or set SPIKEWATCH_DIR to a place that can be written",
            )
            return Spool.in_memory(self._hello)

    def _install(self, instruments: list[Instrument]) -> Panel | None:
        if not instruments:
            self._panel = None
            return None
        panel = Panel(instruments, self._layout_count)
        self._layout_count += 1
        self._hello = msgspec.structs.replace(self._hello, layouts=(*self._hello.layouts, panel.layout))
        if self._spool is not None:
            self._spool.update_hello(self._hello)
        self._panel = panel
        return panel

    def _tell_alerts(self) -> None:
        seconds = self._inbox.tell()
        if self._last_time is not None:
            self._last_time += seconds  # a checkpoint that a callback saves is no slow step

    # -- inside: the end --

    def _flush(self, spool: Spool, recorder: Recorder, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        landed = recorder.land(deadline)
        target = spool.last_seq
        if self._sender is None:
            return landed and spool.acknowledged >= target
        self._sender.wake()
        return self._sender.wait_acknowledged(target, max(0.0, deadline - time.monotonic())) and landed

    def _finish(self, timeout: float, state: Literal["finished", "crashed"]) -> None:
        self._state = state
        self._is_open = False
        spool, recorder, sender = self._spool, self._recorder, self._sender
        if spool is None or recorder is None:
            return
        deadline = time.monotonic() + timeout
        if not recorder.land(deadline):
            recorder.discard()
        recorder.stop()
        spool.finish(Finish(last_seq=spool.last_seq, state=state))
        if sender is None:
            say_what_is_left(spool, self._warner, None)
            spool.release()
            return
        sender.wake()
        delivered = self._await_delivery(sender, spool, deadline)
        stopped = sender.stop(2.0)
        if delivered:
            spool.delete()
            return
        if sender.error is not None and sender.error.code == "exiting" and spool.directory is not None:
            spool.release()
            if deliver_elsewhere(spool.directory, self.settings.endpoint, max(1.0, deadline - time.monotonic())):
                return
        why = "to a server that refuses them" if sender.rests_until(deadline) else f"within {timeout:g} s"
        say_what_is_left(spool, self._warner, why)
        if stopped:
            spool.release()

    def _await_delivery(self, sender: Sender, spool: Spool, deadline: float) -> bool:
        progress = Progress(sys.stderr, spool.queued_bytes)
        try:
            while not sender.wait_delivered(min(REDRAW, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline or not sender.running or sender.rests_until(deadline):
                    return sender.delivered
                progress.show(spool.queued_bytes, connected=sender.connected)
            return True
        finally:
            progress.close()

    def abandon(self) -> None:
        """Called in a forked child: let go of what belongs to the parent, touch nothing that it still uses."""
        self._is_open, self._is_forked = False, True
        if self._sender is not None:
            self._sender.abandon()


def _abandon_in_child() -> None:
    for run in tuple(_alive):
        run.abandon()


os.register_at_fork(after_in_child=_abandon_in_child)


def _copy_to_host(tensors: list[Any]) -> HostCopy:
    from client_sdk.host import ScalarCopy  # imports torch, which the user's tensors have imported already

    return ScalarCopy(tensors)


def _sdk_version() -> str:
    try:
        return version("spikewatch-client")
    except PackageNotFoundError:
        return "0"
