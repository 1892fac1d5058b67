"""Ranks of a launch derive the same run id without communication, and ranks of another launch a different one."""

from __future__ import annotations

import os
import subprocess
import sys

from client_sdk.config import Settings
from client_sdk.launch import Launch

NODES = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}

LAUNCHER = """
import os, subprocess, sys
PRINT = "import os; from client_sdk.launch import Launch; print(Launch.read('p', os.environ))"
for restart, rank in ((0, 0), (1, 1)):
    environ = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
               "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "localhost", "MASTER_PORT": str(29500 + restart)}
    print(subprocess.run([sys.executable, "-c", PRINT], env=environ, check=True, capture_output=True).stdout)
"""


def run_id(rank: int, project: str = "p", **environ: str) -> str | None:
    return Launch.read(project, {**NODES, "RANK": str(rank), **environ}).run_id


def test_process_that_trains_alone_has_no_run_id() -> None:
    assert Launch.read("p", {}) == Launch(rank=0, run_id=None)
    assert Launch.read("p", {"RANK": "0", "WORLD_SIZE": "1"}) == Launch(rank=0, run_id=None)
    assert Launch.read("p", {"RANK": "captain", "WORLD_SIZE": "many"}) == Launch(rank=0, run_id=None)


def test_ranks_of_several_nodes_share_a_run_id() -> None:
    ids = {run_id(rank, TORCHELASTIC_RUN_ID="job") for rank in range(16)}
    assert len(ids) == 1
    assert ids != {run_id(0, TORCHELASTIC_RUN_ID="another")}
    assert ids != {run_id(0, "another project", TORCHELASTIC_RUN_ID="job")}
    assert ids == {run_id(0, TORCHELASTIC_RUN_ID="job", MASTER_PORT="30000")}, "a restart may change the port"


def test_slurm_job_distinguishes_launches_without_an_id() -> None:
    assert run_id(0, SLURM_JOB_ID="1") == run_id(9, SLURM_JOB_ID="1") != run_id(0, SLURM_JOB_ID="2")
    assert run_id(0) == run_id(9) != run_id(0, MASTER_PORT="30000")


def test_ranks_of_one_machine_keep_the_run_id_when_their_launcher_restarts_them() -> None:
    launches = [
        subprocess.run(
            [sys.executable, "-c", LAUNCHER], check=True, capture_output=True, text=True, timeout=100, env=os.environ
        ).stdout.split("run_id=")[1:]
        for _ in range(2)
    ]
    ids = [{text.split(")")[0] for text in launch} for launch in launches]
    assert [len(launch) for launch in launches] == [2, 2]
    assert [len(one) for one in ids] == [1, 1]
    assert ids[0] != ids[1]


def test_explicit_run_id_wins() -> None:
    environ = {**NODES, "RANK": "3"}
    launched = Settings.resolve(project="p", environ=environ)
    assert (launched.run_id, launched.rank) == (run_id(3), 3)
    assert Settings.resolve(project="p", environ={**environ, "SPIKEWATCH_RUN_ID": "mine"}).run_id == "mine"
    assert Settings.resolve(project="p", run_id="argument", environ={"SPIKEWATCH_RUN_ID": "mine"}).run_id == "argument"
