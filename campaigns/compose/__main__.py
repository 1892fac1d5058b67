"""``python -m campaigns.compose``: test the whole stack with a training outside of it, while its parts fail in turn.

The campaign builds the image, starts docker-compose.yml with two servers under its own name and port, and trains the
demo's tanh-net against it from outside the containers. During the training it kills each server with SIGKILL, restarts
Redis and stops Postgres for ten seconds. At the end every logged step must be stored exactly once, the run page that
was open all the time must show them, and the spike must have been predicted before it happened. The program prints a
table and exits with 1 if one of these failed. Everything that it started is removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from campaigns.compose.engine import NoEngineError, engine
from campaigns.compose.page import RunPage, run_page
from campaigns.compose.stack import Stack, running_stack
from campaigns.compose.training import Entry, Training
from campaigns.compose.verdict import Verdict, judge, run_of
from server.demo.cases import TANH_NET_STEPS
from tests.support.processes import resident_mib

SERVERS = 2
POSTGRES_AWAY = 10.0  # seconds
TRAIN_TIMEOUT = 240.0  # seconds after the last fault
SETTLE_TIMEOUT = 60.0  # seconds after the training for the last findings of the detectors
OPEN_PAGE_AT = 20  # step


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault to inject into the stack."""

    name: str
    """Name in the table."""
    step: int
    """Step of the training at which the fault is injected."""
    inject: Callable[[Stack], None]
    """Function that injects the fault and returns when it is repaired."""


@dataclass(frozen=True, kw_only=True)
class InjectedFault:
    """A fault that was injected and repaired."""

    name: str
    """Name in the table."""
    step: int
    """Step of the training when the fault was injected."""
    seconds: float
    """Seconds until the fault was repaired, for example until the server was healthy again."""
    repaired_step: int
    """Step of the training when the fault was repaired."""


def kill_server(number: int) -> Callable[[Stack], None]:
    """Return a function that kills a server and waits until it serves again."""

    def inject(stack: Stack) -> None:
        container = stack.containers("server")[number - 1]
        before = stack.inspect(container)["RestartCount"]
        stack.kill(container)
        _until(lambda: stack.inspect(container)["RestartCount"] > before, 60, "the restart of the killed server")
        stack.wait_until_up("server", number)

    return inject


def restart_redis(stack: Stack) -> None:
    """Restart Redis without a delay."""
    stack.compose("restart", "redis")


def stop_postgres(stack: Stack) -> None:
    """Stop Postgres for a while."""
    stack.compose("stop", "postgres")
    time.sleep(POSTGRES_AWAY)
    stack.compose("start", "postgres")


FAULTS = (
    Fault(name="kill -9 server 1", step=60, inject=kill_server(1)),
    Fault(name="kill -9 server 2", step=200, inject=kill_server(2)),
    Fault(name="restart redis", step=320, inject=restart_redis),
    Fault(name=f"stop postgres for {POSTGRES_AWAY:g} s", step=380, inject=stop_postgres),
)


def main() -> int:
    """Run the campaign and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.compose")
    parser.add_argument("--where-possible", action="store_true", help="report a missing container engine and pass")
    parser.add_argument("--keep", type=Path, help="directory in which screenshots and logs are kept")
    options = parser.parse_args()
    directory = options.keep or Path(tempfile.mkdtemp(prefix="spikewatch-compose-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with engine() as environment, running_stack(environment, servers=SERVERS) as stack:
            return _campaign(stack, directory)
    except NoEngineError as error:
        print(f"NO CONTAINER ENGINE: the stack of docker-compose.yml was NOT tested ({error})")
        return 0 if options.where_possible else 1
    finally:
        if options.keep is None:
            shutil.rmtree(directory, ignore_errors=True)


def _campaign(stack: Stack, directory: Path) -> int:
    login_url = stack.compose("exec", "-T", "server", "spikewatch", "login-url").strip()
    admin = login_url.partition("token=")[2]
    token = stack.compose("exec", "-T", "server", "spikewatch", "token", "create", "--scope", "write").strip()
    environment = os.environ | {
        "SPIKEWATCH_URL": stack.url,
        "SPIKEWATCH_TOKEN": token,
        "SPIKEWATCH_DIR": str(directory / "spool"),
        "OMP_NUM_THREADS": "1",
    }
    headers = {"Authorization": f"Bearer {admin}"}
    with (
        httpx.Client(base_url=f"{stack.url}/api/v1", headers=headers, timeout=60, trust_env=False) as api,
        run_page() as page,
    ):
        training = Training(directory, environment)
        try:
            injected = _train(stack, training, api, page, login_url)
            entries, dropped = training.entries(), training.dropped()
        finally:
            training.end()
        _until(lambda: _answers(api), SETTLE_TIMEOUT, "the API to answer")
        run = run_of(api)
        assert run is not None
        page.wait_for_step(entries[-1].step)
        verdict = _settled(api, run["id"], entries)
        page.take_screenshot(directory / "run-page.png")
        prediction = page.wait_for_prediction()
        memory = {name: resident_mib(pid) for name, pid in stack.pids().items()}
    endings = _end_servers(stack)
    is_kept = verdict.is_kept and dropped == 0 and len(entries) == TANH_NET_STEPS
    is_kept = is_kept and not any(endings) and injected[-1].repaired_step < entries[-1].step
    print(_table(injected, entries))
    print(f"\n{'memory, MiB':<22}" + "  ".join(f"{name} {used:.0f}" for name, used in sorted(memory.items())))
    print(f"{'logged':<22}{verdict.logged} steps, {dropped} dropped by the SDK")
    for name in ("lost", "twice", "altered", "invented", "unshown"):
        found = getattr(verdict, name)
        print(f"{name:<22}{len(found)}" + (f", for example {found[:5]}" if found else ""))
    print(f"{'alert':<22}{verdict.alert.sentence}")
    print(f"{'run page':<22}open through all of it, shows step {entries[-1].step}; {prediction}")
    print(f"{'servers after SIGTERM':<22}ended with {' and '.join(map(str, endings))}")
    print("every step exactly once, and the spike predicted" if is_kept else "BROKEN")
    return 0 if is_kept else 1


def _train(stack: Stack, training: Training, api: httpx.Client, page: RunPage, login_url: str) -> list[InjectedFault]:
    """Open the page, inject all faults, and return when the training has ended."""
    training.wait_for_step(OPEN_PAGE_AT)
    _until(lambda: run_of(api) is not None, 30, "the run to exist")
    run = run_of(api)
    assert run is not None
    page.open(login_url, run["id"])
    injected = []
    for fault in FAULTS:
        training.wait_for_step(fault.step)
        begun, step = time.monotonic(), training.entries()[-1].step
        fault.inject(stack)
        seconds = time.monotonic() - begun
        repaired_step = training.entries()[-1].step
        injected.append(InjectedFault(name=fault.name, step=step, seconds=seconds, repaired_step=repaired_step))
    training.wait(TRAIN_TIMEOUT)
    return injected


def _answers(api: httpx.Client) -> bool:
    return api.get("/runs").status_code == httpx.codes.OK


def _end_servers(stack: Stack) -> list[int]:
    """Stop the servers and return their exit codes, which are 0 after an orderly end in time."""
    stack.compose("stop", "server")
    return [stack.inspect(container)["State"]["ExitCode"] for container in stack.containers("server")]


def _settled(api: httpx.Client, run_id: str, entries: Sequence[Entry]) -> Verdict:
    """Return the verdict once it is positive or its time is over, because detectors lag behind what is stored."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        verdict = judge(api, run_id, entries)
        if verdict.is_kept or time.monotonic() > deadline:
            return verdict
        time.sleep(1.0)


def _table(injected: Sequence[InjectedFault], entries: Sequence[Entry]) -> str:
    """Return a table of the effect of each fault on the training."""
    lines = [f"{'fault':<22}{'at step':>8}{'repaired after':>16}{'max waiting':>14}{'caught up at step':>19}"]
    for fault in injected:
        since = [entry for entry in entries if entry.step >= fault.step]
        owed = next(entry.logged for entry in since if entry.step >= fault.repaired_step)
        caught_up = next((at for at, entry in enumerate(since) if entry.acknowledged >= owed), len(since) - 1)
        waiting = max(entry.logged - entry.acknowledged for entry in since[: caught_up + 1])
        lines.append(
            f"{fault.name:<22}{fault.step:>8}{fault.seconds:>14.1f} s{waiting:>8} steps{since[caught_up].step:>19}"
        )
    return "\n".join(lines)


def _until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
