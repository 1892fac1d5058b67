"""Runs in processes that are killed, forked, crash, end without `finish`, or are sent later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_sdk.protocol import Finish
from client_sdk.spool.spool import Spool
from tests.support.ingest_server import IngestServer

KILLED = """
import client_sdk, os, signal, sys
run = client_sdk.init(project="p", run_id="killed", directory=sys.argv[1], url=sys.argv[2])
step = 0
while True:
    client_sdk.log({"loss": 1 / (step + 1)}, step=step)
    step += 1
    if step == 5000:
        print("logged", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""

FORKED = """
import client_sdk, os, sys
run = client_sdk.init(project="p", directory=sys.argv[1], url=sys.argv[2])
client_sdk.log({"loss": 0.0}, step=0)
assert client_sdk.flush(20)
for child in range(3):
    if os.fork() == 0:
        client_sdk.log({"loss": 99.0}, step=99)
        assert client_sdk.status().dropped == 1
        assert not run.active
        client_sdk.flush(0)
        client_sdk.finish()
        sys.exit(0)  # runs the atexit handlers
    assert os.wait()[1] == 0
    client_sdk.log({"loss": 1.0}, step=child + 1)
    assert client_sdk.flush(20)
client_sdk.finish()
"""

FORK_AND_INIT = """
import client_sdk, os, sys
client_sdk.init(project="p", run_id="parent", directory=sys.argv[1], url=sys.argv[2])
client_sdk.log({"loss": 0.0}, step=0)
if os.fork() == 0:
    client_sdk.init(project="p", run_id="child", directory=sys.argv[1], url=sys.argv[2])
    client_sdk.log({"loss": 0.0}, step=5)
    client_sdk.finish()
    os._exit(0)
assert os.wait()[1] == 0
client_sdk.log({"loss": 0.0}, step=1)
client_sdk.finish()
"""

ENDED = """
import client_sdk, sys
client_sdk.init(project="p", run_id="ended", directory=sys.argv[1], url=sys.argv[2])
client_sdk.log({"loss": 0.0}, step=0)
client_sdk.flush(20)
client_sdk.log({"loss": 0.0}, step=1)
"""

AWAIT_RECOVERY = """
import threading
for thread in threading.enumerate():
    if thread.name == "spikewatch-recovery":
        thread.join(60)
"""

OFFLINE = """
import client_sdk, sys
client_sdk.init(project="p", run_id=sys.argv[2], directory=sys.argv[1], mode="offline")
for step in range(100):
    client_sdk.log({"loss": 1.0}, step=step)
client_sdk.finish()
"""


UNTIL_TERMINATED = """
import client_sdk, signal, sys
if sys.argv[3] == "handled":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
client_sdk.init(project="p", run_id="terminated", directory=sys.argv[1], url=sys.argv[2])
step = 0
while True:
    client_sdk.log({"loss": 1.0}, step=step)
    step += 1
    if step == 1000:
        print("logged", flush=True)
"""

LOADER = """
import client_sdk, sys, torch

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        client_sdk.log({"loss": 99.0}, step=99)  # ignored in a worker
        return torch.tensor(index)

if __name__ == "__main__":
    directory, url, method = sys.argv[1:]
    client_sdk.init(project="p", directory=directory, url=url)
    for step, _ in enumerate(torch.utils.data.DataLoader(Data(), num_workers=1, multiprocessing_context=method)):
        client_sdk.log({"loss": 1.0}, step=step)
    client_sdk.finish()
"""

NO_MORE_THREADS = """
import client_sdk, sys, threading
client_sdk.init(project="p", run_id="late", directory=sys.argv[1], url=sys.argv[2])

def start(thread):
    raise RuntimeError("can't start new thread at interpreter shutdown")

threading.Thread.start = start  # as Python 3.12 does once the main thread has ended
for step in range(10):
    client_sdk.log({"loss": 1.0}, step=step)
"""


WAITING_FOR_THE_DEVICE = """
import client_sdk, sys, threading
import numpy as np
from client_sdk.measurement import Instrument, Measurement
from client_sdk.protocol import Layout
from client_sdk.spool.spool import Spool

has_returned = threading.Event()

class Pending:
    def ready(self):
        return has_returned.is_set()

    def result(self):
        return Measurement(scalars={"has_landed": 1.0}, block=np.ones((1, 1), np.float32))

append = Spool.append

def append_and_notify(spool, payload, **options):
    is_kept = append(spool, payload, **options)
    print("written", flush=True)
    return is_kept

Spool.append = append_and_notify

class StepInstrument(Instrument):
    has_stepped = True
    layout = Layout(id=0, layers=("a",), statistics=("x",))

    def measure(self, step, metrics, closure):
        return Pending()

run = client_sdk.init(project="p", run_id="waits", directory=sys.argv[1], mode="offline")
run.attach(StepInstrument())
client_sdk.log({"loss": 1.0}, step=7)
print("logged", flush=True)
has_returned.set()
sys.stdin.read()
"""


def python(program: str, *arguments: object, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "SPIKEWATCH_HOME": os.devnull, **(environ or {})},
    )


def sync(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "client_sdk", "sync", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def server() -> Iterator[IngestServer]:
    with IngestServer() as started:
        yield started


def test_spool_survives_kill(tmp_path: Path, nobody: str, server: IngestServer) -> None:
    done = python(KILLED, tmp_path, nobody)
    assert done.returncode == -signal.SIGKILL
    assert "logged" in done.stdout
    sent = sync(tmp_path, "--url", server.url)
    assert (sent.returncode, sent.stderr) == (0, "")
    assert server.steps() == list(range(5000))
    assert [record.scalars["loss"] for record in server.all_records()] == [1 / (step + 1) for step in range(5000)]
    assert [finish.state for _, finish in server.finishes] == ["crashed"]
    assert not list(tmp_path.iterdir())


def test_kill_during_delivery_duplicates_nothing(tmp_path: Path, server: IngestServer) -> None:
    done = python(KILLED, tmp_path, server.url)
    assert done.returncode == -signal.SIGKILL
    assert sync(tmp_path, "--url", server.url).returncode == 0
    assert server.steps() == list(range(5000))
    assert len(server.records) == 1


def test_next_run_in_the_directory_sends_the_rest(tmp_path: Path, nobody: str, server: IngestServer) -> None:
    python(KILLED, tmp_path, nobody)
    python(OFFLINE, tmp_path, "offline")
    done = python(ENDED + AWAIT_RECOVERY, tmp_path, server.url)
    assert done.returncode == 0, done.stderr
    server.wait_for(lambda: len(server.finishes) == 3)
    by_run = {hello.run_id: len(server.records[hello.writer]) for hello in server.hellos}
    assert by_run == {"killed": 5000, "offline": 100, "ended": 2}


def test_forked_children_send_nothing_and_disturb_nothing(tmp_path: Path, server: IngestServer) -> None:
    done = python(FORKED, tmp_path, server.url)
    assert done.returncode == 0, done.stderr
    assert server.steps() == [0, 1, 2, 3]
    assert len(server.hellos) == 1, "the parent's connection outlived its children"
    assert len(server.finishes) == 1


def test_forked_child_may_have_a_run_of_its_own(tmp_path: Path, server: IngestServer) -> None:
    done = python(FORK_AND_INIT, tmp_path, server.url)
    assert done.returncode == 0, done.stderr
    steps = {hello.run_id: [r.step for r in server.records[hello.writer]] for hello in server.hellos}
    assert steps == {"parent": [0, 1], "child": [5]}
    assert [finish.state for _, finish in server.finishes] == ["finished", "finished"]


def test_sender_thread_imports_no_module(tmp_path: Path, server: IngestServer) -> None:
    # A child that is forked during an import, such as a DataLoader worker, would wait forever for its lock.
    program = "import client_sdk, sys; before = set(sys.modules)" + ENDED + "client_sdk.finish()"
    done = python(program + "; print(sorted(set(sys.modules) - before))", tmp_path, server.url)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_unfinished_run_is_finished_at_exit(tmp_path: Path, server: IngestServer) -> None:
    done = python(ENDED, tmp_path, server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.steps() == [0, 1]
    assert [finish for _, finish in server.finishes] == [Finish(last_seq=2)]


def test_uncaught_exception_makes_the_run_crashed(tmp_path: Path, server: IngestServer) -> None:
    done = python(ENDED + "raise RuntimeError('out of memory')", tmp_path, server.url)
    assert done.returncode == 1
    assert [finish.state for _, finish in server.finishes] == ["crashed"]


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ("sys.exit(0)", "finished"),
        ("sys.exit()", "finished"),
        ("sys.exit(1)", "crashed"),
        ("sys.exit('no more data')", "crashed"),
        ("raise KeyboardInterrupt", "finished"),
        ("sys.ps1 = '> '; raise ValueError", "finished"),
        ("pass", "finished"),
        ("client_sdk.finish(state='crashed')", "crashed"),
        ("client_sdk.finish(state='nonsense')", "finished"),
        ("client_sdk.finish(20, 'finished'); sys.exit(1)", "finished"),
    ],
)
def test_end_of_the_program_decides_the_state(tmp_path: Path, server: IngestServer, ending: str, state: str) -> None:
    python(ENDED + ending, tmp_path, server.url)
    assert [finish.state for _, finish in server.finishes] == [state]


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ("try:\n    raise RuntimeError\nfinally:\n    client_sdk.finish()", "crashed"),
        ("try:\n    sys.exit(3)\nfinally:\n    client_sdk.finish()", "crashed"),
        ("try:\n    raise SystemExit(0)\nfinally:\n    client_sdk.finish()", "finished"),
        ("try:\n    pass\nfinally:\n    client_sdk.finish()", "finished"),
        ("try:\n    raise KeyboardInterrupt\nfinally:\n    client_sdk.finish()", "finished"),
        ("try:\n    next(iter(()))\nexcept StopIteration:\n    client_sdk.finish()", "finished"),
        ("try:\n    raise RuntimeError\nfinally:\n    client_sdk.finish(state='finished')", "finished"),
        ("try:\n    raise RuntimeError\nexcept RuntimeError:\n    pass\nclient_sdk.finish()", "finished"),
        ("try:\n    sys.exit(1)\nexcept SystemExit:\n    pass", "finished"),
        ("try:\n    sys.exit(1)\nexcept SystemExit as error:\n    sys.exit(error.code)", "crashed"),
        ("try:\n    sys.exit(1)\nexcept SystemExit:\n    sys.exit(0)", "finished"),
        ("import threading\nt = threading.Thread(target=sys.exit, args=(1,))\nt.start()\nt.join()", "finished"),
        (
            "import multiprocessing\n"
            "p = multiprocessing.get_context('fork').Process(target=sys.exit, args=(1,))\n"
            "p.start()\np.join()\nassert p.exitcode == 1",
            "finished",
        ),
        (
            "client_sdk.finish()\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n"
            "    client_sdk.init(project='p', directory=sys.argv[1], url=sys.argv[2])\n"
            "    client_sdk.log({'loss': 0.0})\n    client_sdk.finish()",
            "finished",
        ),
    ],
)
def test_exception_that_passes_through_finish_is_a_crash(
    tmp_path: Path, server: IngestServer, lines: str, state: str
) -> None:
    python(ENDED + "\n" + lines, tmp_path, server.url)
    assert server.finishes[-1][1].state == state


def test_status_of_the_process_stays_that_of_sys_exit(tmp_path: Path, server: IngestServer) -> None:
    for ending, status, message in (("sys.exit(7)", 7, ""), ("sys.exit('no data')", 1, "no data\n"), ("exit()", 0, "")):
        done = python(ENDED + ending, tmp_path, server.url)
        assert (done.returncode, done.stderr) == (status, message)
    done = python(ENDED + "os = __import__('os'); os._exit(1)", tmp_path, server.url)
    assert (done.returncode, len(server.finishes)) == (1, 3), "os._exit runs no code; a later init or sync reports it"


def test_exit_without_a_server_keeps_the_records_and_reports_where(tmp_path: Path, nobody: str) -> None:
    program = ENDED.replace("client_sdk.flush(20)", "client_sdk.EXIT_TIMEOUT = 0.2")
    done = python(program, tmp_path, nobody)
    assert done.returncode == 0
    assert "python -m client_sdk sync" in done.stderr
    (directory,) = tmp_path.iterdir()
    spool = Spool.open(directory)
    assert (spool.last_seq, spool.meta.finish) == (2, Finish(last_seq=2))
    spool.release()


def test_offline_runs_are_sent_by_sync(tmp_path: Path, server: IngestServer) -> None:
    for name in ("one", "two"):
        assert python(OFFLINE, tmp_path, name).returncode == 0
    done = sync(tmp_path, "--url", server.url)
    assert done.returncode == 0
    assert done.stdout.count("100 records sent") == 2
    assert [hello.run_id for hello in server.hellos] == ["one", "two"]
    assert [finish.state for _, finish in server.finishes] == ["finished", "finished"]
    again = sync(tmp_path, "--url", server.url)
    assert (again.returncode, again.stdout[:15]) == (0, "nothing to send")


def test_sync_accepts_a_single_spool(tmp_path: Path, server: IngestServer) -> None:
    for name in ("one", "two"):
        python(OFFLINE, tmp_path, name)
    (directory,) = tmp_path.glob("two-*")
    assert sync(directory, "--url", server.url).returncode == 0
    assert [hello.run_id for hello in server.hellos] == ["two"]


def test_sync_leaves_a_spool_in_use_alone(tmp_path: Path, server: IngestServer) -> None:
    python(OFFLINE, tmp_path, "one")
    (directory,) = tmp_path.iterdir()
    spool = Spool.open(directory)
    done = sync(tmp_path, "--url", server.url)
    spool.release()
    assert done.returncode == 1
    assert "another process uses it" in done.stderr
    assert directory.exists()


def test_sync_without_a_server_fails_with_one_line(tmp_path: Path, nobody: str) -> None:
    python(OFFLINE, tmp_path, "one")
    done = sync(tmp_path, "--url", nobody)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert nobody in done.stderr
    assert list(tmp_path.iterdir())


def test_sync_with_a_wrong_token_gives_advice(tmp_path: Path) -> None:
    python(OFFLINE, tmp_path, "one")
    with IngestServer(token="right") as server:
        done = sync(tmp_path, "--url", server.url, "--token", "wrong")
        assert done.returncode == 1
        assert "unauthenticated" in done.stderr
        assert sync(tmp_path, "--url", server.url, "--token", "right").returncode == 0
        assert server.steps() == list(range(100))


@pytest.mark.parametrize(
    "arguments", [["does-not-exist"], [".", "--url", "nonsense"], []], ids=["directory", "url", "default"]
)
def test_sync_with_invalid_arguments_exits_with_2(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client_sdk", "sync", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "SPIKEWATCH_DIR": "nothing-here"},
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("handler", ["default", "handled"])
def test_run_that_is_terminated_loses_nothing(tmp_path: Path, server: IngestServer, handler: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", UNTIL_TERMINATED, str(tmp_path), server.url, handler],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    if handler == "default":
        assert process.returncode == -signal.SIGTERM
        assert sync(tmp_path, "--url", server.url).returncode == 0
    else:
        assert (process.returncode, errors) == (0, "")
    assert server.steps() == list(range(len(server.steps())))
    assert len(server.steps()) >= 1000
    assert [finish.state for _, finish in server.finishes] == ["crashed" if handler == "default" else "finished"]
    assert not list(tmp_path.iterdir())


def test_device_values_reach_the_disk_without_another_log(tmp_path: Path, server: IngestServer) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING_FOR_THE_DEVICE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"logged\n"
        assert process.stdout.readline() == b"written\n"
        process.kill()
    assert sync(tmp_path, "--url", server.url).returncode == 0
    (found,) = server.all_records()
    assert (found.step, found.scalars["has_landed"], found.block) == (7, 1.0, b"\x00\x00\x80\x3f")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_disturb_nothing(tmp_path: Path, server: IngestServer, method: str) -> None:
    program = tmp_path / "train.py"
    program.write_text(LOADER)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "spool"), server.url, method],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "SPIKEWATCH_HOME": os.devnull, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert server.steps() == list(range(8))
    assert len(server.finishes) == 1


def test_another_process_sends_what_an_ending_interpreter_cannot(tmp_path: Path, server: IngestServer) -> None:
    done = python(NO_MORE_THREADS, tmp_path, server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.steps() == list(range(10))
    assert [finish.state for _, finish in server.finishes] == ["finished"]
    assert not list(tmp_path.iterdir())
