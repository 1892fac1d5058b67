"""A folder of TensorBoard event files, which is one run, while a training writes them."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from server.errors import ImportFileError
from server.following.growing_file import REOPEN_EVERY, Signature, signature
from server.following.log_source import Growth, LogDescription, Position
from server.imports.entry import Entry
from server.imports.logged_run import Note
from server.imports.record_file import LeftOut
from server.imports.tensorboard import Contents, event_files, frames, hyperparameter_files, scalars_of

CHUNK = 1024 * 1024  # bytes of one reading
PATIENCE = 30.0  # seconds for which a record whose checksum does not match is read again before it counts as damage


class EventFolder:
    """The event files directly in a folder, or one event file."""

    merges = True
    edition = 0

    def __init__(self, path: Path, note: Note, name: str) -> None:
        """``path`` is a folder, or an event file that is followed alone."""
        self.path = path
        self._note = note
        self._name = name
        self._ends: dict[str, tuple[int, int]] = {}
        """Offset and number of records that were read of each file, keyed by name."""
        self._damaged: set[str] = set()
        self._doubt: tuple[str, int, float] | None = None
        """File and offset of a record that may be damaged or half-written, and when it was seen first."""
        self._contents: Contents | None = None
        self._seen: dict[str, Signature] | None = None
        self._listed: list[Path] = []
        self._listed_at = 0.0
        self._folder_changed = 0
        self._left_out: dict[str, LeftOut] = {}

    @property
    def about(self) -> LogDescription:
        """Description of the run, with the hyperparameters that the folder has."""
        contents = self._contents or Contents()
        return LogDescription(name=self._name, tags=("tensorboard", "followed"), config=contents.config)

    @property
    def modified(self) -> float | None:
        """Unix time of the last change of a file, None without files."""
        return max((found[2] / 1e9 for found in self._statuses().values()), default=None)

    def has_news(self) -> bool:
        """Return whether a file has changed or appeared since the last reading."""
        return self._statuses() != self._seen

    def owns(self, path: Path) -> bool:
        """Return whether a path is this folder or one of its event files."""
        return path == self.path or (path.parent == self.path and "tfevents" in path.name)

    def position(self) -> Position:
        """Return the present position."""
        return {"ends": {name: list(end) for name, end in self._ends.items()}, "damaged": sorted(self._damaged)}

    def restore(self, position: Position) -> None:
        """Continue at a position."""
        self._ends = {name: (end[0], end[1]) for name, end in position.get("ends", {}).items()}
        self._damaged = set(position.get("damaged", ()))
        self._seen = None

    def read(self, until: Position | None = None) -> Growth:
        """Return the scalars of the records that were completed."""
        if self._contents is None:
            self._contents = _hyperparameters(self.path)
        bounds: dict[str, Any] | None = until["ends"] if until else None
        self._seen = self._statuses()
        entries: list[Entry] = []
        left, changed, is_cut = CHUNK, 0.0, False
        for path in list(self._listed):
            if path.name in self._damaged or (bounds is not None and path.name not in bounds):
                continue
            bound = None if bounds is None else int(bounds[path.name][0])
            try:
                size = path.stat().st_size
                if size < self._ends.get(path.name, (0, 0))[0]:
                    self._note(f"{path} was replaced by a shorter file, which is read from its beginning")
                    self._ends[path.name] = (0, 0)
                    is_cut = True
                if size == self._ends.get(path.name, (0, 0))[0]:
                    continue
                changed = max(changed, path.stat().st_mtime)
                left = self._read_file(path, bound, left, entries)
            except OSError as error:
                self._seen = None
                self._note(f"{path} cannot be read now ({error.strerror or error}); it is tried again")
            if left <= 0:
                break
        return Growth(entries=entries, time=changed, has_more=left <= 0, is_cut=is_cut)

    def _read_file(self, path: Path, bound: int | None, left: int, entries: list[Entry]) -> int:
        """Append the scalars of a file, and return how many bytes are left of the reading."""
        offset, number = self._ends.get(path.name, (0, 0))
        assert self._contents is not None
        left_out = self._left_out.setdefault(path.name, LeftOut(path, "is not a scalar", self._note))
        try:
            with path.open("rb") as file:
                file.seek(offset)
                for record, data, end in frames(path, file, number):
                    if bound is not None and end > bound:
                        break
                    for scalar in scalars_of(path, record, data, self._contents, left_out):
                        entries.append(Entry(step=scalar.step, scalars={scalar.tag: scalar.value}, time=scalar.time))
                    left -= end - offset
                    offset = end
                    self._ends[path.name] = (end, record)
                    if left <= 0:
                        break
        except ImportFileError as error:
            self._doubtful(path, offset, error)
        return left

    def _doubtful(self, path: Path, offset: int, error: ImportFileError) -> None:
        """Wait for the rest of a record that does not match its checksum, and give the file up if it stays so."""
        now = time.monotonic()
        if self._doubt is None or self._doubt[:2] != (path.name, offset):
            self._doubt = (path.name, offset, now)
        if now - self._doubt[2] < PATIENCE:
            self._seen = None
            return
        self._damaged.add(path.name)
        self._note(f"{error}; what follows in this file is left out")

    def _statuses(self) -> dict[str, Signature]:
        self._list()
        found = {}
        for path in self._listed:
            with contextlib.suppress(OSError):
                found[path.name] = signature(path.stat())
        return found

    def _list(self) -> None:
        """List the files again if the folder has changed; on network disks this may show late, so also by the clock."""
        now = time.monotonic()
        try:
            changed = self.path.stat().st_mtime_ns
        except OSError:
            self._listed = []
            return
        if self.path.is_file():
            self._listed = [self.path]
        elif changed != self._folder_changed or now - self._listed_at >= REOPEN_EVERY:
            self._folder_changed, self._listed_at = changed, now
            self._listed = event_files(self.path)
            if self._listed:  # opening the newest file makes a network disk tell its size
                with contextlib.suppress(OSError):
                    os.close(os.open(self._listed[-1], os.O_RDONLY))


def _hyperparameters(folder: Path) -> Contents:
    """Return what `add_hparams` wrote into folders of its own below this one."""
    contents = Contents()
    for path in hyperparameter_files(folder):
        try:
            with path.open("rb") as file:
                for number, data, _ in frames(path, file):
                    for _ in scalars_of(path, number, data, contents, LeftOut(path, "", lambda _: None)):
                        pass
        except (OSError, ImportFileError):
            continue
    return contents
