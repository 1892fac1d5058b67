"""Turns a batch from the wire into segments: validates it, arranges it in columns and adds derived statistics.

Pure: nothing here touches the event loop or the database, so it runs in any thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from client_sdk.protocol import (
    HISTOGRAM_BINS,
    MAX_NAME_CHARS,
    MAX_SCALARS,
    MAX_STEP,
    Audit,
    AuditFinding,
    Layout,
    Record,
)
from server.errors import IngestError
from server.pyramid.columns import BlockColumns, Columns, ScalarColumn, encode
from server.pyramid.drafts import AuditDraft, HistogramDraft, SegmentDraft
from server.pyramid.histograms import dips_of
from server.pyramid.histograms import encode as encode_histogram
from server.storage.layouts import DERIVED_STATISTIC

QUANTITIES = frozenset({"update", "ratio"})
MAX_CHECKS = 256
"""Checks and findings in one report of the audit."""
MAX_CHECK_CHARS = 64
MAX_MESSAGE_CHARS = 2_000
MAX_EVIDENCE = 32
"""Values of evidence, and layers, that are kept of a finding."""


def pack(
    first_seq: int,
    records: Sequence[Record],
    layouts: Mapping[int, Layout],
    sent_statistics: Mapping[int, int],
    late: Sequence[bool] | None = None,
) -> list[SegmentDraft]:
    """Return the segments of consecutive records, cut wherever the step decreases and where late records begin or end.

    ``late`` tells whether each record is late; None means that none is. Late records with different scalars are cut
    apart too, because each may count its steps differently.

    ``layouts`` are the stored ones, which include the derived statistic; ``sent_statistics`` is the number of columns
    of the writer's own blocks, keyed by layout number. Raises `IngestError` if a record is invalid; then nothing of the
    batch may be stored.
    """
    for offset, record in enumerate(records):
        _check(first_seq + offset, record, layouts, sent_statistics)
    columns, shapes = _to_columns(records, layouts, sent_statistics)
    inner = np.flatnonzero(np.diff(columns.steps) < 0) + 1 if late is None else _late_cuts(records, late)
    cuts = [0, *map(int, inner), len(records)]
    drafts = []
    for start, stop in pairwise(cuts):
        part = columns if len(cuts) == 2 else columns.rows(start, stop)
        drafts.append(
            SegmentDraft(
                first_seq=first_seq + start,
                last_seq=first_seq + stop - 1,
                first_step=int(part.steps[0]),
                last_step=int(part.steps[-1]),
                payload=encode(part),
                columns=part,
                histograms=tuple(draft for row, draft in shapes if start <= row < stop),
                audits=tuple(
                    AuditDraft(step=record.step, audit=cleaned(record.audit))
                    for record in records[start:stop]
                    if record.audit is not None
                ),
                is_late=late is not None and late[start],
            )
        )
    return drafts


def _late_cuts(records: Sequence[Record], late: Sequence[bool]) -> list[int]:
    return [
        row
        for row, (before, record) in enumerate(pairwise(records), 1)
        if late[row] != late[row - 1]
        or record.step < before.step
        or (late[row] and record.scalars.keys() != before.scalars.keys())
    ]


def _check(seq: int, record: Record, layouts: Mapping[int, Layout], sent_statistics: Mapping[int, int]) -> None:
    if not 0 <= record.step <= MAX_STEP:
        raise IngestError("bad_record", f"record {seq}: step {record.step} is not within 0 … 2**63 − 1")
    if len(record.scalars) > MAX_SCALARS:
        raise IngestError(
            "bad_record", f"record {seq}: {len(record.scalars)} scalars; at most {MAX_SCALARS} are allowed"
        )
    for name in record.scalars:
        if not is_name(name):
            raise IngestError(
                "bad_record",
                f"record {seq}: the name of a scalar must have 1 … {MAX_NAME_CHARS} characters, none of them NUL",
            )
    if record.audit is not None:
        _check_audit(seq, record.audit)
    if record.layout is None:
        if record.block is not None or record.histograms:
            raise IngestError("bad_record", f"record {seq}: a block or histogram requires the id of its layout")
        return
    layout = layouts.get(record.layout)
    if layout is None or record.layout not in sent_statistics:
        raise IngestError(
            "unknown_layout",
            f"record {seq}: layout {record.layout} was not part of any hello; send hello again with all layouts",
        )
    layers = len(layout.layers)
    expected = 4 * layers * sent_statistics[record.layout]
    if record.block is not None and len(record.block) != expected:
        raise IngestError(
            "bad_record",
            f"record {seq}: the block has {len(record.block)} bytes; layout {layout.id} has {layers} layers × "
            f"{sent_statistics[record.layout]} statistics × 4 = {expected}",
        )
    seen = set()
    for item in record.histograms:
        if item.which not in QUANTITIES or item.which in seen:
            raise IngestError("bad_record", f"record {seq}: a record may have one histogram of update and one of ratio")
        seen.add(item.which)
        sizes = (len(item.low), len(item.high), len(item.counts))
        if sizes != (4 * layers, 4 * layers, 4 * layers * HISTOGRAM_BINS):
            raise IngestError(
                "bad_record",
                f"record {seq}: low, high and counts of {item.which} have {sizes} bytes for {layers} layers",
            )


def _check_audit(seq: int, audit: Audit) -> None:
    if len(audit.findings) > MAX_CHECKS or len(audit.runs) > MAX_CHECKS:
        raise IngestError("bad_record", f"record {seq}: its audit has more than {MAX_CHECKS} checks or findings")
    names = [*audit.runs, *(finding.check for finding in audit.findings)]
    if not all(is_name(name) and len(name) <= MAX_CHECK_CHARS for name in names):
        message = f"record {seq}: the name of a check must have 1 … {MAX_CHECK_CHARS} characters, none of them NUL"
        raise IngestError("bad_record", message)
    steps = (finding.step for finding in audit.findings if finding.step is not None)
    if not all(0 <= step <= MAX_STEP for step in steps):
        raise IngestError("bad_record", f"record {seq}: the step of a finding is not within 0 … 2**63 − 1")
    if not all(0 <= count <= MAX_STEP for count in audit.runs.values()):
        raise IngestError("bad_record", f"record {seq}: the runs of a check are not within 0 … 2**63 − 1")


def cleaned(audit: Audit) -> Audit:
    """Return a report whose texts and evidence can be stored: bounded, without NUL, NaN and infinities as null."""
    return Audit(runs=audit.runs, findings=tuple(map(_cleaned, audit.findings)))


def _cleaned(finding: AuditFinding) -> AuditFinding:
    evidence: dict[str, float | int | str | None] = {}
    for name, value in list(finding.evidence.items())[:MAX_EVIDENCE]:
        kept = value
        if isinstance(value, str):
            kept = _bounded(value)
        elif isinstance(value, float) and not math.isfinite(value):
            kept = None
        evidence[_bounded(name)] = kept
    return AuditFinding(
        check=finding.check,
        message=finding.message.replace("\0", "")[:MAX_MESSAGE_CHARS],
        layers=tuple(map(_bounded, finding.layers[:MAX_EVIDENCE])),
        evidence=evidence,
        step=finding.step,
    )


def _bounded(text: str) -> str:
    return text.replace("\0", "")[:MAX_NAME_CHARS]


def is_name(name: str) -> bool:
    """Return whether a string may name a scalar, a layer, a project or a tag."""
    return 0 < len(name) <= MAX_NAME_CHARS and "\0" not in name


def _to_columns(
    records: Sequence[Record], layouts: Mapping[int, Layout], sent_statistics: Mapping[int, int]
) -> tuple[Columns, list[tuple[int, HistogramDraft]]]:
    n = len(records)
    found: dict[str, tuple[NDArray[np.bool_], list[float]]] = {}
    rows_of: dict[int, list[int]] = {}
    for row, record in enumerate(records):
        for name, value in record.scalars.items():
            column = found.get(name)
            if column is None:
                column = found[name] = (np.zeros(n, dtype=np.bool_), [])
            column[0][row] = True
            column[1].append(value)
        if record.layout is not None and (record.block is not None or record.histograms):
            rows_of.setdefault(record.layout, []).append(row)
    blocks = []
    shapes: list[tuple[int, HistogramDraft]] = []
    for number, rows in rows_of.items():
        block, drafts = _to_block([records[row] for row in rows], rows, layouts[number], sent_statistics[number])
        blocks.append(block)
        shapes += drafts
    columns = Columns(
        steps=np.array([record.step for record in records], dtype=np.int64),
        times=np.array([record.time for record in records], dtype=np.float64),
        scalars={
            name: ScalarColumn(present=present, values=np.array(values, dtype=np.float64))
            for name, (present, values) in found.items()
        },
        blocks=tuple(blocks),
    )
    return columns, shapes


def _to_block(
    records: Sequence[Record], rows: Sequence[int], layout: Layout, width: int
) -> tuple[BlockColumns, list[tuple[int, HistogramDraft]]]:
    layers = len(layout.layers)
    absent = np.full(layers * width, np.nan, dtype="<f4").tobytes()
    raw = b"".join(absent if record.block is None else record.block for record in records)
    cube = np.frombuffer(raw, dtype="<f4").reshape(len(records), layers, width).transpose(2, 1, 0)
    statistics = {name: np.array(cube[i], order="C") for i, name in enumerate(layout.statistics[:width])}
    drafts = []
    for at, (row, record) in enumerate(zip(rows, records, strict=True)):
        for item in record.histograms:
            dips = None
            if item.which == "ratio":
                dips = dips_of(np.frombuffer(item.counts, "<u4").reshape(layers, HISTOGRAM_BINS))
                derived = statistics.setdefault(
                    DERIVED_STATISTIC, np.full((layers, len(records)), np.nan, dtype=np.float32)
                )
                derived[:, at] = dips
            draft = HistogramDraft(
                step=record.step, layout=layout.id, which=item.which, payload=encode_histogram(item, layers, dips)
            )
            drafts.append((row, draft))
    return BlockColumns(
        layout=layout.id, layers=layers, rows=np.array(rows, dtype=np.int32), statistics=statistics
    ), drafts
