"""The attack: sends mutated frames to an ingest endpoint and checks every answer."""

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
"""Error codes that blame the frame; `internal` and `storage_unavailable`, which blame the server, are failures."""
CLOSE_CODES = frozenset({1002, 1007, 1009})
"""Close codes with which the websocket layer itself refuses invalid frames."""

WARM = 0.15  # share of connections that begin with a valid hello and a committed record
RENEW = 10  # warm connections after which a worker uses a new run, whose state is empty
WIRE = 0.03  # share of frames whose websocket head is mutated instead of their payload
LARGE = 0.0005  # share of frames beyond the size limit
WORKERS = 8
MAX_FRAMES = 40  # frames on one connection


@dataclass(kw_only=True)
class Tally:
    """Counts of the answers to mutated frames."""

    frames: int = 0
    """Number of frames that were sent."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Number of frames for each kind of answer."""
    failures: list[str] = field(default_factory=list)
    """Descriptions of the frames that were mishandled."""

    def note(self, outcome: str, *, failed: bool = False, frame: bytes = b"") -> None:
        """Count a frame with its outcome, and describe it if it was mishandled."""
        self.frames += 1
        self.outcomes[outcome] += 1
        if failed:
            self.failures.append(f"{outcome}, frame {self.frames:,}: {len(frame)} bytes {frame[:200].hex(' ')}")


async def attack(port: int, token: str, *, frames: int, seed: int) -> Tally:
    """Send at least ``frames`` mutated frames, waiting on each connection for an answer before the next one."""
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
                    assert isinstance(answer, kind), f"a valid client was refused: {answer}"
            for _ in range(MAX_FRAMES):
                if tally.frames >= frames or not await _one(socket, chance, good, tally):
                    break


async def _one(socket: Socket, chance: random.Random, good: list[bytes], tally: Tally) -> bool:
    """Send one mutated frame, count its answer, and return whether the connection continues."""
    frame = mutate(chance, good)
    is_wire = chance.random() < WIRE
    if is_wire:
        socket.send_raw(chance.randbytes(2) + frame[: chance.randrange(64)] + chance.randbytes(16))
        socket.send(bytes(2))  # completes or breaks the frame that has begun
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
        tally.note(f"an invalid answer ({error})", failed=True, frame=frame)
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
    """Return the end of a connection with a random frame head.

    The head may announce more bytes than follow; the connection is then cut, as by a client that crashes.
    """
    try:
        async with asyncio.timeout(0.05):
            while True:
                answer = await socket.answer()
                if isinstance(answer, Error | Closed):
                    return answer
    except TimeoutError:
        return Closed(code=None)
