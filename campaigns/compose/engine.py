"""The container engine of a campaign: the one that is running, or one that a tool starts.

The tool is named by SPIKEWATCH_CONTAINER_ENGINE, or is next to the checkout. It accepts `up`, `env` (which prints the
export lines that a shell needs) and `down`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOL = ROOT.parent / "shared" / "tools" / "container-engine"
START_TIMEOUT = 900.0  # seconds; the first start installs the engine and builds base images


class NoEngineError(Exception):
    """No container engine answers, and none can be started; the text says what was tried."""


@contextlib.contextmanager
def engine() -> Iterator[dict[str, str]]:
    """Yield the environment in which `docker` reaches an engine; one that was started here is stopped afterwards."""
    environment = dict(os.environ)
    if _answers(environment):
        yield environment
        return
    tool = Path(os.environ.get("SPIKEWATCH_CONTAINER_ENGINE") or TOOL)
    if not tool.exists():
        raise NoEngineError(
            f"`docker info` fails, and {tool} does not exist: start an engine or set SPIKEWATCH_CONTAINER_ENGINE"
        )
    given = _exports(subprocess.run([tool, "env"], capture_output=True, text=True, check=True, timeout=30).stdout)
    environment |= given
    if _answers(environment):
        yield environment
        return
    try:
        subprocess.run([tool, "up"], check=True, timeout=START_TIMEOUT)
        if not _answers(environment):
            raise NoEngineError(f"the engine that `{tool.name} up` started does not answer")
        yield environment
    finally:
        subprocess.run([tool, "down"], check=False, timeout=60)


def _answers(environment: dict[str, str]) -> bool:
    if shutil.which("docker", path=environment.get("PATH")) is None:
        return False
    command = ["docker", "compose", "version"], ["docker", "info"]
    return all(
        subprocess.run(one, env=environment, capture_output=True, check=False, timeout=60).returncode == 0
        for one in command
    )


def _exports(text: str) -> dict[str, str]:
    """Return the variables of lines like `export A=1 B='2 3'`."""
    words = [word for line in text.splitlines() for word in shlex.split(line) if line.startswith("export ")]
    return dict(word.split("=", 1) for word in words if "=" in word)
