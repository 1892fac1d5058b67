"""Latency and cost of `spikewatch follow`.

    python -m benchmarks.follow [--lines N] [--files N] [--seconds S] [--pixel]

Latency: a program appends a line to a JSON log every 0.2 s and flushes it; `spikewatch follow` reads it in a process of
its own and sends it to a real server on SQLite. The clock runs from the flush until a viewer of the run, on the live
socket, receives the message that the step was committed. Of this, up to 0.1 s is the interval in which files are looked
at. With ``--pixel`` it is measured once more while a real Chromium shows the run's page, until the step is in its text.

Cost: the processor time of `spikewatch follow` while it follows many JSON logs that nobody writes to, and while each
gains a line a second, next to that of the server that stores the lines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from tests.support.embedded import Embedded, embedded

LINES = 100
FILES = 200
SECONDS = 20.0
FIRST = 500_000
"""First step: a number that a page shows for no other reason."""
PAUSE = 0.2  # seconds between two lines
TIMEOUT = 60.0  # seconds
COMMAND = (sys.executable, "-c", "from server.cli import main; main()")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="Latency and cost of `spikewatch follow`.")
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--pixel", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        (folder / "one").mkdir()
        with embedded(folder / "one") as server:
            _print_latency(_latencies(server, folder / "one", options.lines, pixel=False))
        (folder / "many").mkdir()
        with embedded(folder / "many") as server:
            _print_cost(_costs(server, folder / "many", options.files, options.seconds), options.files)
        if options.pixel:
            (folder / "page").mkdir()
            with embedded(folder / "page") as server:
                _print_latency(_latencies(server, folder / "page", options.lines, pixel=True))
    return 0


def _latencies(server: Embedded, folder: Path, lines: int, *, pixel: bool) -> dict[str, list[float]]:
    """Return the seconds from the flush of each line to the live message, and to the pixel."""
    from websockets.sync.client import connect

    path = folder / "train.jsonl"
    with _following(server, folder, path), path.open("w") as file:
        _write(file, FIRST)
        run_id = _wait_for_run(server)
        address = server.url.replace("http", "ws", 1) + f"/api/v1/live?runs={run_id}"
        found: dict[str, list[float]] = {"live message": []}
        with (
            connect(address, additional_headers={"Authorization": f"Bearer {server.token}"}) as live,
            _page(server, run_id) if pixel else contextlib.nullcontext() as page,
        ):
            if page is not None:
                found["pixel"] = []
            for step in range(FIRST + 1, FIRST + lines + 1):
                time.sleep(PAUSE)
                _write(file, step)
                flushed = time.time()
                while not _has_step(json.loads(live.recv(timeout=TIMEOUT)), step):
                    pass
                found["live message"].append(time.time() - flushed)
                if page is not None:
                    page.wait_for_function("step => document.body.innerText.includes(step)", arg=f"{step:,}")
                    found["pixel"].append(time.time() - flushed)
    return found


def _costs(server: Embedded, folder: Path, files: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Return the shares of a core that the follower and the server take, in each situation."""
    logs = folder / "logs"
    logs.mkdir()
    with _following(server, folder, logs) as follower, contextlib.ExitStack() as stack:
        opened = [stack.enter_context((logs / f"train-{n}.jsonl").open("w")) for n in range(files)]
        for file in opened:
            _write(file, 0)
        _wait_until(lambda: _committed(server, files) >= files)
        processes = (psutil.Process(follower.pid), psutil.Process(server.process.pid))
        found = {"no file grows": _shares(processes, lambda _: None, seconds)}

        def grow(second: int) -> None:
            for file in opened:
                _write(file, second + 1)

        found["each gains a line a second"] = _shares(processes, grow, seconds)
        _wait_until(lambda: _committed(server, files) >= files * (int(seconds) + 1))
    return found


def _shares(processes: Sequence[psutil.Process], each_second: Any, seconds: float) -> tuple[float, float]:
    before = [sum(process.cpu_times()[:2]) for process in processes]
    started = time.monotonic()
    for second in range(int(seconds)):
        each_second(second)
        time.sleep(max(0.0, started + second + 1 - time.monotonic()))
    took = time.monotonic() - started
    follower, server = (sum(process.cpu_times()[:2]) - was for process, was in zip(processes, before, strict=True))
    return follower / took, server / took


@contextlib.contextmanager
def _following(server: Embedded, folder: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | server.environment | {"SPIKEWATCH_HOME": str(folder)}
    with subprocess.Popen([*COMMAND, "follow", str(path)], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def _page(server: Embedded, run_id: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    from tests.support.browser import CHROMIUM_FLAGS, CHROMIUM_NAMES

    path = next(name for name in CHROMIUM_NAMES if Path(f"/usr/bin/{name}").exists())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=f"/usr/bin/{path}", args=list(CHROMIUM_FLAGS))
        page = browser.new_context(bypass_csp=True).new_page()
        page.set_default_timeout(TIMEOUT * 1000)
        page.goto(f"{server.url}/?token={server.token}")
        page.goto(f"{server.url}/runs/{run_id}")
        page.wait_for_selector(".js-plotly-plot")
        yield page
        browser.close()


def _write(file: IO[str], step: int) -> None:
    file.write(json.dumps({"step": step, "loss": 1.0 + 0.01 * math.sin(step)}) + "\n")
    file.flush()


def _has_step(message: dict[str, Any], step: int) -> bool:
    return bool(message["type"] == "advance" and message["step_from"] <= step <= message["step_to"])


def _wait_for_run(server: Embedded) -> str:
    with server.api() as api:
        _wait_until(lambda: bool(api.get("/runs").json()["runs"]))
        run_id: str = api.get("/runs").json()["runs"][0]["id"]
        return run_id


def _committed(server: Embedded, files: int) -> int:
    """Return the number of lines that the server has committed."""
    with server.api() as api:
        runs: list[dict[str, Any]] = []
        cursor = None
        while len(runs) < files:
            page = api.get("/runs", params={"limit": 200, **({"cursor": cursor} if cursor else {})}).json()
            runs += page["runs"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    return sum(run["last_step"] + 1 for run in runs if run["last_step"] is not None)


def _wait_until(is_true: Any) -> None:
    deadline = time.monotonic() + 3 * TIMEOUT
    while not is_true():
        if time.monotonic() > deadline:
            raise SystemExit("the server did not receive everything in time")
        time.sleep(0.2)


def _print_latency(found: dict[str, list[float]]) -> None:
    print("from the flush of a line, in milliseconds")
    print(f"{'to the':<16}{'lines':>8}{'median':>10}{'95 %':>10}{'worst':>10}")
    for name, delays in found.items():
        ranked = sorted(delays)
        last = ranked[math.ceil(0.95 * len(ranked)) - 1]
        row = [1000 * value for value in (statistics.median(ranked), last, ranked[-1])]
        print(f"{name:<16}{len(ranked):>8}" + "".join(f"{value:>10.0f}" for value in row))
    print(flush=True)


def _print_cost(found: dict[str, tuple[float, float]], files: int) -> None:
    print(f"share of a core for {files} files, in percent")
    print(f"{'':<30}{'follower':>10}{'server':>10}{'a file':>10}")
    for name, (follower, server) in found.items():
        print(f"{name:<30}{100 * follower:>10.1f}{100 * server:>10.1f}{100 * follower / files:>10.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
