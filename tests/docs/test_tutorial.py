"""The programs of docs/tutorial.md do what the tutorial says: the first spikes, the second is rescued."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import client_sdk
from tests.support.embedded import Embedded, embedded

ROOT = Path(client_sdk.__file__).parents[1]
pytestmark = pytest.mark.long
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"), re.S)
(PROGRAM,) = (block for block in BLOCKS if "client_sdk.init(" in block)
(CALLBACK,) = (block for block in BLOCKS if block.startswith("@client_sdk.on_alert"))
PACE = "    time.sleep(0.05)  # a step of a real model takes longer\n"
BUDGET, NO_LIMIT = "budget=1.0", "budget=float('inf')"  # the steps of the test take no time beside the measuring
IN_STEP = "    step % 10 == 9 and client_sdk.flush()\n"
"""Keeps the training in step with the server without taking a minute."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with embedded(tmp_path_factory.mktemp("server")) as started:
        yield started


def _run(server: Embedded, directory: Path, program: str) -> tuple[float, str]:
    """Run a program in a process of its own; return the largest loss after step 500 and what was printed."""
    assert program.count(PACE) == 1
    assert program.count(BUDGET) == 1
    (directory / "program.py").write_text(program.replace(PACE, IN_STEP).replace(BUDGET, NO_LIMIT))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SPIKEWATCH_URL": server.url,
        "SPIKEWATCH_TOKEN": server.token,
    }
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    largest = re.search(r"largest loss after step 500: (\S+) at step", done.stdout)
    assert largest is not None, done.stdout
    return float(largest.group(1)), done.stdout


@pytest.mark.timeout(180)
def test_the_first_run_spikes_and_was_predicted(server: Embedded, tmp_path: Path) -> None:
    loss, _ = _run(server, tmp_path, PROGRAM)
    assert loss > 1e-4, "the network did not spike, so there is nothing to predict"
    with server.api() as api:
        (run,) = (run for run in api.get("/runs").json()["runs"] if run["name"] == "untouched")
        alerts = api.get("/alerts", params={"run": run["id"]}).json()
    (prediction,) = (alert for alert in alerts if alert["kind"] == "spike-predicted")
    spikes = [alert for alert in alerts if alert["kind"] == "spike"]
    assert prediction["level"] in {"warning", "critical"}
    assert prediction["outcome"]["result"] in {"hit", "early", "late"}, "the prediction counts as false"
    assert prediction["step"] < min(spike["step"] for spike in spikes) - 50


@pytest.mark.timeout(180)
def test_the_callback_saves_a_checkpoint_and_prevents_the_spike(server: Embedded, tmp_path: Path) -> None:
    begin = "losses = []\n"
    assert PROGRAM.count(begin) == 1
    program = PROGRAM.replace('"untouched"', '"rescued"').replace(begin, CALLBACK + begin)
    loss, printed = _run(server, tmp_path, program)
    assert "Spike possible at step" in printed
    assert loss < 1e-9
    assert (tmp_path / "before-the-spike.pt").exists()
