"""A process of synthetic writers, each with a real websocket.

    python -m campaigns.load.writers    (a `WriterPlan` on standard input, a `Report` on standard output)

A writer sends a step when it is due, and steps that have gathered meanwhile in one frame. Like the SDK, it reconnects
and continues if the server reports a retryable error. The blocks are a random walk that resembles norms, rounded as by
the SDK; they are generated before the start, so that the generator takes little of the machine.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

import msgspec
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from campaigns.load.plan import Report, WriterPlan, run_id
from client_sdk.precision import compact
from client_sdk.protocol import (
    PROTOCOL_VERSION,
    Ack,
    Batch,
    Error,
    Finish,
    Hello,
    Layout,
    Record,
    Welcome,
    decode_server_message,
    encode,
)

BLOCKS = 64  # different blocks, of which each run begins with another one
CONNECTS_AT_ONCE = 16
FRAME_STEPS = 32  # maximum number of steps in a frame
END_TIMEOUT = 90.0  # seconds after the last step
RETRY_DELAY = 1.0  # seconds


class Writers:
    """Writers of one process."""

    def __init__(self, plan: WriterPlan) -> None:
        """Generate the blocks of the runs in ``plan``."""
        self._plan = plan
        walk = np.random.default_rng(plan.first).normal(0, 0.03, (BLOCKS, plan.layers, plan.statistics))
        values = np.exp(np.cumsum(walk, axis=0)).astype(np.float32)
        self._blocks = [compact(block).tobytes() for block in values]
        self._gate = asyncio.Semaphore(CONNECTS_AT_ONCE)
        self._acknowledged: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        self.commit: list[float] = []
        self.late: list[float] = []
        self.reconnects = 0
        self.errors: list[str] = []

    async def run(self) -> Report:
        """Send all runs and return the report."""
        numbers = range(self._plan.first, self._plan.first + self._plan.count)
        await asyncio.gather(*(self._write(number) for number in numbers))
        return Report(commit=self.commit, late=self.late, reconnects=self.reconnects, errors=self.errors)

    async def _write(self, number: int) -> None:
        plan = self._plan
        self._acknowledged[number] = self._sent[number] = 0
        end = plan.due(number, plan.steps) + END_TIMEOUT
        last: Exception = TimeoutError()
        while self._acknowledged[number] < plan.steps:
            try:
                async with asyncio.timeout(end - time.time()):
                    await self._connected(number)
            except (WebSocketException, OSError, RetryableError) as error:
                last = error
                if time.time() < end:
                    self.reconnects += 1
                    await asyncio.sleep(RETRY_DELAY * (1 + random.random()))
                    continue
            except RuntimeError as error:
                last = error
            else:
                return
            self.errors.append(f"{run_id(number)}: {type(last).__name__}: {last}")
            return

    async def _connected(self, number: int) -> None:
        """Send a run over one connection and return when everything is acknowledged."""
        async with self._gate:
            socket, last_seq = await self._open(number)
        async with socket:
            self._note(number, last_seq)
            sender = asyncio.create_task(self._send(socket, number, last_seq))
            try:
                await self._read(socket, number)
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    async def _open(self, number: int) -> tuple[ClientConnection, int]:
        plan = self._plan
        url = plan.urls[number % len(plan.urls)].replace("http", "ws", 1) + "/api/v1/ingest"
        headers = {"Authorization": f"Bearer {plan.token}"}
        # No pings from the client: an overloaded server reads them as late as everything else.
        socket = await connect(
            url, additional_headers=headers, compression=None, max_size=None, open_timeout=60, ping_interval=None
        )
        layout = Layout(
            id=0,
            layers=tuple(f"blocks.{layer}.weight" for layer in range(plan.layers)),
            statistics=tuple(f"statistic_{at}" for at in range(plan.statistics)),
        )
        run = run_id(number)
        hello = Hello(version=PROTOCOL_VERSION, run_id=run, writer="w", project="load", name=run, layouts=(layout,))
        await socket.send(encode(hello))
        answer = decode_server_message(await socket.recv(decode=False))
        if isinstance(answer, Error):
            raise _exception(answer)
        assert isinstance(answer, Welcome)
        return socket, answer.last_seq

    async def _send(self, socket: ClientConnection, number: int, step: int) -> None:
        plan = self._plan
        while step < plan.steps:
            await asyncio.sleep(max(0.0, plan.due(number, step) - time.time()))
            now = time.time()
            after = next((at for at in range(step + 1, plan.steps) if plan.due(number, at) > now), plan.steps)
            after = min(after, step + FRAME_STEPS)
            records = tuple(
                Record(
                    step=at,
                    time=plan.due(number, at),
                    scalars={"loss": 1.0 + at},
                    layout=0,
                    block=self._blocks[(number * 7 + at) % BLOCKS],
                )
                for at in range(step, after)
            )
            await socket.send(encode(Batch(first_seq=step + 1, records=records)))
            self.late.extend(now - plan.due(number, at) for at in range(max(step, self._sent[number]), after))
            self._sent[number] = max(self._sent[number], after)
            step = after
        await socket.send(encode(Finish(last_seq=plan.steps, state="finished")))

    async def _read(self, socket: ClientConnection, number: int) -> None:
        """Read acknowledgements until all steps are acknowledged."""
        while self._acknowledged[number] < self._plan.steps:
            message = decode_server_message(await socket.recv(decode=False))
            if isinstance(message, Error):
                raise _exception(message)
            if isinstance(message, Ack):
                self._note(number, message.seq)

    def _note(self, number: int, seq: int) -> None:
        """Record that everything up to ``seq`` is durable."""
        now, known = time.time(), self._acknowledged[number]
        self.commit.extend(now - self._plan.due(number, step) for step in range(known, seq))
        self._acknowledged[number] = max(known, seq)


class RetryableError(Exception):
    """The server has reported an error after which the writer may try again."""


def _exception(error: Error) -> Exception:
    text = f"{error.code}: {error.message}"
    return RetryableError(text) if error.retryable else RuntimeError(text)


if __name__ == "__main__":
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=WriterPlan)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(Writers(plan).run())))
