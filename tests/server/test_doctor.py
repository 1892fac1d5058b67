"""`spikewatch doctor` in a terminal."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from tests.support.server import running_server
from tests.support.writer import Writer, record


def test_the_doctor_names_damage_and_its_exit_code_says_whether_any_is_left(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("run")
        writer.commit(record(1), record(2))
    data = ["doctor", "--data", str(tmp_path / "data")]
    sound = CliRunner().invoke(app, data)
    assert (sound.exit_code, sound.output) == (0, "Everything is readable.\n")

    connection = sqlite3.connect(tmp_path / "data" / "spikewatch.sqlite3")
    with connection:
        changed = connection.execute("UPDATE segments SET payload = x'00'").rowcount
        changed += connection.execute("UPDATE tiles SET last = x'00'").rowcount
    connection.close()
    assert changed

    damaged = CliRunner().invoke(app, data)
    assert damaged.exit_code == 1
    assert "run run: " in damaged.output
    assert "checksum" in damaged.output or "no blob" in damaged.output
    repaired = CliRunner().invoke(app, [*data, "--repair"])
    assert repaired.exit_code == 0
    assert "lost" in repaired.output
    assert CliRunner().invoke(app, data).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [("doctor",), ("export", "run", "--out", "x.csv"), ("delete", "run", "--yes")],
    ids=lambda given: given[0],
)
def test_a_directory_without_a_database_is_reported_and_stays_empty(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    nowhere = tmp_path / "mistyped"
    done = CliRunner().invoke(app, [*arguments, "--data", str(nowhere)])
    assert done.exit_code == 2
    assert done.output.startswith(f"spikewatch: there is no database {nowhere / 'spikewatch.sqlite3'}; set --data or")
    assert not nowhere.exists()
