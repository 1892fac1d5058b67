"""Makes room in a spool that is nearly full: removes every other block of layer statistics and keeps every scalar.

Pure: `client_sdk.spool.file_sequence` decides which records are thinned, and when. A record that lost its block or its
histograms carries the scalar `statistics_thinned` = 1, so that a reader can distinguish it from one without statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from client_sdk.protocol import MAX_SCALARS, STATISTICS_THINNED, Record, decode_record, encode


def thin(payloads: Sequence[bytes]) -> tuple[list[bytes], int]:
    """Return the records without every second remaining block and set of histograms, and how many lost something.

    Applied again it leaves every fourth, then every eighth, and so on. Raises `msgspec.DecodeError` if a payload is
    not a record.

    >>> records = [Record(step=step, time=0.0, scalars={"loss": 1.0}, layout=0, block=bytes(4)) for step in range(4)]
    >>> payloads, changed = thin([encode(record) for record in records])
    >>> changed, [decode_record(payload).block is not None for payload in payloads]
    (2, [True, False, True, False])
    >>> payloads, changed = thin(payloads)
    >>> changed, [decode_record(payload).block is not None for payload in payloads]
    (1, [True, False, False, False])
    """
    thinned: list[bytes] = []
    blocks = histograms = changed = 0
    for payload in payloads:
        record = decode_record(payload)
        loses_block = loses_histograms = False
        if record.block is not None:
            loses_block = blocks % 2 == 1
            blocks += 1
        if record.histograms:
            loses_histograms = histograms % 2 == 1
            histograms += 1
        if loses_block or loses_histograms:
            changed += 1
            thinned.append(encode(strip(record, block=loses_block, histograms=loses_histograms)))
        else:
            thinned.append(payload)
    return thinned, changed


def strip(record: Record, *, block: bool = True, histograms: bool = True) -> Record:
    """Return ``record`` without its block and histograms, marked by the scalar `statistics_thinned`.

    >>> stripped = strip(Record(step=7, time=0.0, scalars={"loss": 1.0}, layout=0, block=bytes(4)))
    >>> stripped.scalars, stripped.layout, stripped.block
    ({'loss': 1.0, 'statistics_thinned': 1.0}, None, None)
    """
    kept_block = None if block else record.block
    kept_histograms = () if histograms else record.histograms
    marked = {**record.scalars, STATISTICS_THINNED: 1.0} if len(record.scalars) < MAX_SCALARS else record.scalars
    return msgspec.structs.replace(
        record,
        scalars=marked,
        layout=record.layout if kept_block is not None or kept_histograms else None,
        block=kept_block,
        histograms=kept_histograms,
    )
