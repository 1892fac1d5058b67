"""`import client_sdk`: its exports, its imports, and calls before, between and after runs."""

from __future__ import annotations

import importlib
import inspect
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import client_sdk
from tests.support.ingest_server import IngestServer


def python(program: str, *options: str) -> str:
    """Run a program that must succeed and return what it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(autouse=True)
def _finished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Finish the default run after each test; spools are under ``tmp_path``."""
    monkeypatch.setenv("SPIKEWATCH_DIR", str(tmp_path / "spool"))
    yield
    client_sdk.finish(0.0)


def test_exports_are_those_of_the_contract() -> None:
    assert client_sdk.__all__ == [
        "Alert",
        "ConfigurationError",
        "Run",
        "SpikewatchError",
        "SpoolError",
        "Status",
        "TrainingAlert",
        "TransportError",
        "active_run",
        "finish",
        "flush",
        "guard",
        "init",
        "log",
        "off_alert",
        "on_alert",
        "status",
        "watch",
    ]
    assert all(hasattr(client_sdk, name) for name in client_sdk.__all__)


def test_importing_does_not_import_torch() -> None:
    python("import client_sdk, sys; assert 'torch' not in sys.modules")


STATEMENTS = (
    "import client_sdk.watch",
    "from client_sdk.watch import Handle",
    "import importlib; importlib.import_module('client_sdk.watch')",
    "from client_sdk import watch",
)
CHECKED = (
    "\nimport client_sdk, inspect\n"
    "assert inspect.isfunction(client_sdk.watch), client_sdk.watch\n"
    "assert list(inspect.signature(client_sdk.watch).parameters)[:2] == ['model', 'optimizer']\n"
)


def test_watch_stays_the_function_when_its_module_is_imported() -> None:
    """Each statement is the first of a process; the processes are forked from one, as importing torch takes seconds."""
    python(
        "import os, sys, torch\n"
        "assert 'client_sdk' not in sys.modules\n"
        f"for statement in {STATEMENTS!r}:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        f"        exec(statement + {CHECKED!r})\n"
        "        sys.exit()\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, statement\n"
    )


def test_watch_takes_every_option_of_its_implementation() -> None:
    implementation = importlib.import_module("client_sdk.watch").watch
    assert set(inspect.signature(client_sdk.watch).parameters) == set(inspect.signature(implementation).parameters)


def test_calls_before_init_are_ignored_with_one_warning() -> None:
    warnings = python(
        "import client_sdk\n"
        "client_sdk.log({'loss': 1.0})\n"
        "client_sdk.log({'loss': 1.0})\n"
        "client_sdk.on_alert(print)\n"
        "assert client_sdk.flush()\n"
        "client_sdk.finish()\n"
    )
    assert warnings.count("spikewatch:") == 1
    assert "call client_sdk.init(project=…) first" in warnings


def test_watch_and_status_before_init_raise() -> None:
    python(
        "import client_sdk\n"
        "for call in (lambda: client_sdk.watch(object(), object()), client_sdk.status):\n"
        "    try:\n"
        "        call()\n"
        "    except client_sdk.ConfigurationError as error:\n"
        "        assert 'init' in str(error)\n"
        "    else:\n"
        "        raise AssertionError('it must raise')\n"
    )


def test_bad_arguments_of_init_raise_and_leave_the_open_run_alone() -> None:
    run = client_sdk.init(mode="offline")
    with pytest.raises(ValueError, match="mode"):
        client_sdk.init(mode="sometimes")  # type: ignore[arg-type]
    assert run.active


def test_second_init_finishes_the_first_run_with_a_warning() -> None:
    warnings = python(
        "import client_sdk\n"
        "first = client_sdk.init(mode='offline')\n"
        "second = client_sdk.init(mode='offline')\n"
        "client_sdk.log({'loss': 1.0})\n"
        "assert (first.status().state, second.status().state) == ('finished', 'running')\n"
        "assert client_sdk.status().run_id == second.id\n"
        "assert (first.status().logged, second.status().logged) == (0, 1)\n"
    )
    assert warnings.count("spikewatch:") == 1
    assert "Call finish() first" in warnings


def test_init_after_finish_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    client_sdk.init(mode="offline")
    client_sdk.finish()
    client_sdk.init(mode="offline")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_environment_chooses_server_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    with IngestServer(token="secret") as server:
        monkeypatch.setenv("SPIKEWATCH_URL", server.url)
        monkeypatch.setenv("SPIKEWATCH_TOKEN", "secret")
        client_sdk.init(project="from-environment", run_id="chosen")
        client_sdk.log({"loss": 1.0}, step=3)
        assert client_sdk.flush(20)
        client_sdk.finish()
        assert (server.hellos[0].run_id, server.steps()) == ("chosen", [3])


def test_alert_callback_may_be_a_decorated_function() -> None:
    client_sdk.init(mode="offline")

    @client_sdk.on_alert
    def callback(alert: client_sdk.Alert) -> None:
        raise AssertionError("there is no alert")

    assert callable(callback)


def test_warnings_as_errors_do_not_raise_into_training() -> None:
    warnings = python(
        "import client_sdk\n"
        "client_sdk.log({})\n"
        "client_sdk.init(mode='offline')\n"
        "client_sdk.log({'loss': 'text'}); client_sdk.log({}, step=-1); client_sdk.finish(); client_sdk.log({})\n",
        "-W",
        "error",
    )
    assert warnings.count("spikewatch:") == 4
