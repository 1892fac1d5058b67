"""Finds the logs below a path that can be followed, again and again, because new ones appear."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from server.errors import ImportFileError
from server.exports.archive import STEPS
from server.following.event_folder import EventFolder
from server.following.line_file import Kind, LineFile
from server.following.log_source import LogSource
from server.following.wandb_log import WandbLog
from server.imports import archive, csv_file, json_lines, tensorboard, text_log, trainer_state, wandb_file
from server.imports.discover import TABLES, is_log, is_table, name_of_folder
from server.imports.impostor import check_contents
from server.imports.logged_run import Note
from server.imports.options import ReadOptions
from server.imports.run_names import name_of

MAX_LOGS = 1_000  # below one path
SNIFFED = 65_536  # bytes
GROWS_BY = 2.0
"""Growth of a text after which it is looked at again for lines that are known."""


class LogSearch:
    """Search below one path. Used from one thread at a time."""

    def __init__(
        self,
        root: Path,
        options: ReadOptions,
        note: Note,
        *,
        since: float | None = None,
        is_known: Callable[[Path], bool] = lambda _: False,
    ) -> None:
        """In a folder, logs that were last changed before ``since`` wait until they grow, unless ``is_known``."""
        self.root = root
        self._options = options
        self._note = note
        self._since = since
        self._is_known = is_known
        self._sources: dict[Path, LogSource] = {}
        self._waiting: dict[Path, float] = {}
        """Times of the last change of logs that wait, keyed by path."""
        self._unknown: dict[Path, int] = {}
        """Sizes of texts without lines that are known, keyed by path."""

    def look(self) -> list[LogSource]:
        """Return the logs that are new since the last call.

        Raises `ImportFileError` if the path is a file that cannot be followed.
        """
        found = self._below() if self.root.is_dir() else self._file()
        for source in found:
            self._sources[source.path] = source
        if not self._sources and self.root.is_dir():
            self._note(f"{self.root}: there is no log in it that grows; logs are followed when they do")
        return found

    def _file(self) -> list[LogSource]:
        if self.root in self._sources:
            return []
        if not self.root.exists():
            if not self.root.parent.is_dir():
                raise ImportFileError(self.root, None, "there is no such file, and no such folder to wait for it in")
            self._note(f"{self.root}: there is no such file yet; it is followed when it appears")
            return []
        source = self._source(self.root, None)
        return [] if source is None else [source]

    def _below(self) -> list[LogSource]:
        found: list[LogSource] = []
        for folder, folders, names in os.walk(self.root):
            folders.sort()
            here = Path(folder)
            if any("tfevents" in name for name in names) and (
                here == self.root or not tensorboard.is_hyperparameters(here)
            ):
                self._add(here, lambda path: EventFolder(path, self._note, name_of_folder(path, self.root)), found)
            for name in sorted(names):
                path = here / name
                if "tfevents" in name or STEPS in names or path in self._sources or self._still_waits(path):
                    continue
                if not self._may_be_log(path):
                    continue
                self._add(path, lambda path: self._source(path, self.root), found)
        return found

    def _add(self, path: Path, make: Callable[[Path], LogSource | None], found: list[LogSource]) -> None:
        if path in self._sources or any(source.owns(path) for source in self._sources.values()):
            return
        if len(self._sources) + len(found) >= MAX_LOGS:
            self._note(f"{self.root}: {MAX_LOGS} logs are followed; further ones are left out, name a smaller folder")
            return
        try:
            source = make(path)
        except ImportFileError as error:
            self._note(f"{error}; it is not followed")
            return
        if source is not None and self._is_current(source):
            found.append(source)

    def _is_current(self, source: LogSource) -> bool:
        changed = source.modified
        if self._since is None or changed is None or changed >= self._since or self._is_known(source.path):
            return True
        before = self._waiting.setdefault(source.path, changed)
        return changed != before

    def _still_waits(self, path: Path) -> bool:
        """Return whether a log waits until it grows, and has not."""
        if path not in self._waiting:
            return False
        try:
            return path.stat().st_mtime == self._waiting[path]
        except OSError:
            return True

    def _may_be_log(self, path: Path) -> bool:
        """Return whether a file in a folder may be a log. Texts are read again when they have grown."""
        if path.suffix in (archive.SUFFIX, ".parquet") or path.name == trainer_state.NAME:
            return False
        try:
            size = path.stat().st_size
        except OSError:
            return False
        if size == 0 or size < GROWS_BY * self._unknown.get(path, 0):
            return False
        if is_log(path, self._options):
            return True
        self._unknown[path] = size
        return False

    def _source(self, path: Path, root: Path | None) -> LogSource | None:
        """Return the log in a file, or None if its first line does not tell its kind yet."""
        if "tfevents" in path.name:
            return EventFolder(path, self._note, path.parent.resolve().name or path.name)
        if path.suffix == wandb_file.SUFFIX and self._options.pattern is None:
            return WandbLog(path, self._note)
        kind = kind_of(path, self._options)
        if kind is None:
            self._note(f"{path}: it has no complete line yet; it is followed when it has one")
            return None
        return LineFile(path, kind, self._options, self._note, name_of(path, root))


def kind_of(path: Path, options: ReadOptions) -> Kind | None:
    """Return the kind of the lines of a file, or None if there is no complete line that tells it.

    Raises `ImportFileError` if the file does not grow by lines.
    """
    check_contents(path)
    if options.pattern is not None:
        return "text"
    if path.suffix in (archive.SUFFIX, ".parquet") or path.name == trainer_state.NAME:
        raise ImportFileError(path, None, "it does not grow line by line; import it when the training has ended")
    if path.suffix in TABLES:
        return "table"
    if path.suffix in (".jsonl", ".ndjson"):
        return "json"
    lines = _first_lines(path)
    if path.suffix == ".json" and lines and lines[0].lstrip().startswith(b"["):
        raise ImportFileError(path, None, "an array is complete only at its end; import it, or write JSON lines")
    if not lines:
        return None
    if json_lines.is_object(lines[0]):
        return "json"
    if path.suffix == ".json":
        raise ImportFileError(path, "line 1", "expected one JSON object on each line; other JSON can be imported")
    if text_log.recognised(path) is None and is_table(lines, options):
        return "table"
    return "text"


def _first_lines(path: Path) -> list[bytes]:
    """Return the first two complete lines that are neither empty nor comments."""
    found: list[bytes] = []
    with path.open("rb") as file:
        while len(found) < 2 and (line := file.readline(SNIFFED)).endswith(b"\n"):
            if line.strip() and not line.startswith(csv_file.COMMENT.encode()):
                found.append(line)
    return found
