"""What an earlier process left in a spool's directory, made whole: torn tails cut, holes in the sequence filled.

Owns the reading of segments that nobody has checked yet. Raises `OSError`, and `msgspec.DecodeError` for what is no
record.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from client_sdk.file_supply import SPARES
from client_sdk.protocol import Record, decode_record, encode
from client_sdk.segment import HEADER, SUFFIX, Segment

REWRITTEN: Final = "rewritten"
"""Name of a segment's successor until it takes its place."""


def load_segments(directory: Path, started_at: float, acknowledged: int) -> tuple[list[Segment], int]:
    """The segments in order, their sequences consecutive; and how many records of them are stand-ins for lost ones.

    Of records up to ``acknowledged`` none is missed: some may have been in memory alone, while a disk was full.
    """
    for path in (*directory.glob(SPARES), directory / REWRITTEN):
        path.unlink(missing_ok=True)
    segments: list[Segment] = []
    lost = start = 0
    for path in sorted(directory.glob("*" + SUFFIX)):
        segment = Segment.load(path, start)
        if segment is None:
            path.unlink()
            continue
        if segment.first_seq - 1 <= acknowledged:
            while segments:
                segments.pop().path.unlink(missing_ok=True)
        if segments and segment.first_seq > segments[-1].last_seq + 1:
            missing = segment.first_seq - 1 - segments[-1].last_seq
            _fill(segments[-1], missing, started_at)
            lost += missing
            segment.start = segments[-1].bytes_before(segments[-1].end)
        segments.append(segment)
        start = segment.bytes_before(segment.end)
    return segments, lost


def _fill(segment: Segment, missing: int, started_at: float) -> None:
    """Stand-ins for records that are gone, at the step of the last one that is not: the server wants no gap."""
    step, moment = 0, started_at
    payloads = segment.read(HEADER.size, segment.end)[0]
    if payloads:
        record = decode_record(payloads[-1])
        step, moment = record.step, record.time
    payloads += [encode(Record(step=step, time=moment, scalars={}))] * missing
    segment.count += missing
    place = segment.path.with_name(REWRITTEN)
    segment.end = segment.rewrite(payloads, place)
    os.replace(place, segment.path)
