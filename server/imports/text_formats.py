"""Lines that well-known training programs print, as steps and scalars. Pure.

A format may need several lines: Keras names the epoch on one line and its values on a later one. Each parser therefore
remembers the step it has seen last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

NUMBER: Final = r"[-+]?(?:\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
MILLISECONDS: Final = 1e-3  # seconds

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SMALL_I = re.IGNORECASE


@dataclass(kw_only=True)
class Memory:
    """Memory of earlier lines of a file."""

    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """Scalars in a line."""

    step: int
    scalars: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """A family of log lines."""

    name: str
    parse: Callable[[str, Memory], Found | None] = field(repr=False)


def plain(line: str) -> str:
    r"""Return what a terminal shows of a line in the end: without colours, and after the last carriage return.

    >>> plain("\x1b[31mstep: 1\x1b[0m"), plain("10%\r100% done\r")
    ('step: 1', '100% done')
    """
    text = _ANSI.sub("", line).rstrip("\r\n")
    return text.replace("\b", "\r").rsplit("\r", 1)[-1]


def number_in(text: str) -> float | None:
    """Return a number, which may have commas between thousands, or None.

    >>> number_in("7,890"), number_in("6.0E-06"), number_in("nan"), number_in("12%")
    (7890.0, 6e-06, nan, None)
    """
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


_NANOGPT_ITER = re.compile(rf"^iter (\d+): loss ({NUMBER}), time ({NUMBER})ms(?:, mfu ({NUMBER})%)?", _SMALL_I)
_NANOGPT_EVAL = re.compile(rf"^step (\d+): train loss ({NUMBER}), val loss ({NUMBER})", _SMALL_I)
_BUILD_NANOGPT = re.compile(rf"^(\d+) (train|val|hella) ({NUMBER})$", _SMALL_I)


def _nanogpt(line: str, memory: Memory) -> Found | None:
    if found := _NANOGPT_ITER.match(line):
        scalars = {"loss": _value(found[2]), "step_time": _value(found[3]) * MILLISECONDS}
        if found[4] is not None and not found[4].startswith("-"):  # it prints -100 % until it is known
            scalars["mfu"] = _value(found[4])
        return Found(step=int(found[1]), scalars=scalars)
    if found := _NANOGPT_EVAL.match(line):
        return Found(step=int(found[1]), scalars={"train_loss": _value(found[2]), "val_loss": _value(found[3])})
    if found := _BUILD_NANOGPT.match(line):
        name = {"train": "loss", "val": "val_loss", "hella": "hellaswag"}[found[2]]
        return Found(step=int(found[1]), scalars={name: _value(found[3])})
    return None


_LLMC_STEP = re.compile(r"^\s*step\s+(\d+)/\d+\s*\|(.*)")
_LLMC_VALUE = re.compile(rf"(train loss|loss|norm|lr) ({NUMBER})", _SMALL_I)
_LLMC_TIME = re.compile(rf"({NUMBER}) ms\b")
_LLMC_RATE = re.compile(rf"({NUMBER}) tok/s")
_LLMC_VAL = re.compile(rf"^\s*val loss ({NUMBER})", _SMALL_I)
_LLMC_LOG = re.compile(r"^s:(\d+)\s+(?=tel:|trl:|eval:)(.*)")
_LLMC_PAIR = re.compile(rf"(\w+):({NUMBER})", _SMALL_I)
_LLMC_NAMES = {"train loss": "loss", "norm": "grad_norm", "tel": "val_loss", "trl": "loss", "eval": "hellaswag"}


def _llmc(line: str, memory: Memory) -> Found | None:
    if found := _LLMC_STEP.match(line):
        scalars = {_LLMC_NAMES.get(name, name): _value(value) for name, value in _LLMC_VALUE.findall(found[2])}
        if not scalars:
            return None
        if time := _LLMC_TIME.search(found[2]):
            scalars["step_time"] = _value(time[1]) * MILLISECONDS
        if rate := _LLMC_RATE.search(found[2]):
            scalars["tokens_per_second"] = _value(rate[1])
        memory.step = int(found[1])
        return Found(step=memory.step, scalars=scalars)
    if found := _LLMC_VAL.match(line):
        return Found(step=memory.step or 0, scalars={"val_loss": _value(found[1])})
    if found := _LLMC_LOG.match(line):
        pairs = _LLMC_PAIR.findall(found[2])
        return Found(step=int(found[1]), scalars={_LLMC_NAMES.get(name, name): _value(text) for name, text in pairs})
    return None


_MEGATRON_STEP = re.compile(r"\biteration\s+(\d+)/\s*\d+\s*\|(.*)")
_MEGATRON_VALID = re.compile(r"\bvalidation loss at.*?\biteration (\d+)\b[^|]*\|(.*)")
_MEGATRON_NAMES = {"elapsed time per iteration (ms)": "step_time", "consumed samples": "samples"}


def _megatron(line: str, memory: Memory) -> Found | None:
    if found := _MEGATRON_STEP.search(line):
        scalars = {_MEGATRON_NAMES.get(name, name): value for name, value in _segments(found[2])}
        if "step_time" in scalars:
            scalars["step_time"] *= MILLISECONDS
        return Found(step=int(found[1]), scalars=scalars) if scalars else None
    if found := _MEGATRON_VALID.search(line):
        scalars = {f"val/{name.removesuffix(' value')}": value for name, value in _segments(found[2])}
        return Found(step=int(found[1]), scalars=scalars) if scalars else None
    return None


def _segments(text: str) -> Iterator[tuple[str, float]]:
    for segment in text.split("|"):
        name, colon, value = segment.rpartition(":")
        number = number_in(value.strip())
        if colon and number is not None:
            yield name.strip(), number


_TORCHTITAN = re.compile(rf"\b(validate )?step:\s*(\d+)\s+(loss:\s*{NUMBER}.*)", _SMALL_I)
_TORCHTITAN_PAIR = re.compile(rf"(\w+):\s*({NUMBER})", _SMALL_I)
_TORCHTITAN_NAMES = {"tps": "tokens_per_second", "memory": "memory_gib"}


def _torchtitan(line: str, memory: Memory) -> Found | None:
    found = _TORCHTITAN.search(line)
    if found is None:
        return None
    prefix = "val_" if found[1] else ""
    pairs = _TORCHTITAN_PAIR.findall(found[3])
    return Found(
        step=int(found[2]),
        scalars={prefix + _TORCHTITAN_NAMES.get(name, name): _value(value) for name, value in pairs},
    )


_KERAS_EPOCH = re.compile(r"^Epoch (\d+)(?:/\d+)?\s*$")
_KERAS_DONE = re.compile(r"^\s*(\d+)/(\d+|Unknown)\b.*?(?= - )(.*)")
_KERAS_PAIR = re.compile(rf" - ([A-Za-z_][\w/ ]*): ({NUMBER})", _SMALL_I)


def _keras(line: str, memory: Memory) -> Found | None:
    if found := _KERAS_EPOCH.match(line):
        memory.step = int(found[1])
        return None
    found = _KERAS_DONE.match(line)
    if found is None or memory.step is None:
        return None
    scalars = {name: _value(value) for name, value in _KERAS_PAIR.findall(found[3])}
    if not scalars or (found[1] != found[2] and not any(name.startswith("val_") for name in scalars)):
        return None  # values within an epoch are means so far
    step, memory.step = memory.step, None  # what follows before the next epoch is an evaluation
    return Found(step=step, scalars=scalars)


_PAIRS_STEP = re.compile(
    r"(?<![\w/])(?:global[_ ]step|train[_ ]step|iteration|iter|step|it)s?\b[\s:=#\[]*(\d+)", _SMALL_I
)
_PAIRS_EQUAL = re.compile(
    rf"(?<![\w.])([A-Za-z_][\w/.-]*(?: [A-Za-z_][\w/.-]*){{0,2}})\s*[:=]\s*({NUMBER})(?![\w:]*[:/])", _SMALL_I
)
_PAIRS_BARE = re.compile(rf"^\s*([A-Za-z_][\w/.-]*(?: [A-Za-z_]\w*)?) ({NUMBER})")
_PAIRS_LOSS = re.compile(r"loss|nll|perplexity|\bppl\b|cross.?entropy", _SMALL_I)
_STEP_WORDS = frozenset(["step", "steps", "iter", "iters", "iteration", "iterations", "it", "its", "epoch_step"])


def _pairs(line: str, memory: Memory) -> Found | None:
    found = _PAIRS_STEP.search(line)
    if found is None:
        return None
    scalars = {name: _value(value) for name, value in _PAIRS_EQUAL.findall(line)}
    for segment in line.split("|")[1:]:
        if bare := _PAIRS_BARE.match(segment):
            scalars.setdefault(bare[1], _value(bare[2]))
    kept = {name: value for name, value in scalars.items() if name.lower().split()[-1] not in _STEP_WORDS}
    if not any(_PAIRS_LOSS.search(name) for name in kept):
        return None
    return Found(step=int(found[1]), scalars=kept)


def _value(text: str) -> float:
    return float(text.replace(",", ""))


FORMATS: Final = (
    TextFormat(name="nanoGPT", parse=_nanogpt),
    TextFormat(name="llm.c", parse=_llmc),
    TextFormat(name="Megatron", parse=_megatron),
    TextFormat(name="torchtitan", parse=_torchtitan),
    TextFormat(name="Keras", parse=_keras),
    TextFormat(name="pairs", parse=_pairs),
)
"""The formats, the most special first. "pairs" is any line with a step and a loss, such as ``step 5: loss=2.1``."""


def recognise(lines: Iterator[str], enough: int) -> TextFormat | None:
    """Return the format that most of the lines have, or None if none has any.

    It stops when one format other than the general one was found ``enough`` times.
    """
    counts = dict.fromkeys(range(len(FORMATS)), 0)
    memories = [Memory() for _ in FORMATS]
    for line in lines:
        text = plain(line)
        for at, form in enumerate(FORMATS):
            counts[at] += form.parse(text, memories[at]) is not None
        if max(counts[at] for at in range(len(FORMATS) - 1)) >= enough:
            break
    special = max(range(len(FORMATS) - 1), key=lambda at: counts[at])
    if counts[special] > 0:
        return FORMATS[special]
    return FORMATS[-1] if counts[len(FORMATS) - 1] > 0 else None


def named(name: str) -> TextFormat | None:
    """Return the format of a name, or None."""
    return next((form for form in FORMATS if form.name == name), None)
