"""Makes room in a spool that is full: every other block of layer statistics goes, scalars stay complete.

Pure; which records, and when, is the spool's. A record that gave up its block says so to whoever reads it: the scalar
`statistics_thinned` is 1 there.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from client_sdk.protocol import MAX_SCALARS, STATISTICS_THINNED, Record, decode_record, encode


def thin(payloads: Sequence[bytes]) -> tuple[list[bytes], int]:
    """The same records, every second of the remaining blocks and every second of the remaining sets of histograms
    taken out; and how many records lost something. Called again it leaves every fourth, then every eighth …

    Raises `msgspec.DecodeError` for what is no record.
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
    """``record`` without its block and histograms, and marked."""
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
