"""Sends what one log gains: reads a piece, notes what is under way, sends it, and waits for more."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from client_sdk.protocol import MAX_NAME_CHARS, PROTOCOL_VERSION, Hello, Record
from server.errors import ImportFileError
from server.following.delivery import RecordsMissingError, RunDelivery
from server.following.feed_state import Checkpoint, FeedState, RunIdentity, StateFile
from server.following.log_source import Growth, LogSource, Position
from server.following.names import ScalarNames
from server.following.records import Key, grouped, is_name, records_of
from server.following.server_link import ServerLink
from server.imports.logged_run import Note
from server.imports.run_groups import SPEAKING

DEFAULT_PROJECT = "followed"
SILENT_AFTER = 60.0  # seconds without news after which the connection is closed, so that the run becomes stale
SILENT_GAPS = 3.0
"""Multiple of the longest of the last `KEPT_GAPS` pauses of the log that is no silence either."""
KEPT_GAPS = 8
MAX_RUNS = 500
"""Number of runs of one log, each of which has a connection while the log grows."""
LONGEST_SILENCE = 3_600.0  # seconds
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """Choices of the user for all logs."""

    project: str | None = None
    """Project of the runs; None for the one that the log names, or else `DEFAULT_PROJECT`."""
    renames: Mapping[str, str]
    """New names of scalars, keyed by those in the logs."""
    sdk: str
    """Name and version of this program, for the server."""


class Feed:
    """One log on its way to a server. Used from one event loop; the log is read in the threads of ``executor``."""

    def __init__(
        self,
        source: LogSource,
        state: StateFile,
        link: ServerLink,
        *,
        options: FeedOptions,
        note: Note,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._state_file = state
        self._link = link
        self._options = options
        self._note = note
        self._executor = executor
        self._clock = clock
        self._state = FeedState(path=str(source.path))
        self._deliveries: dict[str, RunDelivery] = {}
        self._names: dict[str, ScalarNames] = {}
        self._woken = asyncio.Event()
        self._last_growth = clock()
        self._gaps: deque[float] = deque(maxlen=KEPT_GAPS)

    @property
    def waits(self) -> bool:
        """Whether the feed has sent all and waits to be woken."""
        return not self._woken.is_set()

    def wake(self) -> None:
        """Tell the feed that its log has changed."""
        self._woken.set()

    async def run(self) -> None:
        """Send what the log gains until cancelled. Raises `ImportFileError` if the log cannot be followed."""
        try:
            self._state = await self._in_thread(self._state_file.load)
            self.source.restore(self._state.earlier.position)
            until = None if self._state.later is None else self._state.later.position
            while True:
                self._woken.clear()
                has_more = await self._step(until) or until is not None
                until = None
                if not has_more:
                    await self._wait()
        finally:
            await self._close()
            self._state_file.close()

    async def _step(self, until: Position | None) -> bool:
        """Read and send one piece of the log, and return whether there may be more."""
        self._woken.clear()
        growth = await self._in_thread(lambda: self.source.read(until))
        state = self._state
        if growth.is_cut:
            self._note(f"{self.source.path}: its file was replaced before all of it was read")
            if until is not None and state.later is not None:
                state.earlier = Checkpoint(position={}, counts=state.later.counts)
        if growth.entries:
            self._note_gap()
            await self._send(growth)
        state = self._state
        state.earlier = Checkpoint(position=self.source.position(), counts=state.earlier.counts)
        if growth.state is not None:
            for key in state.runs:
                await self._delivery(key, growth.time).finish(state.earlier.counts.get(key, 0), growth.state)
        return growth.has_more

    async def _send(self, growth: Growth) -> None:
        state = self._state
        before = state.earlier.counts
        found = {key: self._records(key, run, growth) for run, key in self._keys(growth).items()}
        counts = before | {key: before.get(key, 0) + len(records) for key, records in found.items()}
        state.later = Checkpoint(position=self.source.position(), counts=counts)
        for key, names in self._names.items():
            state.runs[key].guessed = names.guessed
        await self._in_thread(lambda: self._state_file.save(state))
        try:
            for key, records in found.items():
                await self._deliver(key, before.get(key, 0) + 1, records)
        except _StartAgainError:
            return
        state.earlier, state.later = state.later, None

    async def _deliver(self, key: str, first: int, records: Sequence[Record]) -> None:
        identity = self._state.runs[key]
        try:
            await self._delivery(key, records[0].time).send(first, records)
        except RecordsMissingError as error:
            if error.last_seq == 0:
                await self._start_again(identity)
                raise _StartAgainError from error
            self._note(
                f"{identity.name}: the server has {error.last_seq} of {first - 1 - identity.base} records that it "
                "acknowledged; the others are lost, and the rest is sent under a new writer"
            )
            identity.base, identity.writer = first - 1, RunIdentity.new("").writer
            await self._in_thread(lambda: self._state_file.save(self._state))
            await self._close()
            await self._deliver(key, first, records)

    async def _start_again(self, identity: RunIdentity) -> None:
        """Send the log from its beginning as new runs, because the server knows nothing of the earlier ones."""
        self._note(f"{identity.name}: the server no longer has this run; {self.source.path} is sent again")
        await self._close()
        self._state = FeedState(path=self._state.path)
        self._names.clear()
        self.source.restore({})
        self.wake()

    def _keys(self, growth: Growth) -> dict[Key, str]:
        """Return the keys of the runs of the entries, and give new runs an identity."""
        edition, about = self.source.edition, self.source.about
        keys = {}
        for run in grouped(growth.entries):
            key = msgspec.json.encode([edition, *run]).decode()
            keys[run] = key
            if key not in self._state.runs:
                if len(self._state.runs) >= MAX_RUNS:
                    columns = " and ".join(repr(name) for name in about.run_columns)
                    raise ImportFileError(
                        self.source.path,
                        None,
                        f"{columns} separate more than {MAX_RUNS} runs; name others with --run-column",
                    )
                name = _label(about.name, about.run_columns, run, edition)
                self._state.runs[key] = identity = RunIdentity.new(name)
                self._note(f"{self.source.path}: run {identity.run_id} ({name}) in {self._project}")
        return keys

    def _records(self, key: str, run: Key, growth: Growth) -> list[Record]:
        entries = grouped(growth.entries)[run]
        names = self._names.get(key)
        if names is None:
            names = ScalarNames(self._options.renames, self._state.runs[key].guessed)
            self._names[key] = names
        names.note({name for entry in entries for name in entry.scalars})
        renamed = (replace(entry, scalars=names.of(entry.scalars)) for entry in entries)
        return records_of(renamed, growth.time, merges=self.source.merges)

    def _delivery(self, key: str, started_at: float) -> RunDelivery:
        delivery = self._deliveries.get(key)
        if delivery is None:
            run = tuple(msgspec.json.decode(key)[1:])

            def hello(identity: RunIdentity) -> Hello:
                return self._hello(identity, run, started_at)

            delivery = RunDelivery(self._state.runs[key], hello, self._link, self._note)
            self._deliveries[key] = delivery
        return delivery

    def _hello(self, identity: RunIdentity, run: Key, started_at: float) -> Hello:
        about = self.source.about
        config: dict[str, Any] = {**about.config, **dict(zip(about.run_columns, run, strict=False))}
        config["followed_log"] = str(self.source.path)
        renamed = {known: name for name, known in (identity.guessed | dict(self._options.renames)).items()}
        if renamed:
            config["imported_names"] = renamed
        return Hello(
            version=PROTOCOL_VERSION,
            run_id=identity.run_id,
            writer=identity.writer,
            project=self._project,
            name=identity.name,
            config=_plain(config),
            tags=tuple(tag for tag in about.tags if is_name(tag)),
            started_at=started_at,
            sdk=self._options.sdk,
        )

    @property
    def _project(self) -> str:
        return self._options.project or self.source.about.project or DEFAULT_PROJECT

    def _note_gap(self) -> None:
        now = self._clock()
        self._gaps.append(now - self._last_growth)
        self._last_growth = now

    async def _wait(self) -> None:
        """Wait until the log changes. The connections of a log that falls silent are closed meanwhile."""
        usual = min(LONGEST_SILENCE, max(SILENT_AFTER, SILENT_GAPS * max(self._gaps, default=0.0)))
        left = self._last_growth + usual - self._clock()
        if self._deliveries:
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._woken.wait()
                return
            except TimeoutError:
                await self._close()
        await self._woken.wait()

    async def _close(self) -> None:
        deliveries, self._deliveries = list(self._deliveries.values()), {}
        for delivery in deliveries:
            await delivery.close()

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


class _StartAgainError(Exception):
    """The log is sent from its beginning."""


def _label(name: str, columns: Sequence[str], run: Key, edition: int) -> str:
    """Return the name of a run of a log.

    >>> _label("sweep", ("seed",), ("3",), 0), _label("sweep", ("run",), ("wide",), 0), _label("gpt", (), (), 1)
    ('sweep seed=3', 'wide', 'gpt (2)')
    """
    if len(run) == 1 and columns[0].lower() in SPEAKING and not run[0].replace(".", "").isdecimal():
        name = run[0]
    elif run:
        name = f"{name} {', '.join(f'{column}={value}' for column, value in zip(columns, run, strict=True))}"
    return (name if edition == 0 else f"{name} ({edition + 1})")[-MAX_NAME_CHARS:]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as JSON has them: numbers that it does not have become texts."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, Mapping):
            return {str(name): plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return {str(name): plain(value) for name, value in config.items()}
