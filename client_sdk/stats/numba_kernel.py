"""All sums of all tensors on the CPU in one read of (g, w, m, v), compiled by numba.

Owns the compiled code alone; `host_table` lays out the work and calls it. The formulas are those of `sums`, in float32.
Coordinates are processed in blocks that stay in the first-level cache, with a simple loop for each quantity, so that
one compiled function serves every combination of flags; the sums of a block are added in float64. Importing this module
needs numba.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from client_sdk.stats.kernel_code import BIT, KIND_BITS
from client_sdk.stats.sums import SUM, SUMS

KERNEL_SUMS: Final = ("gg", "nonfinite", "ww", "ee", "uu", "uw", "vv", "below", "rr", "ep", "pp")
"""Names of the sums that are computed; a test compares them with `sums.SUMS`."""
BLOCK: Final = 1024
"""Coordinates of a block; eight arrays of 4 KiB."""
LONG_BLOCK: Final = 4096
"""Coordinates of a block of which nothing is stored."""

_COUNT = len(SUMS)
_GG, _NONFINITE, _WW, _EE, _UU, _UW, _VV, _BELOW, _RR, _EP, _PP = (SUM[name] for name in KERNEL_SUMS)
_UPDATES, _FIRST, _SECOND, _SQUARED = BIT["updates"], BIT["first"], BIT["second"], BIT["squared"]
_USES_GRADIENT, _DIVIDED, _COUPLED = BIT["uses_gradient"], BIT["divided"], BIT["coupled"]
_DECOUPLED, _NEGATED, _FOLDED = BIT["decoupled"], BIT["negated"], BIT["folded"]
_ADAM = _UPDATES | _FIRST | _SECOND | _SQUARED
_BRANCHES = _ADAM | _USES_GRADIENT | _DIVIDED | _COUPLED | _FOLDED
_ONE, _ZERO = np.float32(1), np.float32(0)
# The order of additions is free, but NaN and infinities keep their meaning.
_compiled: Final = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


def _pointer(target):
    @intrinsic
    def pointer(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(target)(address), generate

    return pointer


_float32_at = _pointer(types.float32)
_uint16_at = _pointer(types.uint16)


@_compiled
def _block(address, kind, start, count, buffer):
    """Return coordinates as float32: where they lie, or in ``buffer`` if they are bfloat16."""
    if kind == 0:
        return carray(_float32_at(address + 4 * start), (count,))
    source = carray(_uint16_at(address + 2 * start), (count,))
    bits = buffer.view(np.uint32)
    for i in range(count):
        bits[i] = np.uint32(source[i]) << np.uint32(16)
    return buffer[:count]


@_compiled
def _dot(a, b):
    total = _ZERO
    for i in range(len(a)):
        total += a[i] * b[i]
    return np.float64(total)


@_compiled
def _effective_gradient(code, g, w, m, denominator, terms, e):
    """Store the gradient as the optimizer used it in ``e``, and return it; see `sums.effective_gradient`."""
    sign = -_ONE if code & _NEGATED else _ONE
    direct, momentum, lr, coupled = (
        np.float32(terms[0]),
        np.float32(terms[1]),
        np.float32(terms[5]),
        np.float32(terms[6]),
    )
    count = len(g)
    if not code & _UPDATES or not code & _COUPLED:
        for i in range(count):
            e[i] = sign * g[i]
        return e[:count]
    if not code & _FIRST:
        for i in range(count):
            e[i] = sign * g[i] + w[i] * coupled
    elif code & _DIVIDED:
        for i in range(count):
            e[i] = sign * g[i] + (w[i] + m[i] * momentum * lr) * coupled
    else:
        for i in range(count):
            e[i] = sign * g[i] + (w[i] + m[i] * momentum / denominator[i] * lr) * coupled
    if code & _USES_GRADIENT:
        feedback = coupled * lr * direct
        for i in range(count):
            e[i] /= _ONE - feedback / denominator[i]
    return e[:count]


@_compiled
def _add_adam(code, g, w, m, v, terms, intake, out):
    """Add the sums of one block to ``out`` in a single loop, for Adam without coupled weight decay and its like.

    It reads memory and computes at the same time, which is what most trainings need.
    """
    root, floor, threshold = np.float32(terms[2]), np.float32(terms[3]), np.float32(terms[4])
    sign = -_ONE if code & _NEGATED else _ONE
    gg, ww, uu, uw = _ZERO, _ZERO, _ZERO, _ZERO
    vv, below, rr, ep, pp = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for i in range(len(g)):
        root_v = np.sqrt(v[i])
        u = m[i] / (root_v * root + floor)
        e = sign * g[i]
        ratio = e / (threshold if root_v < threshold else root_v)  # NaN stays NaN
        previous = m[i] - intake * e
        gg += g[i] * g[i]
        ww += w[i] * w[i]
        uu += u * u
        uw += u * w[i]
        vv += v[i]
        below += _ONE if root_v < threshold else _ZERO
        rr += ratio * ratio
        ep += e * previous
        pp += previous * previous
    out[_GG] += gg
    out[_WW] += ww
    out[_UU] += uu
    out[_UW] += uw
    out[_VV] += vv
    out[_BELOW] += below
    out[_RR] += rr
    out[_EP] += ep
    out[_PP] += pp
    if not np.isfinite(gg):
        out[_NONFINITE] += _count_nonfinite(g)


@_compiled
def _count_nonfinite(g):
    count = 0.0
    for i in range(len(g)):
        if not np.isfinite(g[i]):
            count += 1.0
    return count


@_compiled
def _add_block(code, g, w, m, v, terms, constants, buffers, out):
    """Add the sums of one block to ``out``, [13]; ``buffers`` are four arrays of the length of a block."""
    direct, momentum, root = np.float32(terms[0]), np.float32(terms[1]), np.float32(terms[2])
    floor, threshold = np.float32(terms[3]), np.float32(terms[4])
    intake, folded = np.float32(constants[0]), np.float32(constants[1])
    count = len(g)
    if code & _FOLDED:
        unfolded = buffers[3]
        for i in range(count):
            unfolded[i] = g[i] - folded * m[i]
        g = unfolded[:count]
    gg = _dot(g, g)
    out[_GG] += gg
    if not np.isfinite(gg):
        out[_NONFINITE] += _count_nonfinite(g)
    out[_WW] += _dot(w, w)
    root_v = buffers[0][:count]
    denominator = buffers[1][:count]
    if code & _SECOND:
        if code & _SQUARED:
            for i in range(count):
                root_v[i] = np.sqrt(v[i])
        else:
            for i in range(count):
                root_v[i] = v[i]
        for i in range(count):
            denominator[i] = root_v[i] * root + floor
    else:
        for i in range(count):
            denominator[i] = _ONE
    e = g
    if code & (_NEGATED | _COUPLED):
        e = _effective_gradient(code, g, w, m, denominator, terms, buffers[2])
    if code & _UPDATES:
        u = denominator  # which is not needed any more
        if code & _DIVIDED:
            u = m
        elif not code & _FIRST:
            for i in range(count):
                u[i] = e[i] / denominator[i]
        elif code & _USES_GRADIENT:
            share = direct / momentum
            for i in range(count):
                u[i] = (m[i] + e[i] * share) / denominator[i]
        else:
            for i in range(count):
                u[i] = m[i] / denominator[i]
        out[_UU] += _dot(u, u)
        if code & _COUPLED:
            out[_EE] += _dot(e, e)
        if code & _DECOUPLED:
            out[_UW] += _dot(u, w)
    if code & _SECOND and code & _SQUARED:
        total, below, ratios = _ZERO, _ZERO, _ZERO
        for i in range(count):
            total += v[i]
        for i in range(count):
            below += _ONE if root_v[i] < threshold else _ZERO
        for i in range(count):
            ratio = e[i] / (threshold if root_v[i] < threshold else root_v[i])  # NaN stays NaN
            ratios += ratio * ratio
        out[_VV] += total
        out[_BELOW] += below
        out[_RR] += ratios
    if code & _FIRST and not code & _DIVIDED:
        along, past = _ZERO, _ZERO
        for i in range(count):
            previous = m[i] - intake * e[i]
            along += e[i] * previous
            past += previous * previous
        out[_EP] += along
        out[_PP] += past


@_compiled
def sum_chunks(first, last, tensors, starts, length, sizes, codes, addresses, terms, constants, partials):
    """Store the sums of the chunks ``first`` … ``last`` − 1 in ``partials``, [chunks, 13] float64.

    ``tensors`` int64 and ``starts`` int64 [chunks] are the tensor and the first coordinate of each chunk; ``sizes``
    int64 and ``codes`` int64 [tensors], ``addresses`` int64 [tensors, 4], ``terms`` float64 [tensors, 7] and
    ``constants`` float64 [tensors, 2] describe the tensors.
    """
    buffers = np.empty((8, BLOCK), np.float32)
    nothing = buffers[7]
    for chunk in range(first, last):
        tensor = tensors[chunk]
        code = codes[tensor]
        out = partials[chunk]
        out[:] = 0.0
        stop = min(starts[chunk] + length, sizes[tensor])
        is_adam = code & _BRANCHES == _ADAM
        step = LONG_BLOCK if is_adam and code >> KIND_BITS == 0 else BLOCK
        for start in range(starts[chunk], stop, step):
            count = min(step, stop - start)
            g = _block(addresses[tensor, 0], (code >> KIND_BITS) & 3, start, count, buffers[4])
            w = _block(addresses[tensor, 1], (code >> (KIND_BITS + 2)) & 3, start, count, buffers[5])
            m = nothing
            if code & _FIRST:
                m = _block(addresses[tensor, 2], (code >> (KIND_BITS + 4)) & 3, start, count, buffers[6])
            v = nothing
            if code & _SECOND:
                v = _block(addresses[tensor, 3], (code >> (KIND_BITS + 6)) & 3, start, count, buffers[7])
            if is_adam:
                _add_adam(code, g, w, m, v, terms[tensor], np.float32(constants[tensor, 0]), out)
            else:
                _add_block(code, g, w, m, v, terms[tensor], constants[tensor], buffers, out)
