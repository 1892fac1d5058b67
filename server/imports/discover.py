"""Search for files that can be imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from server.errors import ImportFileError
from server.exports.archive import HISTOGRAMS, STEPS
from server.imports import archive, csv_file, parquet_file, tensorboard, wandb_file
from server.imports.logged_run import LoggedRun, Note

SUFFIXES = frozenset({wandb_file.SUFFIX, archive.SUFFIX, ".csv", ".parquet"})
"""Suffixes of the files that are imported from folders."""
Opener = Callable[[], list[LoggedRun]]
"""Function that opens a file or folder. Raises `ImportFileError`."""


def discover(path: Path, step_column: str | None, note: Note) -> Iterator[tuple[Path, Opener]]:
    """Yield each file or folder with runs, and a function that opens it. A folder is searched recursively.

    ``step_column`` names the column of steps in tables, ``note`` receives what an import leaves out. Raises
    `ImportFileError` if there is nothing to import.
    """
    if path.is_dir():
        found = False
        for folder, folders, names in os.walk(path):
            folders.sort()
            here = Path(folder)
            if any(here.glob(tensorboard.PATTERN)):
                found = True
                inside = here.relative_to(path)
                name = path.resolve().name if inside == Path() else str(Path(path.resolve().name) / inside)

                def open_events(here: Path = here, name: str = name) -> list[LoggedRun]:
                    return [tensorboard.open_folder(here, name, note)]

                yield here, open_events
            for file in sorted(names):
                if file == HISTOGRAMS and STEPS in names:
                    continue  # it is read together with the steps
                if Path(file).suffix in SUFFIXES and "tfevents" not in file:
                    found = True
                    yield here / file, _opener(here / file, step_column, note)
        if not found:
            raise ImportFileError(path, None, "nothing to import in it: no event files, .wandb, .csv, .parquet or .zip")
    elif path.is_file():
        yield path, _opener(path, step_column, note)
    else:
        raise ImportFileError(path, None, "there is no such file or folder")


def _opener(path: Path, step_column: str | None, note: Note) -> Opener:
    def open_by_name() -> list[LoggedRun]:
        if "tfevents" in path.name:
            return [tensorboard.open_file(path, note)]
        if path.suffix == wandb_file.SUFFIX:
            return [wandb_file.open_file(path, note)]
        if path.suffix == archive.SUFFIX:
            return [archive.open_file(path)]
        if path.suffix == ".parquet":
            return parquet_file.open_file(path, step_column, note)
        if path.suffix in (".csv", ".tsv", ".txt"):
            return csv_file.open_file(path, step_column, note)
        raise ImportFileError(
            path,
            None,
            "its name does not show its format; expected an event file of TensorBoard, .wandb, .csv, .parquet or .zip",
        )

    return open_by_name
