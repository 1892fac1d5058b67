"""Time that a person waits for the pages of the dashboard, in a real Chromium with an empty profile.

    python -m benchmarks.page_speed [--repeats N] [--keep DIR] [--long] [--profile FILE]

A server in a process of its own holds a run of 20,000 steps × 150 layers, with ``--long`` also one of 1,000,000 × 300,
and 50 short runs. Measured are, from the request of the address in a fresh profile:

* fleet: until every row is drawn;
* run: until the loss is drawn, and until all three panels are drawn;
* zoom: from a drag across the heatmap until it shows the exact steps of the range;
* histogram or acknowledgement: nothing here, the tests cover them;
* block: the longest task of the main thread during each of these, by the browser's own account;
* transferred: bytes of all answers, compressed as they travel.

Software rendering on a shared machine is noisy: each figure is the median of the repeats, and the time that a fixed
amount of JavaScript takes in the same browser is printed beside it, so that two machines can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, BrowserContext, CDPSession, Page, sync_playwright
from websockets.sync.client import connect

from benchmarks.long_run import STATISTICS, LongRun
from benchmarks.recordings import load
from client_sdk.protocol import Layout, Record
from server.storage import migrate
from server.storage.database import Database
from tests.support.browser import CHROMIUM_FLAGS, CHROMIUM_NAMES
from tests.support.embedded import Embedded, embedded
from tests.support.writer import Writer

SIZES = {"short": (20_000, 150), "long": (1_000_000, 300)}
FLEET = 50
SCALARS = ("loss", "lambda_max", "stability_limit", "lambda_step")
TIMEOUT = 60_000.0  # milliseconds

FLEET_DRAWN = f"document.querySelectorAll('a.fleet-row').length >= {FLEET}"
LOSS_DRAWN = "document.querySelector('.panel.loss .subplot.xy') !== null"
ALL_DRAWN = "document.querySelectorAll('.panels .graph-box .subplot.xy').length >= 3"
WATCH_TASKS = """window.longest = 0;
    new PerformanceObserver(list => { for (const task of list.getEntries())
        window.longest = Math.max(window.longest, task.duration); }).observe({type: "longtask", buffered: true});"""
FIXED_WORK = """() => { const began = performance.now(); let x = 1;
    for (let i = 0; i < 3e7; i++) x = (x * 1103515245 + 12345) % 2147483648;
    return performance.now() - began; }"""
EXACT_ZOOM = """() => { const plot = document.querySelector('.panel.layers .js-plotly-plot');
    const x = plot && plot._fullData[0] && plot._fullData[0].x; return x && x.length > 1 && x[1] - x[0] === 1; }"""


@dataclass
class Visit:
    """Measurements of one visit."""

    milliseconds: dict[str, float] = field(default_factory=dict)
    """Time until each picture was complete, keyed by its name."""
    block: float = 0.0
    """Longest task of the main thread in milliseconds."""
    transferred: float = 0.0
    """Bytes of all answers as they travelled."""


class Meter:
    """Takes the times of one page in a fresh profile."""

    def __init__(self, browser: Browser, server: Embedded) -> None:
        self._context: BrowserContext = browser.new_context(
            viewport={"width": 1440, "height": 900}, color_scheme="dark", bypass_csp=True
        )
        self._context.set_default_timeout(TIMEOUT)
        self._context.add_init_script(WATCH_TASKS)
        self._server = server
        self._log_in()
        self.page: Page = self._context.new_page()
        self.cdp: CDPSession = self._context.new_cdp_session(self.page)
        self.cdp.send("Network.enable")
        self.cdp.send("Network.clearBrowserCache")
        self.visit = Visit()
        self.cdp.on("Network.loadingFinished", self._count)

    def _log_in(self) -> None:
        answer = self._context.request.get(f"{self._server.url}/?token={self._server.token}")
        assert answer.ok, answer.status

    def _count(self, event: dict[str, float]) -> None:
        self.visit.transferred += event["encodedDataLength"]

    def open(self, address: str, **pictures: str) -> None:
        """Open an address and take the time until each picture is complete, given as JavaScript conditions."""
        began = time.perf_counter()
        self.page.goto(self._server.url + address, wait_until="commit")
        for name, condition in pictures.items():
            self.page.wait_for_function(condition, polling="raf")
            self.visit.milliseconds[name] = 1e3 * (time.perf_counter() - began)

    def zoom(self) -> None:
        """Drag across the heatmap and take the time until the exact steps are drawn."""
        area = self.page.locator(".panel.layers .nsewdrag").first
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        assert box is not None
        y = box["y"] + box["height"] / 2
        middle = box["x"] + box["width"] / 2
        self.page.mouse.move(middle, y)
        self.page.mouse.down()
        self.page.mouse.move(middle + 0.022 * box["width"], y, steps=3)
        began = time.perf_counter()
        self.page.mouse.up()
        self.page.wait_for_function(EXACT_ZOOM, polling="raf")
        self.visit.milliseconds["zoom"] = 1e3 * (time.perf_counter() - began)

    def end(self) -> Visit:
        """Close the profile and return what the visit took."""
        self.visit.block = self.page.evaluate("window.longest")
        self._context.close()
        return self.visit


async def fill(home: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """Write the runs into the database of ``home``, unless they are there."""
    data = home / "data"
    data.mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{data.resolve()}/spikewatch.sqlite3")
    recording = load("transformer")
    try:
        await migrate.upgrade(database)
        for name, (steps, layers) in sizes.items():
            run = LongRun(recording, layers=layers, scalar_count=len(SCALARS), names=SCALARS)
            if await run.written(database, name) is None:
                await run.write(database, name, steps)
        fleet = LongRun(recording, layers=8, scalar_count=len(SCALARS), names=SCALARS)
        for number in range(FLEET - len(sizes)):
            if await fleet.written(database, f"fleet{number}") is None:
                await fleet.write(database, f"fleet{number}", 512)
    finally:
        await database.close()


def finish(server: Embedded, sizes: dict[str, tuple[int, int]]) -> None:
    """Send the last records of every run over the wire, so that the server summarises it, unless that is done."""
    recording = load("transformer")
    lengths = sizes | {f"fleet{number}": (512, 8) for number in range(FLEET - len(sizes))}
    with server.api() as api:
        for run_id, (steps, layers) in lengths.items():
            if api.get(f"/runs/{run_id}").json()["last_step"] is not None:
                continue
            run = LongRun(recording, layers=layers, scalar_count=len(SCALARS), names=SCALARS)
            columns = run.columns(steps, steps + 64)
            with connect(
                server.url.replace("http", "ws", 1) + "/api/v1/ingest",
                additional_headers={"Authorization": f"Bearer {server.token}"},
                compression=None,
                max_size=None,
            ) as socket:
                writer = Writer(socket)
                writer.hello(
                    run_id=run_id,
                    writer=f"{run_id}-end",
                    project="benchmark",
                    layouts=(Layout(id=0, layers=run.layers, statistics=STATISTICS),),
                )
                values = np.stack([columns.blocks[0].statistics[name] for name in STATISTICS], axis=1)
                writer.commit(*(
                    Record(
                        step=int(step),
                        time=time.time() - 64 + at,
                        scalars={name: float(column.values[at]) for name, column in columns.scalars.items()},
                        layout=0,
                        block=values[:, :, at].astype("<f4").tobytes(),
                    )
                    for at, step in enumerate(columns.steps)
                ))  # fmt: skip


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Yield Debian's Chromium without a display."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        raise SystemExit("no Chromium on PATH: install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


def visits(browser: Browser, server: Embedded, runs: list[str]) -> dict[str, Visit]:
    """Visit the fleet and each run once, each in a fresh profile."""
    found = {}
    meter = Meter(browser, server)
    meter.open("/", rows=FLEET_DRAWN)
    found["fleet"] = meter.end()
    for name in runs:
        meter = Meter(browser, server)
        meter.open(f"/runs/{name}", loss=LOSS_DRAWN, panels=ALL_DRAWN)
        meter.page.wait_for_load_state("networkidle")
        meter.zoom()
        found[name] = meter.end()
    return found


def profile(browser: Browser, server: Embedded, run: str, path: Path) -> None:
    """Write a trace of one visit and one zoom of a run, for the browser's own performance panel."""
    browser.start_tracing(
        path=path, categories=["devtools.timeline", "v8.execute", "disabled-by-default-v8.cpu_profiler"]
    )
    meter = Meter(browser, server)
    meter.open(f"/runs/{run}", loss=LOSS_DRAWN, panels=ALL_DRAWN)
    meter.page.wait_for_load_state("networkidle")
    meter.zoom()
    browser.stop_tracing()
    meter.end()


def report(rounds: list[dict[str, Visit]], work: list[float]) -> str:
    """Return the table of the medians."""
    lines = ["| page | picture | median ms | longest block ms | transferred MB |", "|---|---|---|---|---|"]
    for page in rounds[0]:
        seen = [found[page] for found in rounds]
        block = statistics.median(visit.block for visit in seen)
        size = statistics.median(visit.transferred for visit in seen) / 1e6
        for picture in seen[0].milliseconds:
            took = statistics.median(visit.milliseconds[picture] for visit in seen)
            lines.append(f"| {page} | {picture} | {took:.0f} | {block:.0f} | {size:.2f} |")
    lines.append(f"\nfixed JavaScript: {statistics.median(work):.0f} ms; load {os.getloadavg()[0]:.1f}")
    return "\n".join(lines)


def main() -> None:
    """Measure the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="directory in which the database is kept and reused")
    parser.add_argument("--long", action="store_true", help="also a run of 1,000,000 steps × 300 layers")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a trace of one visit and end")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = SIZES if options.long else {"short": SIZES["short"]}
    with tempfile.TemporaryDirectory(prefix="spikewatch-bench-") as directory:
        home = options.keep or Path(directory)
        asyncio.run(fill(home, sizes))
        with embedded(home) as server, chromium() as browser:
            finish(server, sizes)
            if options.profile:
                profile(browser, server, "short", options.profile)
                return
            rounds, work = [], []
            for _ in range(options.repeats):
                rounds.append(visits(browser, server, list(sizes)))
                page = browser.new_page()
                work.append(page.evaluate(FIXED_WORK))
                page.close()
                print(json.dumps({name: visit.milliseconds for name, visit in rounds[-1].items()}), file=sys.stderr)
    print(report(rounds, work))


if __name__ == "__main__":
    main()
