"""A text that grows line by line: JSON lines, a table, or what a program prints.

A line is read once its line break is there, so that no half-written number is taken for a value. A region of zero
bytes, which a network disk shows in place of what it has not received yet, is waited for like a missing line break.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from server.errors import ImportFileError
from server.following.growing_file import FileNews, Place, is_moved, is_same, place_in, renamed
from server.following.log_source import Growth, LogDescription, Position
from server.imports.csv_file import TableLines
from server.imports.discover import is_table
from server.imports.entry import Entry, LineParser
from server.imports.json_lines import JsonLines
from server.imports.logged_run import Note
from server.imports.options import ReadOptions
from server.imports.text_log import TextLines

CHUNK = 1024 * 1024  # bytes of one reading; a longer line is left out
PATIENCE = 30.0  # seconds for which zero bytes are waited for
KEPT_PLACES = 8
"""Files that were renamed away and are known again, so that they are not taken for logs of their own."""
UNKNOWN_LINES = 500
"""Lines without a step after which the log is reported."""
Kind = Literal["table", "json", "text"]


class LineFile:
    """A log of lines."""

    def __init__(self, path: Path, kind: Kind, options: ReadOptions, note: Note, name: str) -> None:
        """``name`` is that of its run."""
        self.path = path
        self.edition = 0
        self._kind: Kind = kind
        self._options = options
        self._note = note
        self._name = name
        self._parser = self._new_parser()
        self._place = Place()
        self._line = 0
        self._first_step: int | None = None
        self._is_undecided = False
        """Whether this file took the place of another one and has not shown its first step yet."""
        self._is_skipping = False
        """Whether the present line is too long."""
        self._past: list[Place] = []
        self._rotated: set[Path] = set()
        """Files that were read as the rest of this one."""
        self._news = FileNews(path)
        self._old_news: FileNews | None = None
        """News of the renamed file while it is still read."""
        self._hole_since: tuple[int, float] | None = None
        self._has_found = False

    @property
    def merges(self) -> bool:
        """Whether consecutive entries of one step are one record: where each line holds one scalar."""
        return self._parser.is_long

    @property
    def about(self) -> LogDescription:
        """Description of the runs."""
        tag = {"table": "csv", "json": "json", "text": "text"}[self._kind]
        parser = self._parser
        return LogDescription(
            name=self._name, tags=(tag, "followed"), config=parser.config, run_columns=parser.run_columns
        )

    @property
    def modified(self) -> float | None:
        """Unix time of the last change, None while there is no such file."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return None

    def has_news(self) -> bool:
        """Return whether the file, or the renamed one that is still read, has changed."""
        old = self._old_news
        return self._news.has_news() or (old is not None and old.has_news())

    def owns(self, path: Path) -> bool:
        """Return whether a file is this log, or was it before a rotation."""
        if path == self.path:
            return True
        return path in self._rotated or any(is_moved(path, place) for place in [self._place, *self._past])

    def position(self) -> Position:
        """Return the present position."""
        return {
            "place": msgspec.to_builtins(self._place),
            "line": self._line,
            "parser": self._parser.state(),
            "edition": self.edition,
            "first_step": self._first_step,
            "undecided": self._is_undecided,
            "skipping": self._is_skipping,
            "past": msgspec.to_builtins(self._past),
        }

    def restore(self, position: Position) -> None:
        """Continue at a position."""
        self._parser = self._new_parser()
        self._old_news = None
        if not position:
            self._place, self._line, self.edition, self._first_step = Place(), 0, 0, None
            self._is_undecided = self._is_skipping = False
            return
        self._place = msgspec.convert(position["place"], Place)
        self._line = position["line"]
        self._parser.restore(position["parser"])
        self.edition = position["edition"]
        self._first_step = position["first_step"]
        self._is_undecided = position["undecided"]
        self._is_skipping = position["skipping"]
        self._past = msgspec.convert(position["past"], list[Place])
        self._has_found = self._first_step is not None

    def read(self, until: Position | None = None) -> Growth:
        """Return the entries of the lines that were completed. Raises `ImportFileError`."""
        bound = None if not until else msgspec.convert(until["place"], Place)
        try:
            return self._read(bound)
        except FileNotFoundError:
            self._news.saw(None)
            return self._read_renamed(bound) or Growth(entries=(), time=0.0)
        except OSError as error:
            self._note(f"{self.path} cannot be read now ({error.strerror or error}); it is tried again")
            return Growth(entries=(), time=0.0)

    def _read(self, bound: Place | None) -> Growth:
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            self._news.saw(status)
            if is_same(file, self._place):
                self._old_news = None
                return self._take(file, bound, is_cut=False)
            rest = self._read_renamed(bound)
            if rest is not None and (rest.entries or rest.has_more or status.st_size == 0):
                return rest
            had = self._place.offset > 0
            if had:
                self._past = [*self._past, self._place][-KEPT_PLACES:]
            self._old_news = None
            self._place, self._line, self._is_skipping = Place(inode=status.st_ino), 0, False
            self._is_undecided = self._is_undecided or had
            return self._take(file, None, is_cut=had and rest is None)

    def _read_renamed(self, bound: Place | None) -> Growth | None:
        """Return what the file gained under the name that a rotation gave it, None if there is no such file."""
        path = renamed(self.path, self._place)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                self._rotated.add(path)
                self._old_news = FileNews(path)
                self._old_news.saw(os.fstat(file.fileno()))
                before = self._place.offset
                growth = self._take(file, bound, is_cut=False)
                return growth if self._place.offset == before else _and_more(growth)
        except OSError:
            return None

    def _take(self, file: BinaryIO, bound: Place | None, *, is_cut: bool) -> Growth:
        """Return the entries of the complete lines after the present place, and move the place behind them."""
        start = self._place.offset
        size = CHUNK
        if bound is not None and start <= bound.offset < start + CHUNK and is_same(file, bound):
            size = bound.offset - start
        data = os.pread(file.fileno(), size, start)
        end = self._complete(data)
        entries = self._parsed(data[:end]) if end else []
        if end:
            self._place = place_in(file, start + end)
        return Growth(
            entries=entries,
            time=os.fstat(file.fileno()).st_mtime,
            has_more=len(data) == CHUNK,
            is_cut=is_cut,
        )

    def _complete(self, data: bytes) -> int:
        """Return the number of bytes up to the last line break that can be trusted."""
        hole = data.find(b"\0")
        if hole == -1:
            self._hole_since = None
        elif self._place.offset == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ImportFileError(self.path, None, "it is UTF-16, which cannot be followed; import it when it is done")
        else:
            at = self._place.offset + hole
            now = time.monotonic()
            if self._hole_since is None or self._hole_since[0] != at:
                self._hole_since = (at, now)
            self._news.saw(None)  # look again, whether or not the size changes
            if now - self._hole_since[1] < PATIENCE:
                data = data[:hole]
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == CHUNK:
            self._note(f"{self.path}: a line of more than {CHUNK} bytes is left out")
            self._is_skipping = True
            return len(data)
        return end

    def _parsed(self, data: bytes) -> list[Entry]:
        lines = data.split(b"\n")
        if self._is_skipping:
            lines = lines[1:]
            self._line += 1
            self._is_skipping = len(lines) == 0
        entries: list[Entry] = []
        for raw in lines[:-1]:
            text = raw.removeprefix(b"\xef\xbb\xbf") if self._line == 0 else raw
            if self._line == 0:
                self._begin(text)
            self._line += 1
            entries += self._of_line(text)
        if entries:
            self._decide(entries[0].step)
        elif not self._has_found and self._line >= UNKNOWN_LINES:
            self._note(
                f"{self.path}: {UNKNOWN_LINES} lines without a step that is known; name it with --step-column, or "
                "describe the lines with --pattern"
            )
        return entries

    def _of_line(self, raw: bytes) -> Sequence[Entry]:
        try:
            return self._parser.parse(self._line, raw.decode(errors="replace").rstrip("\r"))
        except ImportFileError as error:
            if isinstance(self._parser, TableLines) and not self._parser.has_header:
                raise
            self._note(f"{error}; lines like this one are left out")
            return ()

    def _begin(self, first: bytes) -> None:
        """Begin a file. One that took the place of another one may have a header of its own."""
        if self._kind == "table" and self._is_undecided and is_table([first], self._options):
            self._parser = self._new_parser()

    def _decide(self, step: int) -> None:
        """Decide at the first step of a file whether it continues the run or is another one."""
        self._has_found = True
        if self._is_undecided and self._first_step is not None and step <= self._first_step:
            self.edition += 1
            self._first_step = step
        elif self._first_step is None:
            self._first_step = step
        self._is_undecided = False

    def _new_parser(self) -> LineParser:
        if self._options.pattern is not None or self._kind == "text":
            return TextLines(self.path, self._options)
        return (JsonLines if self._kind == "json" else TableLines)(self.path, self._options, self._note)


def _and_more(growth: Growth) -> Growth:
    return Growth(entries=growth.entries, time=growth.time, has_more=True)
