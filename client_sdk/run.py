"""One training run: the boundary between training and everything that records, measures and sends.

After `init` no call of a `Run` raises into training, blocks it, or waits for a device or the server. The first
occurrence of each cause of trouble is logged as a warning; all are counted.
"""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

import msgspec

from client_sdk.config import Settings
from client_sdk.delivery import Delivery
from client_sdk.environment import describe as describe_environment
from client_sdk.errors import ConfigurationError
from client_sdk.exit_status import exception_in_flight, fails_now, observe_exit
from client_sdk.inbox import AlertInbox, Callback
from client_sdk.instrument_set import InstrumentSet
from client_sdk.late_metrics import LateMetrics
from client_sdk.measurement import HostCopy, Instrument, Pending
from client_sdk.metrics import BadValueError, MetricReader, as_step
from client_sdk.protocol import MAX_FRAME_BYTES, MAX_LAYOUTS, MAX_STEP, PROTOCOL_VERSION, Alert, Hello, Layout, encode
from client_sdk.recorder import Listener, Recorder, Staged
from client_sdk.run_status import State, Status
from client_sdk.warner import Warner

_NO_PARTS: Final[list[tuple[int, Pending]]] = []
_alive: Final[weakref.WeakSet[Run]] = weakref.WeakSet()
"""Runs that a forked child must abandon, because they belong to the process that created them."""


class Attachment:
    """An instrument that is attached to a run until `remove` is called."""

    def __init__(self, run: Run, instrument: Instrument, layout: Layout) -> None:
        self._run = run
        self._instrument = instrument
        self.layout = layout
        """Numbered layout of all instruments of the run together."""

    def remove(self) -> None:
        """Stop measuring. May be called again, and after `finish`."""
        self._run.detach(self._instrument)


class Run:
    """One training run, created by `init`. The training thread may call every method at any time."""

    def __init__(self, settings: Settings) -> None:
        """Begin the run and return at once; a thread connects to the server in the background.

        Never raises for a missing disk or server. Rank 0 of a distributed training joins the run now, every other rank
        when it logs for the first time.
        """
        self.settings = settings
        self.id = settings.run_id or uuid.uuid4().hex
        self.warner = Warner()
        """Warnings of this run; instruments report here what they keep away from training."""
        self.inbox = AlertInbox(self.warner, began_at=time.time())
        """Alerts of this run on their way to callbacks."""
        self._waiting_alerts = self.inbox.waiting
        self._reader = MetricReader(self.warner)
        self._state: State = "running"
        self._error_before = exception_in_flight()
        self._is_open = False
        self._is_forked = False
        self._dropped = 0
        self._last_step = -1
        self._last_scalars: Mapping[str, float] = {}  # of the last record of the training
        self._last_deferred: tuple[str, ...] = ()
        self._late_metrics = LateMetrics(self.warner)
        self._last_time: float | None = None
        self._added: dict[str, float] = {}  # scalars for the next record
        self._listeners: tuple[Listener, ...] = ()
        self._instrument_set: InstrumentSet | None = None
        self._hello = _first_hello(settings, self.id)
        self._delivery: Delivery | None = None
        self._recorder: Recorder | None = None  # that of the delivery, for `log`
        _alive.add(self)
        if settings.mode != "disabled":
            observe_exit()
        if settings.mode != "disabled" and settings.rank == 0:
            self._open()

    # -- called by the user --

    def log(
        self, metrics: Mapping[str, Any], step: int | None = None, closure: Callable[[], Any] | None = None
    ) -> None:
        """Record ``metrics`` (numbers, or tensors of one element on any device) at ``step`` (default: the last + 1).

        ``closure`` returns the loss of a batch, for curvature at the present parameters. Never raises and never waits.
        """
        # One straight function without helpers: between two steps of training its code is in no cache, and each further
        # function costs microseconds.
        try:
            if not self._is_open and not self._join():
                return
            recorder = self._recorder
            assert recorder is not None
            if self._waiting_alerts:
                self._call_callbacks()
            moment = time.perf_counter()
            if step is None:
                step = self._last_step + 1
            if type(step) is not int or not 0 <= step <= MAX_STEP:
                step = as_step(step)
            if type(metrics) is not dict and not isinstance(metrics, Mapping):
                self.warner.warn("bad_metrics", f"log() got {type(metrics).__name__}; expected a dictionary")
                metrics = {}
            now = time.time()
            scalars, deferred = self._reader.read(metrics)
            instrument_set = self._instrument_set
            parts = _NO_PARTS
            names = tuple(deferred)
            is_late = step < self._last_step and self._is_late(step, scalars, names)
            if self._added and not is_late:
                added, self._added = self._added, {}
                scalars = {**added, **scalars}
            if instrument_set is not None and not is_late:
                try:
                    parts = instrument_set.measure(step, metrics, closure)
                except Exception as error:
                    self.warner.caught("measure", "measuring", error)
            if not is_late:
                self._last_scalars, self._last_deferred = scalars, names
            if step != self._last_step and not is_late:
                if step > self._last_step and self._last_time is not None and "step_time" not in scalars:
                    scalars["step_time"] = (moment - self._last_time) / (step - self._last_step)
                self._last_step, self._last_time = step, moment
            copy = _copy_to_host(list(deferred.values())) if deferred else None
            recorder.stage(Staged(step, now, scalars, names, copy, instrument_set, parts))
        except BadValueError as error:
            self._dropped += 1
            self.warner.warn("bad_step", f"step is {error}; the record is dropped. Use 0 ≤ step < 2**63")
        except Exception as error:
            self._dropped += 1
            self.warner.caught("log", "log()", error)

    def on_alert(self, callback: Callback) -> None:
        """Call ``callback`` when an alert of the run opens, escalates or is resolved (see `TrainingAlert.change`).

        Callbacks run on the training thread, inside the next `log`. Each change is reported once, even after a lost
        connection, on every rank that logs. An exception of a callback is reported and does not stop training. Training
        waits for callbacks; one that takes more than a second is reported.
        """
        if not callable(callback):
            self.warner.warn("bad_callback", f"on_alert got {callback!r:.80}, which is not callable; it is ignored")
            return
        self.inbox.add(callback)

    def off_alert(self, callback: Callback) -> None:
        """Stop calling ``callback``. Warns if it was not registered."""
        if not self.inbox.remove(callback):
            self.warner.warn("bad_callback", f"off_alert got {callback!r:.80}, which was not passed to on_alert")

    @property
    def open_alerts(self) -> tuple[Alert, ...]:
        """Open alerts according to the latest messages of the server, each with its latest forecast."""
        return self.inbox.open

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything logged so far is acknowledged. Returns False after ``timeout`` seconds, and offline."""
        if self._delivery is None:
            return True
        if self._is_forked:
            return False
        try:
            self._settle()
            return self._delivery.flush(timeout)
        except Exception as error:
            self.warner.caught("flush", "flush()", error)
            return False

    def finish(self, timeout: float = 30.0, state: Literal["finished", "crashed"] | None = None) -> None:
        """Finish the run and send the remaining records for at most ``timeout`` seconds.

        ``state`` None means "crashed" while an exception passes through (in a ``finally`` or ``except`` block; not for
        KeyboardInterrupt or an exception that was there before the run), otherwise "finished". Unsent records stay in
        the spool for the next `init` or `python -m client_sdk sync`. May be called again.
        """
        if not self.active:
            return
        if state not in {None, "finished", "crashed"}:
            self.warner.warn("bad_state", f'finish() got state={state!r:.80}; expected "finished" or "crashed"')
            state = None
        if state is None:
            state = "crashed" if fails_now(self._error_before) else "finished"
        self._state = state
        self._is_open = False
        if self._delivery is None:
            return
        try:
            self._settle()
            self._delivery.finish(timeout, state)
        except Exception as error:
            self.warner.caught("finish", "finish()", error)

    def status(self) -> Status:
        """Return the counts and the connection state of the run."""
        delivery = self._delivery
        return Status(
            run_id=self.id,
            mode=self.settings.mode,
            state=self._state,
            logged=0 if delivery is None else delivery.logged,
            acknowledged=0 if delivery is None else delivery.acknowledged,
            thinned=0 if delivery is None else delivery.thinned,
            queued_bytes=0 if delivery is None else delivery.queued_bytes,
            dropped=self._dropped + (0 if delivery is None else delivery.dropped),
            connected=delivery is not None and delivery.connected,
            last_error=self.warner.last_error,
            callback_seconds=self.inbox.callback_seconds,
            warnings=dict(self.warner.counts),
            watch=tuple(status for one in self.instruments if (status := one.status) is not None),
        )

    # -- called by instruments --

    @property
    def active(self) -> bool:
        """Whether the run is not finished, and was created by this process."""
        return self._state == "running" and not self._is_forked

    @property
    def disabled(self) -> bool:
        """Whether every call does nothing, because the mode is "disabled"."""
        return self.settings.mode == "disabled"

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """Attached instruments, in the order in which they were attached."""
        return () if self._instrument_set is None else self._instrument_set.instruments

    @property
    def instrument_count(self) -> int:
        """Number of attached instruments."""
        return 0 if self._instrument_set is None else len(self._instrument_set.instruments)

    def attach(self, instrument: Instrument) -> Attachment:
        """Measure with ``instrument`` from the next `log` on, combined with the instruments that are already attached.

        Raises `ConfigurationError` if the combined layout cannot be sent.
        """
        self._check_room()
        others = () if self._instrument_set is None else self._instrument_set.instruments
        instrument_set = self._install((*others, instrument))
        return Attachment(self, instrument, instrument_set.layout)

    def detach(self, instrument: Instrument) -> None:
        """Stop measuring with ``instrument``; does nothing if it is not attached."""
        if self._instrument_set is None:
            return
        instrument.settle()
        others = tuple(other for other in self._instrument_set.instruments if other is not instrument)
        if not others:
            self._instrument_set = None
        elif len(others) < len(self._instrument_set.instruments):
            try:
                self._install(others)
            except ConfigurationError as error:
                self._instrument_set = None
                self.warner.warn("layouts", f"nothing is measured any more after the removal of a watch: {error}")

    def renew_layout(self) -> None:
        """Give the attached instruments a new common layout, as that of one of them has changed.

        Records that were logged before keep theirs. Raises `ConfigurationError` if there are too many layouts, or if
        the new one cannot be sent.
        """
        if self._instrument_set is not None:
            self._check_room()
            self._install(self._instrument_set.instruments)

    def add_scalars(self, scalars: Mapping[str, float]) -> None:
        """Add scalars of the SDK to the next record; a later value of one takes the place of the earlier."""
        self._added.update(scalars)

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with all scalars of each record once they are on the host, from any thread."""
        self._listeners = (*self._listeners, listener)
        if self._recorder is not None:
            self._recorder.listeners = self._listeners

    def stop_listening(self, listener: Listener) -> None:
        """Stop calling ``listener``."""
        self._listeners = tuple(one for one in self._listeners if one != listener)
        if self._recorder is not None:
            self._recorder.listeners = self._listeners

    def write_ready(self) -> None:
        """Write the records that waited for a step and have everything now, unless another thread is about to."""
        if self._recorder is not None:
            self._recorder.drain_if_free()

    # -- internal --

    def _check_room(self) -> None:
        # Each attachment may need another layout when it is removed.
        if 2 * (len(self._hello.layouts) + 1) > MAX_LAYOUTS:
            raise ConfigurationError(
                f"watch() was called more than {MAX_LAYOUTS // 2} times on one run, or its parameters changed as often"
            )

    def _settle(self) -> None:
        if self._instrument_set is not None:
            self._instrument_set.settle()

    def _open(self) -> None:
        self._delivery = Delivery(self.settings, self._hello, self._reader, self.warner, on_alert=self.inbox.receive)
        self._recorder = self._delivery.recorder
        self._recorder.listeners = self._listeners
        self._is_open = True

    def _join(self) -> bool:
        """Open the run at the first `log` of a rank other than 0. Returns False if the call is to be ignored."""
        if self.disabled:
            return False
        if self._is_forked:
            self._dropped += 1
            self.warner.warn("forked", "log() in a forked process is ignored; call client_sdk.init() there")
            return False
        if self._state != "running":
            self._dropped += 1
            self.warner.warn("finished", "log() after finish() is ignored; call client_sdk.init() for another run")
            return False
        self._open()
        return True

    def _install(self, instruments: tuple[Instrument, ...]) -> InstrumentSet:
        """Measure with these instruments under a new layout, which the server receives before its first record.

        Raises `ConfigurationError` if the layouts of the run no longer fit into a frame.
        """
        instrument_set = InstrumentSet(instruments, len(self._hello.layouts))
        hello = msgspec.structs.replace(
            self._hello,
            layouts=(*self._hello.layouts, instrument_set.layout),
            environment=describe_environment(os.environ),  # by now the training has initialised its GPUs
        )
        if len(encode(hello)) > MAX_FRAME_BYTES:
            raise ConfigurationError(
                f"the {len(hello.layouts)} layouts of the run take more than a frame of {MAX_FRAME_BYTES} bytes: use "
                "coarser groups of layers"
            )
        self._hello = hello
        if self._delivery is not None:
            self._delivery.update_hello(self._hello)
        self._instrument_set = instrument_set
        return instrument_set

    def _is_late(self, step: int, scalars: Mapping[str, float], deferred: tuple[str, ...]) -> bool:
        """Return whether a record below the last step is late, which means that training itself did not go back."""
        instrument_set = self._instrument_set
        return self._late_metrics.is_late(
            step,
            (*scalars, *deferred),
            self._last_step,
            {*self._last_scalars, *self._last_deferred},
            has_stepped=instrument_set is not None and instrument_set.has_stepped,
        )

    def _call_callbacks(self) -> None:
        seconds = self.inbox.call_callbacks()
        if self._last_time is not None:
            self._last_time += seconds  # the time of a callback, such as saving a checkpoint, is not part of the step

    def abandon(self) -> None:
        """Release the parent's connection in a forked child, without touching anything that the parent still uses."""
        self._is_open, self._is_forked = False, True
        if self._delivery is not None:
            self._delivery.abandon()


def _abandon_in_child() -> None:
    for run in tuple(_alive):
        run.abandon()


os.register_at_fork(after_in_child=_abandon_in_child)


def _first_hello(settings: Settings, run_id: str) -> Hello:
    return Hello(
        version=PROTOCOL_VERSION,
        run_id=run_id,
        writer=uuid.uuid4().hex,
        project=settings.project,
        name=settings.name,
        rank=settings.rank,
        config=settings.config,
        tags=settings.tags,
        started_at=time.time(),
        sdk=f"python/{_sdk_version()}",
        loss=msgspec.UNSET if settings.loss is None else settings.loss,
        environment=describe_environment(os.environ),
    )


def _copy_to_host(tensors: list[Any]) -> HostCopy:
    from client_sdk.host import ScalarCopy  # imports torch, which the user's tensors have imported already

    return ScalarCopy(tensors)


def _sdk_version() -> str:
    try:
        return version("spikewatch-client")
    except PackageNotFoundError:
        return "0"
