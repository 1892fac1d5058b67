"""A ``.wandb`` file while W&B writes it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

from server.errors import ImportFileError
from server.following.growing_file import FileNews, Place, is_same, place_in
from server.following.log_source import Growth, LogDescription, Position
from server.imports.entry import Entry
from server.imports.logged_run import Note
from server.imports.record_file import LeftOut
from server.imports.wandb_file import About, frames, take

CHUNK = 1024 * 1024  # bytes of one reading
PATIENCE = 30.0  # seconds for which a record whose checksum does not match is read again before it counts as damage


class WandbLog:
    """A ``.wandb`` file, which is one run."""

    merges = False

    def __init__(self, path: Path, note: Note) -> None:
        self.path = path
        self.edition = 0
        self._note = note
        self._run = About()
        self._place = Place()
        self._number = 0
        self._news = FileNews(path)
        self._left_out = LeftOut(path, "is not a number", note)
        self._doubt: tuple[int, float] | None = None
        self._is_damaged = False

    @property
    def about(self) -> LogDescription:
        """Description of the run that W&B recorded."""
        run = self._run
        return LogDescription(
            name=run.name or self.path.stem,
            tags=("wandb", "followed", *run.tags),
            project=run.project,
            config=run.config,
        )

    @property
    def modified(self) -> float | None:
        """Unix time of the last change, None while there is no such file."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return None

    def has_news(self) -> bool:
        """Return whether the file has changed since the last reading."""
        return not self._is_damaged and self._news.has_news()

    def owns(self, path: Path) -> bool:
        """Return whether a path is this file."""
        return path == self.path

    def position(self) -> Position:
        """Return the present position."""
        place = self._place
        return {"inode": place.inode, "offset": place.offset, "tail": place.tail, "number": self._number}

    def restore(self, position: Position) -> None:
        """Continue at a position."""
        self._place, self._number = Place(), 0
        if position:
            self._place = Place(inode=position["inode"], offset=position["offset"], tail=position["tail"])
            self._number = position["number"]

    def read(self, until: Position | None = None) -> Growth:
        """Return the history that was completed. Raises `ImportFileError` if it is no file of W&B."""
        try:
            return self._read(until["offset"] if until else None)
        except FileNotFoundError:
            self._news.saw(None)
        except OSError as error:
            self._note(f"{self.path} cannot be read now ({error.strerror or error}); it is tried again")
        return Growth(entries=(), time=0.0)

    def _read(self, bound: int | None) -> Growth:
        entries: list[Entry] = []
        state: Literal["finished", "crashed"] | None = None
        left, is_cut = CHUNK, False
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            self._news.saw(status)
            if not is_same(file, self._place):
                is_cut = self._place.offset > 0
                self.edition += is_cut
                self._place, self._number, self._run = Place(), 0, About()
            offset = self._place.offset
            file.seek(offset)
            try:
                for number, data, end in frames(self.path, file, self._number):
                    if bound is not None and end > bound > offset:
                        break
                    entry = take(self.path, number, data, self._run, self._left_out)
                    if entry is not None:
                        entries.append(entry)
                    if self._run.exit_code is not None:
                        state = "crashed" if self._run.exit_code else "finished"
                    left -= end - offset
                    offset, self._number = end, number
                    if left <= 0:
                        break
            except ImportFileError as error:
                if self._number == 0:
                    raise
                self._doubtful(offset, error)
            if offset != self._place.offset:
                self._place = place_in(file, offset)
        return Growth(entries=entries, time=status.st_mtime, has_more=left <= 0, is_cut=is_cut, state=state)

    def _doubtful(self, offset: int, error: ImportFileError) -> None:
        now = time.monotonic()
        if self._doubt is None or self._doubt[0] != offset:
            self._doubt = (offset, now)
        if now - self._doubt[1] < PATIENCE:
            self._news.saw(None)
            return
        self._is_damaged = True
        self._note(f"{error}; what follows in this file is left out")
