"""Sends mutated frames to an ingest endpoint and judges every answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec

from campaigns.fuzz.client import Closed, Socket
from campaigns.fuzz.mutations import examples, hello, mutate
from client_sdk.protocol import Ack, Batch, Error, Welcome, encode
from tests.support.writer import record

CODES = frozenset(
    {
        "malformed",
        "too_large",
        "unsupported_version",
        "hello_first",
        "unknown_layout",
        "bad_layout",
        "bad_record",
        "sequence_gap",
        "writer_taken",
        "forbidden",
    }
)
"""What may be wrong with a frame; the server itself must have no trouble: no `internal`, no `storage_unavailable`."""
CLOSE_CODES = frozenset({1002, 1007, 1009})
"""What the websocket layer says by itself of frames that are none."""

WARM = 0.15  # share of connections that say a good hello and commit a record first
RENEW = 10  # warm connections after which a worker takes a new run, in which nothing is known yet
WIRE = 0.03  # share of frames whose websocket head is mutated, not their payload
LARGE = 0.0005  # share of frames beyond the limit of a frame
WORKERS = 8
MANY = 40  # frames on one connection, at most


@dataclass(kw_only=True)
class Tally:
    """What came of the frames."""

    frames: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def note(self, outcome: str, *, failed: bool = False, frame: bytes = b"") -> None:
        self.frames += 1
        self.outcomes[outcome] += 1
        if failed:
            self.failures.append(f"{outcome}, frame {self.frames:,}: {len(frame)} bytes {frame[:200].hex(' ')}")


async def attack(port: int, token: str, *, frames: int, seed: int) -> Tally:
    """At least ``frames`` mutated frames, each answered before the next on its connection."""
    tally = Tally()
    await asyncio.gather(*(_work(port, token, tally, frames=frames, seed=f"{seed}/{n}") for n in range(WORKERS)))
    return tally


async def _work(port: int, token: str, tally: Tally, *, frames: int, seed: str) -> None:
    good, chance = examples(), random.Random(seed)
    warm = 0
    while tally.frames < frames:
        async with Socket(port, token) as socket:
            if chance.random() < WARM:
                name = f"fuzz{seed.replace('/', '-')}-{warm // RENEW}"
                warm += 1
                socket.send(hello(name, name))
                socket.send(encode(Batch(first_seq=1, records=(record(0),))))
                for kind in (Welcome, Ack):
                    answer = await socket.answer()
                    assert isinstance(answer, kind), f"a good client was refused: {answer}"
            for _ in range(MANY):
                if tally.frames >= frames or not await _one(socket, chance, good, tally):
                    break


async def _one(socket: Socket, chance: random.Random, good: list[bytes], tally: Tally) -> bool:
    """False when the connection is over."""
    frame = mutate(chance, good)
    is_wire = chance.random() < WIRE
    if is_wire:
        socket.send_raw(chance.randbytes(2) + frame[: chance.randrange(64)] + chance.randbytes(16))
        socket.send(bytes(2))  # completes or breaks whatever was begun
    elif chance.random() < LARGE:
        frame = bytes(8 * 1024 * 1024 + 1 + chance.randrange(1024))
        socket.send(frame)
    else:
        socket.send(frame)
    try:
        answer = await (_end_of(socket) if is_wire else socket.answer())
    except TimeoutError:
        tally.note("no answer", failed=True, frame=frame)
        return False
    except msgspec.DecodeError as error:
        tally.note(f"an answer that is none ({error})", failed=True, frame=frame)
        return False
    match answer:
        case Error(code=code):
            tally.note(code, failed=code not in CODES, frame=frame)
            return False
        case Closed(code=code):
            tally.note(f"closed with {code}", failed=not is_wire and code not in CLOSE_CODES, frame=frame)
            return False
        case _:
            tally.note(type(answer).__name__.lower())
            return True


async def _end_of(socket: Socket) -> Error | Closed:
    """A head of random bytes may announce more than comes; then we end what we began, as a client that crashes."""
    try:
        async with asyncio.timeout(0.05):
            while True:
                answer = await socket.answer()
                if isinstance(answer, Error | Closed):
                    return answer
    except TimeoutError:
        return Closed(code=None)
