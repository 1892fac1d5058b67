"""Repairs the files that an earlier process left in a spool directory: cuts torn ends and fills holes in the sequence.

Raises `OSError`, and `msgspec.DecodeError` if a payload is not a record.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from client_sdk.protocol import Record, decode_record, encode
from client_sdk.spool.file_supply import SPARES
from client_sdk.spool.spool_file import HEADER, SUFFIX, SpoolFile

REWRITTEN: Final = "rewritten"
"""Temporary name of a file that is about to replace a spool file."""


def load_files(directory: Path, started_at: float, acknowledged: int) -> tuple[list[SpoolFile], int]:
    """Return the files of a spool in order, their sequences consecutive, and how many records replace lost ones.

    Records up to ``acknowledged`` are never replaced: some may have been in memory only, while the disk was full.
    """
    for path in (*directory.glob(SPARES), directory / REWRITTEN):
        path.unlink(missing_ok=True)
    files: list[SpoolFile] = []
    lost = start = 0
    for path in sorted(directory.glob("*" + SUFFIX)):
        file = SpoolFile.load(path, start)
        if file is None:
            path.unlink()
            continue
        if file.first_seq - 1 <= acknowledged:
            while files:
                files.pop().path.unlink(missing_ok=True)
        if files and file.first_seq > files[-1].last_seq + 1:
            missing = file.first_seq - 1 - files[-1].last_seq
            _fill(files[-1], missing, started_at)
            lost += missing
            file.start = files[-1].bytes_before(files[-1].end)
        files.append(file)
        start = file.bytes_before(file.end)
    return files, lost


def _fill(file: SpoolFile, missing: int, started_at: float) -> None:
    """Append empty records for lost ones, at the step of the last intact record: the server accepts no gap."""
    step, moment = 0, started_at
    payloads = file.read(HEADER.size, file.end)[0]
    if payloads:
        record = decode_record(payloads[-1])
        step, moment = record.step, record.time
    payloads += [encode(Record(step=step, time=moment, scalars={}))] * missing
    file.count += missing
    temporary = file.path.with_name(REWRITTEN)
    file.end = file.rewrite(payloads, temporary)
    os.replace(temporary, file.path)
