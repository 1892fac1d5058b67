"""Names of layers as labels: short, distinct, and by block. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

BLOCK: Final = re.compile(r"^(?:[^.]+\.)*?\d+(?=\.)")
"""The part of a name up to its first number, such as h.3 in h.3.attn.c_attn.weight."""


def block_of(name: str) -> str:
    """Return the block of a layer, or "" if its name has no number followed by another part.

    >>> block_of("transformer.h.3.attn.c_attn.weight"), block_of("lm_head.weight")
    ('transformer.h.3', '')
    """
    found = BLOCK.match(name)
    return found.group() if found else ""


def short_names(layers: Sequence[str], width: int) -> list[str]:
    """Return names of at most ``width`` characters, distinct as far as the width allows.

    A long name loses the leading parts that all names share, then `blocks.0.` becomes `b0.`, what stands before it in
    all names with blocks is left out, and the end `weight` becomes `w` and `bias` becomes `b`. The rest is cut out of
    the middle, where it leaves the names most distinct.
    """
    parts = [name.split(".") for name in layers]
    shared = 0
    if len(parts) > 1:
        fronts = zip(*(part[:-1] for part in parts), strict=False)
        shared = next((i for i, front in enumerate(fronts) if len(set(front)) > 1), min(map(len, parts)) - 1)
    stems = {block.rpartition(".")[0].rpartition(".")[0] for name in layers if (block := block_of(name))}
    stem = f"{stems.pop()}." if len(stems) == 1 else ""
    names: list[str] = []
    for name, part in zip(layers, parts, strict=True):
        short = name
        if len(short) > width:
            short = ".".join(part[shared:])
        if len(short) > width:
            short = re.sub(r"(?<![^.])([A-Za-z])[A-Za-z_]*\.(\d+)(?=\.)", r"\1\2", short)
        if len(short) > width:
            short = short.removeprefix(stem)
        if len(short) > width:
            short = re.sub(r"\.(w)eight$|\.(b)ias$", lambda end: f".{end.group(1) or end.group(2)}", short)
        names.append(short)
    return _cut(names, width)


def _cut(names: Sequence[str], width: int) -> list[str]:
    """Return the names with the middle of long ones left out, so that as many as possible stay distinct."""
    if all(len(name) <= width for name in names):
        return list(names)

    def cut(tail: int) -> list[str]:
        head = width - 1 - tail
        return [
            name if len(name) <= width else f"{name[:head]}…{name[len(name) - tail :]}" if tail else f"{name[:head]}…"
            for name in names
        ]

    middle = (width - 1) * 2 // 3
    tails = sorted(range(width), key=lambda tail: abs(tail - middle))
    return max(map(cut, tails), key=lambda shown: len(set(shown)))
