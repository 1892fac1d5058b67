"""Search for files that can be imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import ImportFileError
from server.exports.archive import HISTOGRAMS, STEPS
from server.imports import (
    archive,
    csv_file,
    json_lines,
    parquet_file,
    tensorboard,
    text_log,
    trainer_state,
    wandb_file,
)
from server.imports.impostor import check_contents
from server.imports.logged_run import LoggedRun, Note
from server.imports.options import ReadOptions
from server.imports.table_columns import STEP_NAMES

TABLES = (".csv", ".tsv")
SUFFIXES = frozenset({wandb_file.SUFFIX, archive.SUFFIX, *TABLES, ".jsonl", ".ndjson", ".parquet"})
"""Suffixes of the files that are imported from folders."""
FORMATS = (
    "event files of TensorBoard, .wandb, .csv, .jsonl, trainer_state.json, .parquet, .zip, and text logs of programs "
    "that are known or described by --pattern"
)
SNIFFED = 65_536  # bytes
Opener = Callable[[], list[LoggedRun]]
"""Function that opens a file or folder. Raises `ImportFileError`."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search below one path."""

    root: Path | None
    """Folder that is imported, None for a file."""
    options: ReadOptions
    note: Note
    """Function that receives what an import leaves out."""


def discover(path: Path, options: ReadOptions, note: Note) -> Iterator[tuple[Path, Opener]]:
    """Yield each file or folder with runs, and a function that opens it. A folder is searched recursively.

    Raises `ImportFileError` if there is nothing to import.
    """
    if path.is_dir():
        yield from _below(Search(root=path, options=options, note=note))
    elif path.is_file():
        yield path, _opener(path, Search(root=None, options=options, note=note))
    else:
        raise ImportFileError(path, None, "there is no such file or folder")


def _below(search: Search) -> Iterator[tuple[Path, Opener]]:
    root = search.root
    assert root is not None
    found = unknown = 0
    for folder, folders, names in os.walk(root):
        folders.sort()
        here = Path(folder)
        if any(here.glob(tensorboard.PATTERN)) and (here == root or not tensorboard.is_hyperparameters(here)):
            found += 1
            yield here, _events(here, search)
        for file in sorted(names):
            path = here / file
            if "tfevents" in file or (STEPS in names and (file == HISTOGRAMS or path.suffix == ".jsonl")):
                continue  # it is read together with the folder or the steps of an export, or the import makes it anew
            if is_log(path, search.options):
                found += 1
                yield path, _opener(path, search)
            else:
                unknown += Path(file).suffix in text_log.SUFFIXES
    if not found:
        raise ImportFileError(root, None, f"nothing to import in it: no {FORMATS}")
    if unknown:
        search.note(f"{root}: {unknown} text file{'s' * (unknown > 1)} without lines that are known are left out")


def is_log(path: Path, options: ReadOptions) -> bool:
    """Return whether a file in a folder is a log by its name, or by its lines if it is a text."""
    if path.name == trainer_state.NAME:
        return not trainer_state.is_superseded(path)
    if path.suffix in SUFFIXES:
        return True
    if path.suffix not in text_log.SUFFIXES or _beside_wandb(path):
        return False
    if options.pattern is not None:
        return True
    try:
        return text_log.recognised(path) is not None or is_table(_first_lines(path), options)
    except (ImportFileError, OSError):
        return False


def name_of_folder(folder: Path, root: Path) -> str:
    """Return the name of the run in a folder with event files: the path below, and with, the imported folder."""
    inside = folder.relative_to(root)
    return root.resolve().name if inside == Path() else str(Path(root.resolve().name) / inside)


def _beside_wandb(path: Path) -> bool:
    """Return whether W&B made this file to keep what a run printed, whose values the .wandb file has."""
    return any(any(folder.glob(f"*{wandb_file.SUFFIX}")) for folder in (path.parent, path.parent.parent))


def _events(folder: Path, search: Search) -> Opener:
    def open_events() -> list[LoggedRun]:
        return [tensorboard.open_folder(folder, name_of_folder(folder, search.root or folder), search.note)]

    return open_events


def _opener(path: Path, search: Search) -> Opener:
    options, note, root = search.options, search.note, search.root

    def open_by_name() -> list[LoggedRun]:
        check_contents(path)
        if options.pattern is not None:
            return text_log.open_file(path, options, note, root)
        if "tfevents" in path.name:
            return [tensorboard.open_file(path, note)]
        if path.suffix == wandb_file.SUFFIX:
            return [wandb_file.open_file(path, note)]
        if path.suffix == archive.SUFFIX:
            return [archive.open_file(path)]
        if path.suffix == ".parquet":
            return parquet_file.open_file(path, options, note, root)
        if path.name == trainer_state.NAME:
            return trainer_state.open_file(path, options, note, root)
        if path.suffix in json_lines.SUFFIXES:
            return json_lines.open_file(path, options, note, root)
        if path.suffix in TABLES:
            return csv_file.open_file(path, options, note, root)
        return _open_by_contents(path, search)

    return open_by_name


def _open_by_contents(path: Path, search: Search) -> list[LoggedRun]:
    head = check_contents(path)
    if not head and path.suffix in text_log.SUFFIXES:
        raise ImportFileError(path, None, "the file is empty")
    if head and any(map(json_lines.is_object, _first_lines(path)[:1])):
        return json_lines.open_file(path, search.options, search.note, search.root)
    if text_log.recognised(path) is not None:
        return text_log.open_file(path, search.options, search.note, search.root)
    if is_table(_first_lines(path), search.options):
        return csv_file.open_file(path, search.options, search.note, search.root)
    if path.suffix in text_log.SUFFIXES:
        return text_log.open_file(path, search.options, search.note, search.root)
    raise ImportFileError(
        path, None, f"its name does not show its format, and neither do its lines; expected {FORMATS}"
    )


def is_table(lines: Sequence[bytes], options: ReadOptions) -> bool:
    """Return whether the first lines of a file are the header of a table with a column of steps, and a row.

    >>> is_table([b"step loss lr", b"1 2.5 0.1"], ReadOptions()), is_table([b"step by step", b"we go"], ReadOptions())
    (True, False)
    """
    header, *rest = (line.decode(errors="replace").strip() for line in lines) if lines else ("",)
    separator = csv_file.separator_of(header)
    names = [name.strip().strip('"').lower() for name in header.split(separator)]
    wanted = {options.step_column.lower()} if options.step_column is not None else set(STEP_NAMES)
    if len(names) < 2 or not wanted & set(names):
        return False
    cells = rest[0].split() if rest and separator == " " else []
    return separator != " " or (len(cells) == len(names) and any(char.isdigit() for char in cells[0]))


def _first_lines(path: Path) -> list[bytes]:
    """Return the first two lines that are neither empty nor comments."""
    found: list[bytes] = []
    with path.open("rb") as file:
        while len(found) < 2 and (line := file.readline(SNIFFED)):
            if line.strip() and not line.startswith(csv_file.COMMENT.encode()):
                found.append(line)
    return found
