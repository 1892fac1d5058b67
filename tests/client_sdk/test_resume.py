"""One run that several processes log to: after a restart, partly offline, on several ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ingest_server import IngestServer

PART = """
import client_sdk, os, signal, sys
directory, url, mode, first, last, end = sys.argv[1:]
client_sdk.init(project="p", run_id="resumed", directory=directory, url=url, mode=mode)
for step in range(int(first), int(last)):
    client_sdk.log({"loss": 1 / (step + 1)}, step=step)
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
client_sdk.finish(60)
"""

RANK = """
import client_sdk, sys
directory, url, logs = sys.argv[1:]
client_sdk.init(project="p", directory=directory, url=url)
if logs == "logs":
    client_sdk.log({"loss": 1.0}, step=5)
    assert client_sdk.flush(20)
print(client_sdk.status().run_id)
client_sdk.finish()
"""


def python(program: str, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "SPIKEWATCH_HOME": os.devnull, **environ},
    )


def test_records_of_a_killed_process_precede_those_of_the_process_that_continues(
    tmp_path: Path, nobody: str, server: IngestServer
) -> None:
    killed = python(PART, tmp_path, nobody, "online", 0, 3000, "killed")
    assert killed.returncode == -signal.SIGKILL
    resumed = python(PART, tmp_path, server.url, "online", 2500, 2600, "finished")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert server.steps() == [*range(3000), *range(2500, 2600)]
    assert {hello.run_id for hello in server.hellos} == {"resumed"}
    assert len(server.records) == 2
    assert server.order == sorted(server.order), "no batch of the second writer precedes the last one of the first"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "modes", [("online", "offline", "online"), ("offline", "online", "offline"), ("offline",) * 3], ids="-".join
)
def test_mixed_offline_and_online_parts_are_the_same_as_online_ones(
    tmp_path: Path, server: IngestServer, modes: tuple[str, ...]
) -> None:
    for part, mode in enumerate(modes):
        assert python(PART, tmp_path, server.url, mode, 90 * part, 90 * part + 100, "finished").returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "client_sdk", "sync", str(tmp_path), "--url", server.url],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert server.steps() == [*range(100), *range(90, 190), *range(180, 280)]
    assert server.order == sorted(server.order)
    assert [finish.state for _, finish in server.finishes] == ["finished"] * 3


def test_ranks_join_the_run_of_rank_0_when_they_log(tmp_path: Path, server: IngestServer) -> None:
    environ = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "none"}
    done = [
        python(RANK, tmp_path / str(rank), server.url, logs, **environ, RANK=str(rank))
        for rank, logs in enumerate(["logs", "logs", "is silent"])
    ]
    assert [(one.returncode, one.stderr) for one in done] == [(0, "")] * 3
    assert len({one.stdout for one in done}) == 1
    assert [(hello.run_id, hello.rank) for hello in server.hellos] == [
        (done[0].stdout.strip(), rank) for rank in (0, 1)
    ]
    assert len({hello.writer for hello in server.hellos}) == 2
    assert not (tmp_path / "2").exists(), "a rank that logs nothing leaves no trace"
