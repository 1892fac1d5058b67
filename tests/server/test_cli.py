"""The command line, mostly in a process of its own as a user runs it."""

from __future__ import annotations

import logging
import os
import re
import signal
import sqlite3
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from server.cli import app

COMMAND = [str(Path(sysconfig.get_path("scripts")) / "spikewatch")]


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Restore the logging that commands in this process configure."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SPIKEWATCH_")}
    return {**kept, "SPIKEWATCH_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def up(environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `spikewatch up` with the line that it has printed."""
    process = subprocess.Popen(
        [*COMMAND, "up", "--port", "0"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, process.stdout.readline()
    process.kill()
    process.communicate(timeout=20)


def test_up_prints_one_link_that_opens_the_dashboard_and_cleans_up(
    up: tuple[subprocess.Popen[str], str], environment: dict[str, str], tmp_path: Path
) -> None:
    process, line = up
    found = re.search(r"(http://127\.0\.0\.1:(\d+))/\?token=(\S+)", line)
    assert found is not None, line
    url, port, token = found.groups()
    token_file = tmp_path / f"server-{port}.token"
    assert token_file.read_text().strip() == token
    with httpx.Client(base_url=url, follow_redirects=True) as browser:
        assert browser.get("/").status_code == 401
        assert browser.get(f"/?token={token}").status_code == 200
        assert "html" in browser.get("/").headers["content-type"]
        bearer = {"Authorization": f"Bearer {token}"}
        assert browser.get("/api/v1/runs", headers=bearer).json() == {"runs": [], "next_cursor": None}
        assert browser.get("/api/v1/runs").status_code == 401
    taken = run(environment, "up", "--port", port)
    assert (taken.returncode, taken.stdout) == (2, "")
    assert re.fullmatch(rf"spikewatch: cannot listen on 127\.0\.0\.1:{port} .*\n", taken.stderr)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert not token_file.exists()


def test_ctrl_c_ends_up_quietly(up: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = up
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # as from a terminal and from make
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the error message, which must be one line with exit code 2."""
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("spikewatch: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_corrupt_database_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "spikewatch.sqlite3").write_bytes(os.urandom(20_000))
    assert "is damaged or not a database" in one_line(run(environment, "up", "--port", "0"))


def test_a_database_ahead_of_the_code_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    assert run(environment, "migrate").stdout == "The schema is up to date.\n"
    database = sqlite3.connect(tmp_path / "data" / "spikewatch.sqlite3")
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.commit()
    database.close()
    assert "newer spikewatch" in one_line(run(environment, "up", "--port", "0"))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SPIKEWATCH_QUEUED_FRAMES": "many"}, "SPIKEWATCH_QUEUED_FRAMES"),
        ({"SPIKEWATCH_DATABASE_URL": "mysql://localhost/x"}, "use sqlite or postgresql"),
        ({"SPIKEWATCH_DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/x"}, "cannot be reached"),
        ({"SPIKEWATCH_DATABASE_URL": "sqlite://"}, "in memory"),
        ({"SPIKEWATCH_REDIS_URL": "http://:secret@localhost"}, "redis://:PASSWORD@HOST"),
    ],
)
def test_bad_settings_are_one_line_without_secrets(
    environment: dict[str, str], variables: dict[str, str], said: str
) -> None:
    line = one_line(run({**environment, **variables}, "up", "--port", "0"))
    assert said in line
    assert "secret" not in line


def test_serve_refuses_a_schema_that_is_not_migrated(environment: dict[str, str]) -> None:
    assert "spikewatch migrate" in one_line(run({**environment, "SPIKEWATCH_PORT": "0"}, "serve"))


def test_a_home_that_cannot_be_written_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = one_line(run({**environment, "SPIKEWATCH_HOME": str(tmp_path / "file")}, "up", "--port", "0"))
    assert "cannot be" in line


def test_tokens_are_printed_once_and_runs_are_listed(environment: dict[str, str], tmp_path: Path) -> None:
    token = run(environment, "token", "create", "--scope", "write", "--project", "p").stdout.strip()
    assert re.fullmatch(r"sw_[\w-]{43}", token)
    assert run(environment, "runs").stdout == "No runs yet.\n"
    nowhere = tmp_path / "mistyped"
    assert "there is no database" in one_line(run(environment, "runs", "--data", str(nowhere)))
    assert not nowhere.exists()
    assert run(environment, "token", "create", "--scope", "everything").returncode == 2


def test_login_url_prints_the_address_that_logs_in(environment: dict[str, str]) -> None:
    token = "sw_" + "t" * 32
    given = {"SPIKEWATCH_ADMIN_TOKEN": token, "SPIKEWATCH_PUBLIC_URL": "https://spikes.example/"}
    found = run({**environment, **given}, "login-url")
    assert (found.returncode, found.stdout) == (0, f"https://spikes.example/?token={token}\n")
    without = run(environment, "login-url")
    assert (without.returncode, without.stdout) == (2, "")
    assert "SPIKEWATCH_ADMIN_TOKEN" in without.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "the database URL cannot be read; use sqlite:///PATH or postgresql://"),
        ("mysql://me@db/x", "the database 'mysql' is not supported"),
        ("sqlite://", "a database in memory would lose"),
        ("sqlite:////proc/no/such.sqlite3", "the directory of the database /proc/no/such.sqlite3 cannot be created"),
        ("postgresql://me:hunter2@127.0.0.1:9/x", "the database postgresql+asyncpg://me:***@127.0.0.1:9/x cannot be"),
        ("postgresql://me:hunter2@no-such-host.invalid/x", "cannot be reached"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    monkeypatch.setenv("SPIKEWATCH_DATABASE_URL", url)
    monkeypatch.setenv("SPIKEWATCH_HOME", environment["SPIKEWATCH_HOME"])
    answer = CliRunner().invoke(app, ["migrate"])
    assert answer.exit_code == 2
    assert words in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert "hunter2" not in answer.stderr


@pytest.mark.parametrize("command", ["serve", "up", "migrate"])
def test_a_database_ahead_of_the_program_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setenv("SPIKEWATCH_HOME", str(tmp_path))
    monkeypatch.setenv("SPIKEWATCH_PORT", "0")
    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
    with sqlite3.connect(tmp_path / "data" / "spikewatch.sqlite3") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'future'")
    answer = CliRunner().invoke(app, [command])
    assert answer.exit_code == 2
    assert "a newer spikewatch has migrated it; upgrade spikewatch, or restore a backup" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_tokens_are_created_listed_and_revoked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPIKEWATCH_HOME", str(tmp_path))

    def spikewatch(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["token", *arguments])

    assert "No tokens yet" in spikewatch("list").stdout
    made = spikewatch("create", "--scope", "write", "--project", "p", "--label", "a\x1b[2Jb").stdout.strip()
    assert re.fullmatch(r"sw_[\w-]{43}", made)
    listed = spikewatch("list").stdout
    assert made not in listed
    assert "\x1b" not in listed, "text of users is not interpreted by the terminal"
    assert re.search(r"^1 +write +p +a\S+ .* never +valid$", listed, re.MULTILINE)
    assert spikewatch("revoke", "1").exit_code == 0
    assert "revoked" in spikewatch("list").stdout
    again = spikewatch("revoke", "1")
    assert (again.exit_code, "no token 1 to revoke" in again.stderr) == (2, True)
    assert spikewatch("create", "--scope", "read", "--project", "x" * 300).exit_code == 2


def test_the_dashboard_alone_logs_in_with_a_token_of_its_server(
    up: tuple[subprocess.Popen[str], str], environment: dict[str, str]
) -> None:
    found = re.search(r"(http://\S+)/\?token=(\S+)", up[1])
    assert found is not None
    server, token = found.groups()
    process = subprocess.Popen(
        [*COMMAND, "dashboard", "--port", "0"],
        env=environment | {"SPIKEWATCH_URL": server},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        with httpx.Client(base_url=url, follow_redirects=True, timeout=30) as browser:
            assert browser.get("/healthz").json() == {"status": "ok"}
            assert browser.get("/").status_code == 401
            assert browser.get("/?token=wrong").status_code == 401
            assert "_dash-config" in browser.get(f"/?token={token}").text
            assert browser.get("/alerts").status_code == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.communicate(timeout=20)
