"""Slow databases and floods: the effect of one run on the others and on the server is bounded."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

from campaigns.fuzz.client import Socket
from campaigns.fuzz.mutations import hello
from client_sdk.protocol import Ack, Batch, Record, Welcome, encode
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

FRAME = 256 * 1024  # bytes, approximately
# maximum bytes that a server which has stopped reading may have received, kernel buffers included
MAX_BUFFERED = 64 * 1024 * 1024
STUCK = 1.0  # seconds without room in the buffers


def _port(server: RunningServer) -> int:
    return int(server.url.rsplit(":", 1)[1])


def _large(first_seq: int) -> bytes:
    """Return a batch of about `FRAME` bytes."""
    count = FRAME // 1024
    values = {f"metric_{n}": n / 7 for n in range(50)}
    records = tuple(Record(step=first_seq + n, time=1.0, scalars=values) for n in range(count))
    return encode(Batch(first_seq=first_seq, records=records))


async def _has_room(socket: Socket) -> bool:
    try:
        await asyncio.wait_for(socket.drain(), STUCK)
    except TimeoutError:
        return False
    return True


async def test_a_database_that_stands_still_stops_the_reading_and_loses_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        async with Socket(_port(server), server.token) as socket:
            socket.send(hello("run", "writer"))
            assert isinstance(await socket.answer(), Welcome)
            blocker = sqlite3.connect(tmp_path / "data" / "spikewatch.sqlite3", isolation_level=None)
            blocker.execute("BEGIN IMMEDIATE")
            sent, seq = 0, 0
            while await _has_room(socket):
                frame = _large(seq + 1)
                socket.send(frame)
                sent, seq = sent + len(frame), seq + FRAME // 1024
                assert sent < MAX_BUFFERED, "the server continues to read"
            blocker.execute("ROLLBACK")
            blocker.close()
            acknowledged = 0
            while acknowledged < seq:
                answer = await socket.answer()
                assert isinstance(answer, Ack), answer
                acknowledged = answer.seq
        with server.api() as api:
            assert api.get("/runs/run").json()["last_step"] == seq


def test_a_flood_does_not_starve_a_calm_run(tmp_path: Path, database_url: str) -> None:
    with running_server(tmp_path, database_url=database_url) as server:
        is_calm_done = threading.Event()
        flooded: list[int] = []

        def flood(number: int) -> None:
            with server.connect("/ingest") as socket:
                writer = Writer(socket)
                writer.hello(f"flood{number}", f"flood{number}")
                while not is_calm_done.is_set():
                    for _ in range(8):
                        writer.socket.send(_large(writer.seq + 1))
                        writer.seq += FRAME // 1024
                    writer.wait_for(writer.seq)
                flooded.append(writer.seq)

        floods = [threading.Thread(target=flood, args=(number,)) for number in range(2)]
        for thread in floods:
            thread.start()
        try:
            with server.connect("/ingest") as socket:
                calm = Writer(socket)
                calm.hello("calm", "calm")
                for step in range(20):
                    calm.commit(record(step))  # each record is acknowledged while the floods continue
        finally:
            is_calm_done.set()
            for thread in floods:
                thread.join(60)
        assert len(flooded) == 2
        assert min(flooded) > 0
