"""Invalid frames, derived from valid ones. Pure: a seed determines them."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from client_sdk.protocol import Batch, Finish, Hello, Layout, Optimizer, Record, encode
from tests.support.writer import LAYOUT, histogram, record

HUGE = (b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xf0", b"\xdb\x7f\xff\xff\xff")
"""Heads of msgpack arrays, maps, bytes and strings with lengths of gigabytes."""

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), math.nan, math.inf, -math.inf, 1e308, 5e-324,
    "", "x" * 300, "\0", "ü😀", "../../etc", b"", b"\0" * 7, [], {}, [[]], {"": {}}, ["a"] * 1_001,
)  # fmt: skip


def examples() -> list[bytes]:
    """Return frames that valid clients send; the second is the hello that the others belong to."""
    optimizer = Optimizer(name="AdamW", family="adam", lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
    many = Layout(id=1, layers=tuple(f"layer{n}" for n in range(40)), statistics=("grad_norm",), optimizer=optimizer)
    shapes = (histogram("update", [[1] * 64, [2] * 64]), histogram("ratio", [list(range(64)), [0] * 64]))
    block = [[1.0, math.nan], [math.inf, 5e-324]]
    blocks = tuple(record(step, block=block, lr=1e-3, odd=math.nan) for step in range(20))
    wide = Record(step=3, time=1.0, scalars={}, layout=1, block=np.arange(40, dtype="<f4").tobytes())
    return [
        encode(Hello(version=1, run_id=None, writer="nameless", project="project")),
        hello(),
        encode(Hello(version=1, run_id="fuzz", writer="fuzz", project="project", layouts=(LAYOUT, many))),
        encode(Batch(first_seq=2, records=(record(1),))),
        encode(Batch(first_seq=2, records=blocks)),
        encode(Batch(first_seq=2, records=(record(1, block=block, histograms=shapes), record(0)))),
        encode(Batch(first_seq=2, records=(wide,))),
        encode(Batch(first_seq=1, records=tuple(record(step) for step in range(300)))),
        encode(Finish(last_seq=1)),
    ]


def hello(run_id: str = "fuzz", writer: str = "fuzz") -> bytes:
    """Return a valid hello with two layouts."""
    many = Layout(id=1, layers=tuple(f"layer{n}" for n in range(40)), statistics=("grad_norm",))
    config = {"lr": 1e-3, "deep": {"list": [1, None, "x"]}}
    return encode(
        Hello(version=1, run_id=run_id, writer=writer, project="project", config=config, layouts=(LAYOUT, many))
    )


def mutate(chance: random.Random, frames: Sequence[bytes]) -> bytes:
    """Return one of ``frames`` with one to three mutations, which may happen to leave it valid."""
    frame = chance.choice(frames)
    for _ in range(chance.choice((1, 1, 1, 1, 1, 2, 3))):
        frame = chance.choice(MUTATIONS)(chance, frame, frames)
    return frame


def _flip(chance: random.Random, frame: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(frame)
    for _bit in range(chance.choice((1, 1, 2, 8, 64)) if changed else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncate(chance: random.Random, frame: bytes, _: Sequence[bytes]) -> bytes:
    return frame[: chance.randrange(len(frame) + 1)]


def _splice(chance: random.Random, frame: bytes, frames: Sequence[bytes]) -> bytes:
    other = chance.choice(frames)
    return frame[: chance.randrange(len(frame) + 1)] + other[chance.randrange(len(other)) :]


def _insert(chance: random.Random, frame: bytes, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(frame) + 1)
    return frame[:at] + chance.randbytes(chance.choice((1, 4, 64))) + frame[at:]


def _lengthen(chance: random.Random, frame: bytes, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(frame) + 1)
    return frame[:at] + chance.choice(HUGE) + frame[at + chance.choice((0, 1, 5)) :]


def _retype(chance: random.Random, frame: bytes, _: Sequence[bytes]) -> bytes:
    """Replace a random value of the message by another one."""
    try:
        message = msgspec.msgpack.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return frame
    at: Any = message
    while isinstance(at, dict | list) and at:
        key = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
        if not isinstance(at[key], dict | list) or not at[key] or chance.random() < 0.2:
            alike = [value for value in ODD_VALUES if type(value) is type(at[key])]
            at[key] = chance.choice(alike if alike and chance.random() < 0.7 else ODD_VALUES)
            break
        at = at[key]
    try:
        return msgspec.msgpack.encode(message)
    except (OverflowError, ValueError, TypeError, RecursionError):
        return frame


def _drop_key(chance: random.Random, frame: bytes, _: Sequence[bytes]) -> bytes:
    try:
        message = msgspec.msgpack.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return frame
    if isinstance(message, dict) and message:
        del message[chance.choice(list(message))]
    return msgspec.msgpack.encode(message)


def _nest(chance: random.Random, frame: bytes, _: Sequence[bytes]) -> bytes:
    """Put deeply nested arrays or maps into the config, or in place of the message."""
    bomb = chance.choice((b"\x91", b"\x81\xa1a")) * chance.choice((10, 500, 20_000)) + b"\xc0"
    at = frame.find(b"\xa6config")
    return bomb if at < 0 or chance.random() < 0.5 else frame[: at + 7] + bomb + frame[at + 7 :]


def _repeat(chance: random.Random, frame: bytes, _: Sequence[bytes]) -> bytes:
    return frame * chance.choice((2, 3, 50))


def _float(chance: random.Random, frame: bytes, _: Sequence[bytes]) -> bytes:
    """Replace the bits of a float64, which mostly gives a valid frame with other numbers."""
    at = frame.find(b"\xcb", chance.randrange(len(frame) + 1))
    if at < 0:
        return frame
    return frame[: at + 1] + struct.pack(">Q", chance.getrandbits(64)) + frame[at + 9 :]


MUTATIONS: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    *(_flip, _truncate, _splice, _insert, _lengthen, _nest, _repeat, _drop_key),
    *(_retype,) * 8,  # these and the next mostly decode, so they reach the validation behind the decoder
    *(_float,) * 4,
)
