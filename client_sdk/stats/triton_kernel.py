"""All sums of all tensors of a device in one read of (g, w, m, v), as two Triton kernels.

Owns the device code alone; `chunk_table` lays out the work and launches it. The formulas are those of `sums`, in
float32; each program adds the coordinates of one chunk, and a second kernel adds the chunks of a tensor in float64. No
atomics are used, so that equal inputs give equal bits. Importing this module needs triton.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from client_sdk.stats.kernel_code import BIT

KERNEL_SUMS: Final = ("gg", "nonfinite", "ww", "ee", "uu", "uw", "vv", "below", "rr", "ep", "pp")
"""Names of the sums in the order in which `sum_chunks` stores them; a test compares them with `sums.SUMS`."""

BLOCK: Final = 512
"""Coordinates that a program processes at a time; four for each of its 128 threads."""

_UPDATES: Final = tl.constexpr(BIT["updates"])
_FIRST: Final = tl.constexpr(BIT["first"])
_SECOND: Final = tl.constexpr(BIT["second"])
_SQUARED: Final = tl.constexpr(BIT["squared"])
_USES_GRADIENT: Final = tl.constexpr(BIT["uses_gradient"])
_DIVIDED: Final = tl.constexpr(BIT["divided"])
_COUPLED: Final = tl.constexpr(BIT["coupled"])
_DECOUPLED: Final = tl.constexpr(BIT["decoupled"])
_NEGATED: Final = tl.constexpr(BIT["negated"])
_FOLDED: Final = tl.constexpr(BIT["folded"])
_G_KIND: Final = tl.constexpr(16)
_W_KIND: Final = tl.constexpr(18)
_M_KIND: Final = tl.constexpr(20)
_V_KIND: Final = tl.constexpr(22)
_COLUMNS: Final = tl.constexpr(len(KERNEL_SUMS))
_PADDED: Final = tl.constexpr(16)  # the next power of two
_PARTIALS: Final = tl.constexpr(64)  # chunks that the second kernel adds at a time


@triton.jit
def _read(
    address,
    offsets,
    mask,
    dtype: tl.constexpr,
    masked: tl.constexpr,
    aligned: tl.constexpr,
    block: tl.constexpr,
):
    pointers = address.to(tl.pointer_type(dtype)) + offsets
    if aligned:
        # Without the promise the compiler would load one element at a time.
        pointers = tl.max_contiguous(tl.multiple_of(pointers, 16), block)
    return (tl.load(pointers, mask=mask, other=0.0) if masked else tl.load(pointers)).to(tl.float32)


@triton.jit
def _load(
    address,
    offsets,
    mask,
    kind,
    masked: tl.constexpr,
    aligned: tl.constexpr,
    block: tl.constexpr,
):
    """Return coordinates as float32; ``kind`` is 0 for float32, 1 for bfloat16 and 2 for float16."""
    if kind == 0:
        x = _read(address, offsets, mask, tl.float32, masked, aligned, block)
    elif kind == 1:
        x = _read(address, offsets, mask, tl.bfloat16, masked, aligned, block)
    else:
        x = _read(address, offsets, mask, tl.float16, masked, aligned, block)
    return x


@triton.jit
def _add_block(
    sums,
    addresses,
    terms,
    code,
    start,
    stop,
    masked: tl.constexpr,
    aligned: tl.constexpr,
    block: tl.constexpr,
):
    """Return ``sums`` with the coordinates start … start + block − 1 added, those from ``stop`` on left out."""
    gg, nonfinite, ww, ee, uu, uw, vv, below, rr, ep, pp = sums
    g_address, w_address, m_address, v_address = addresses
    direct, momentum, root, floor, threshold, lr, coupled, intake, folded = terms
    offsets = start + tl.arange(0, block)
    mask = offsets < stop
    g = _load(g_address, offsets, mask, (code >> _G_KIND) & 3, masked, aligned, block)
    w = _load(w_address, offsets, mask, (code >> _W_KIND) & 3, masked, aligned, block)
    m = tl.zeros([block], tl.float32)
    v = tl.zeros([block], tl.float32)
    if code & _FIRST:
        m = _load(m_address, offsets, mask, (code >> _M_KIND) & 3, masked, aligned, block)
    if code & _SECOND:
        v = _load(v_address, offsets, mask, (code >> _V_KIND) & 3, masked, aligned, block)
    if code & _FOLDED:
        g -= m * folded
    gg += g * g
    nonfinite += ((g - g) != 0).to(tl.float32)
    ww += w * w
    root_v = v
    if (code & _SECOND) != 0 and (code & _SQUARED) != 0:
        root_v = tl.sqrt_rn(v)
    e = g
    if code & _NEGATED:
        e = -g
    if code & _UPDATES:
        denominator = tl.full([block], 1.0, tl.float32)
        if code & _SECOND:
            denominator = root_v * root + floor
        if code & _COUPLED:
            carried = w
            if code & _FIRST:
                part = m * momentum
                if (code & _DIVIDED) == 0:
                    part = part / denominator
                carried = w + part * lr
            e += carried * coupled
            if code & _USES_GRADIENT:
                e = e / (1.0 - coupled * lr * direct / denominator)
        u = e
        if code & _FIRST:
            u = m
            if code & _USES_GRADIENT:
                u = m + e * (direct / momentum)
        if (code & _DIVIDED) == 0:
            u = u / denominator
        uu += u * u
        if code & _COUPLED:
            ee += e * e
        if code & _DECOUPLED:
            uw += u * w
    if (code & _SECOND) != 0 and (code & _SQUARED) != 0:
        vv += v
        is_below = root_v < threshold
        if masked:
            is_below = is_below & mask
        below += is_below.to(tl.float32)
        ratio = e / tl.maximum(root_v, threshold, propagate_nan=tl.PropagateNan.ALL)
        rr += ratio * ratio
    if (code & _FIRST) != 0 and (code & _DIVIDED) == 0:
        previous = m - e * intake
        ep += e * previous
        pp += previous * previous
    return gg, nonfinite, ww, ee, uu, uw, vv, below, rr, ep, pp


@triton.jit
def sum_chunks(
    partials,  # float32 [chunks, 11]
    chunk_tensor,  # int32 [chunks]
    chunk_start,  # int64 [chunks]
    sizes,  # int64 [tensors]
    codes,  # int32 [tensors]: flags, and the dtype of g, w, m and v in two bits each
    addresses,  # int64 [tensors, 4]: of g, w, m and v
    terms,  # float64 [tensors, 7]: `ELEMENTWISE_TERMS`
    constants,  # float32 [tensors, 2]: `Flags.intake` and `Flags.folded`
    length,  # coordinates of a chunk, a multiple of the block
    aligned: tl.constexpr,
    block: tl.constexpr,
):
    """Store the 11 sums of one chunk for each program. With ``aligned`` every address is a multiple of 16 bytes."""
    chunk = tl.program_id(0)
    tensor = tl.load(chunk_tensor + chunk)
    code = tl.load(codes + tensor)
    start = tl.load(chunk_start + chunk)
    stop = tl.minimum(start + length, tl.load(sizes + tensor))
    if aligned:
        start = tl.multiple_of(start, block)
    row = addresses + tensor * 4
    own_addresses = (tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3))
    row = terms + tensor * 7
    own_terms = (
        tl.load(row).to(tl.float32),
        tl.load(row + 1).to(tl.float32),
        tl.load(row + 2).to(tl.float32),
        tl.load(row + 3).to(tl.float32),
        tl.load(row + 4).to(tl.float32),
        tl.load(row + 5).to(tl.float32),
        tl.load(row + 6).to(tl.float32),
        tl.load(constants + tensor * 2),
        tl.load(constants + tensor * 2 + 1),
    )
    zero = tl.zeros([block], tl.float32)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    whole = ((stop - start) // block).to(tl.int32)
    for at in range(whole):
        sums = _add_block(sums, own_addresses, own_terms, code, start + at * block, stop, False, aligned, block)
    if start + whole * block < stop:
        sums = _add_block(sums, own_addresses, own_terms, code, start + whole * block, stop, True, aligned, block)
    out = partials + chunk.to(tl.int64) * _COLUMNS
    gg, nonfinite, ww, ee, uu, uw, vv, below, rr, ep, pp = sums
    tl.store(out, tl.sum(gg))
    tl.store(out + 1, tl.sum(nonfinite))
    tl.store(out + 2, tl.sum(ww))
    tl.store(out + 3, tl.sum(ee))
    tl.store(out + 4, tl.sum(uu))
    tl.store(out + 5, tl.sum(uw))
    tl.store(out + 6, tl.sum(vv))
    tl.store(out + 7, tl.sum(below))
    tl.store(out + 8, tl.sum(rr))
    tl.store(out + 9, tl.sum(ep))
    tl.store(out + 10, tl.sum(pp))


@triton.jit
def add_chunks(
    table,  # float64 [rows, 11]
    partials,  # float32 [chunks, 11]
    first_chunk,  # int32 [tensors + 1]
    rows,  # int32 [tensors]: row of each tensor in the table
    existing,  # int32 [tensors]: bit i is set if sum i exists
):
    """Add the chunks of one tensor for each program, in float64 and in a fixed order, and store its row."""
    tensor = tl.program_id(0)
    stop = tl.load(first_chunk + tensor + 1)
    columns = tl.arange(0, _PADDED)
    total = tl.zeros([_PARTIALS, _PADDED], tl.float64)
    for start in range(tl.load(first_chunk + tensor), stop, _PARTIALS):
        chunks = start + tl.arange(0, _PARTIALS)
        mask = (chunks < stop)[:, None] & (columns < _COLUMNS)[None, :]
        cells = chunks.to(tl.int64)[:, None] * _COLUMNS + columns[None, :]
        total += tl.load(partials + cells, mask=mask, other=0.0).to(tl.float64)
    exists = ((tl.load(existing + tensor) >> columns) & 1) != 0
    values = tl.where(exists, tl.sum(total, axis=0), float("nan"))
    row = tl.load(rows + tensor).to(tl.int64)
    tl.store(table + row * _COLUMNS + columns, values, mask=columns < _COLUMNS)
