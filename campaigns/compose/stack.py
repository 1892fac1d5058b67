"""The stack of docker-compose.yml as a user starts it, under its own name and port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from campaigns.compose.engine import ROOT

BUILD_TIMEOUT = 1500.0  # seconds
UP_TIMEOUT = 420.0  # seconds
COMMAND_TIMEOUT = 120.0  # seconds
UP_AGAIN_TIMEOUT = 60.0  # seconds
CHECK_EVERY = 0.2  # seconds


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A project of `docker compose` in the root of the checkout, with its own volumes and containers."""

    name: str
    """Name of the project."""
    port: int
    """Port of the entry on the loopback interface."""
    environment: Mapping[str, str]
    """Environment in which `docker` reaches the engine."""

    @property
    def url(self) -> str:
        """URL of the entry."""
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """Return the standard output of a command. Raises `RuntimeError` with the end of its output if it fails."""
        command = ["docker", "compose", "--project-name", self.name, *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, "SPIKEWATCH_PORT": str(self.port)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if done.returncode != 0:
            output = (done.stdout + done.stderr)[-3000:]
            raise RuntimeError(f"docker compose {' '.join(arguments)} ended with {done.returncode}:\n{output}")
        return done.stdout

    def inspect(self, container: str) -> dict[str, Any]:
        """Return the answer of `docker inspect` for a container."""
        done = subprocess.run(
            ["docker", "inspect", container],
            env=dict(self.environment),
            capture_output=True,
            check=True,
            timeout=COMMAND_TIMEOUT,
        )
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found

    def containers(self, service: str) -> list[str]:
        """Return the ids of the containers of a service, in the order of their numbers."""
        lines = self.compose("ps", "--all", "--format", "{{.Name}} {{.ID}}", service).splitlines()
        return [line.split()[1] for line in sorted(lines)]

    def pids(self) -> dict[str, int]:
        """Return the id on this machine of the first process of each running container."""
        found = {}
        for line in self.compose("ps", "--format", "{{.Name}} {{.ID}}").splitlines():
            container, identity = line.split()
            found[container.removeprefix(f"{self.name}-")] = int(self.inspect(identity)["State"]["Pid"])
        return found

    def kill(self, container: str) -> None:
        """Send SIGKILL from outside, as the kernel does when memory is short.

        The engine regards its own `kill` as a request to stop, after which it does not restart the container.
        """
        os.kill(self.inspect(container)["State"]["Pid"], signal.SIGKILL)

    def wait_until_up(self, service: str, number: int) -> None:
        """Wait until the health check of a container passes. Raises `TimeoutError` if it does not in time.

        The engine itself runs the check only every ten seconds.
        """
        check = ["exec", "-T", "--index", str(number), service, "python3", "/opt/spikewatch/healthcheck.py"]
        deadline = time.monotonic() + UP_AGAIN_TIMEOUT
        while True:
            try:
                self.compose(*check)
                return
            except RuntimeError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{service} {number} is not healthy after {UP_AGAIN_TIMEOUT:g} s") from error
            time.sleep(CHECK_EVERY)  # the engine offers no event to wait for


@contextlib.contextmanager
def running_stack(environment: Mapping[str, str], *, servers: int) -> Iterator[Stack]:
    """Build and start the stack and wait for its health; remove its containers, networks and volumes afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    stack = Stack(name=f"spikewatch-test-{os.getpid()}", port=port, environment=environment)
    try:
        stack.compose("build", "--quiet", timeout=BUILD_TIMEOUT)
        stack.compose("up", "--detach", "--wait", "--no-build", "--scale", f"server={servers}", timeout=UP_TIMEOUT)
        yield stack
    except BaseException as error:
        with contextlib.suppress(Exception):
            print(stack.compose("ps", "--all") + stack.compose("logs", "--tail", "25", "--no-color"))
        print(f"{type(error).__name__}: {error}", flush=True)
        raise
    finally:
        stack.compose("down", "--volumes", "--timeout", "20", timeout=UP_TIMEOUT)
