"""Shows what breaks without the parts that Spikewatch adds to uvicorn: a short experiment for each.

    python -m benchmarks.serving

* silent clients: a process with 300 file descriptors meets 400 clients that each send half a request. Compared are
  plain uvicorn with ``limit_concurrency`` and ``timeout_keep_alive``, and the connection limiter.
* SIGTERM: a writer streams frames while its server is ended. Compared are plain uvicorn and the draining server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import httpx
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.event_loop import TOKEN
from client_sdk.protocol import (
    PROTOCOL_VERSION,
    Ack,
    Batch,
    Error,
    Hello,
    Record,
    decode_server_message,
    encode,
)
from server.config import Config
from server.main import create_app
from server.serving import event_loop, service
from server.serving.listener import bind
from server.storage import migrate
from server.storage.database import Database

OPEN_FILES, SILENT = 300, 400
ASKED_FOR = 10.0  # seconds for which an honest client asks while the silent ones are connected
VARIANTS = ("plain uvicorn", "Spikewatch")


def serve(variant: str, home: str, open_files: int) -> None:
    """Run a server of one variant and print its port when it is ready."""
    if open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    config = Config(home=Path(home), data=Path(home), port=0, admin_token=TOKEN, dashboard=False, request_timeout=5.0)
    if variant == "Spikewatch":
        service.serve(config, on_ready=lambda ready: print(ready.port, flush=True))
    else:
        event_loop.run(_serve_plain(config))


async def _serve_plain(config: Config) -> None:
    database = Database(config.resolved_database_url)
    await migrate.upgrade(database)
    listener = bind(config.host, 0)
    print(listener.getsockname()[1], flush=True)
    settings = uvicorn.Config(
        create_app(config, database), lifespan="on", log_config=None, access_log=False, ws="websockets-sansio",
        limit_concurrency=200, timeout_keep_alive=5, timeout_graceful_shutdown=11,
    )  # fmt: skip
    await uvicorn.Server(settings).serve(sockets=[listener])


async def started(variant: str, home: str, open_files: int = 0) -> tuple[asyncio.subprocess.Process, int]:
    """Start a server and return its process and port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.serving", "--serve", variant, "--home", home, "--open-files", str(open_files),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    return process, int(await process.stdout.readline())


async def silent_clients(variant: str) -> str:
    """Return a table row about honest requests while silent clients are connected."""
    with tempfile.TemporaryDirectory() as home:
        process, port = await started(variant, home, OPEN_FILES)
        writers = []
        for _ in range(SILENT):
            try:
                async with asyncio.timeout(1):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
                writers.append(writer)
            except (OSError, TimeoutError):
                break
        answers: list[object] = []
        deadline = time.monotonic() + ASKED_FOR
        while time.monotonic() < deadline:
            try:
                async with httpx.AsyncClient(timeout=1.0) as client:
                    answers.append((await client.get(f"http://127.0.0.1:{port}/readyz")).status_code)
            except httpx.HTTPError as error:
                answers.append(type(error).__name__)
            await asyncio.sleep(0.25)
        descriptors = len(os.listdir(f"/proc/{process.pid}/fd"))
        for writer in writers:
            writer.close()
        process.kill()
        await process.wait()
        good = sum(answer == 200 for answer in answers)
        others = ", ".join(sorted({str(answer) for answer in answers if answer != 200})) or "none"
        return f"| {variant} | {good} of {len(answers)} | {others} | {descriptors} of {OPEN_FILES} |"


async def sigterm(variant: str) -> str:
    """Return a table row about a writer whose server is ended."""
    with tempfile.TemporaryDirectory() as home:
        process, port = await started(variant, home)
        sent = acknowledged = 0
        last = "no error"
        async with connect(
            f"ws://127.0.0.1:{port}/api/v1/ingest",
            additional_headers={"Authorization": f"Bearer {TOKEN}"},
            compression=None,
            proxy=None,
        ) as socket:
            await socket.send(encode(Hello(version=PROTOCOL_VERSION, run_id="run", writer="w", project="p")))
            await socket.recv()

            window = asyncio.Semaphore(64)

            async def stream() -> None:
                nonlocal sent
                while True:
                    await window.acquire()
                    record = Record(step=sent, time=float(sent), scalars={"loss": 1.0})
                    await socket.send(encode(Batch(first_seq=sent + 1, records=(record,))))
                    sent += 1

            streaming = asyncio.create_task(stream())
            asyncio.get_running_loop().call_later(2.0, process.send_signal, signal.SIGTERM)
            try:
                while True:
                    message = decode_server_message(bytes(await socket.recv()))  # type: ignore[arg-type]
                    if isinstance(message, Ack):
                        for _ in range(message.seq - acknowledged):
                            window.release()
                        acknowledged = message.seq
                    elif isinstance(message, Error):
                        last = message.code
            except ConnectionClosed as closed:
                last += f", close {closed.rcvd.code if closed.rcvd is not None else 1006}"
            streaming.cancel()
            await asyncio.gather(streaming, return_exceptions=True)
        code = await process.wait()
        with sqlite3.connect(Path(home) / "spikewatch.sqlite3") as database:
            (committed,) = database.execute("SELECT last_seq FROM writers").fetchone()
        return f"| {variant} | {committed} | {committed - acknowledged} | {last} | {code} |"


async def experiments() -> None:
    """Run both experiments and print their tables."""
    print("| silent clients | answered 200 | other answers | open descriptors |\n|---|---|---|---|")
    for variant in VARIANTS:
        print(await silent_clients(variant), flush=True)
    print("\n| SIGTERM | committed | of these not acknowledged | reported to the writer | exit code |")
    print("|---|---|---|---|---|")
    for variant in VARIANTS:
        for _ in range(3):
            print(await sigterm(variant), flush=True)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--home", help=argparse.SUPPRESS)
    parser.add_argument("--open-files", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve, arguments.home, arguments.open_files)
    else:
        asyncio.run(experiments())


if __name__ == "__main__":
    main()
