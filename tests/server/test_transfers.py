"""`spikewatch export`, `import` and `delete`, in processes of their own as a user runs them."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.server.imports.conftest import DATA
from tests.server.test_cli import environment, run

__all__ = ["environment"]


@pytest.fixture
def imported(environment: dict[str, str]) -> str:
    """Id of an imported run."""
    done = run(environment, "import", str(DATA / "restarted"), "--project", "old")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "123 records, " in done.stderr
    assert "train/loss → loss" in done.stderr
    return done.stderr.split(": run ")[1].split(" ")[0]


def test_a_log_goes_in_and_comes_out(environment: dict[str, str], imported: str, tmp_path: Path) -> None:
    listed = run(environment, "runs", "--project", "old").stdout
    assert imported in listed
    for name in ("run.parquet", "run.csv"):
        done = run(environment, "export", imported, "--out", str(tmp_path / name))
        assert (done.returncode, done.stdout) == (0, f"{tmp_path / name}: 123 rows\n"), done.stderr
    assert pq.read_table(tmp_path / "run.parquet").num_rows == 123
    assert len(pd.read_csv(tmp_path / "run.csv")) == 123
    beside = json.loads((tmp_path / "run.csv.json").read_text())
    assert (beside["run"]["project"], beside["run"]["name"]) == ("old", "restarted")
    again = run(environment, "import", str(tmp_path / "run.csv"))
    assert "in old, 123 records, " in again.stderr, again.stderr
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_a_run_is_deleted_with_its_space(environment: dict[str, str], imported: str, tmp_path: Path) -> None:
    done = run(environment, "delete", imported, "--yes")
    assert (done.returncode, done.stdout) == (0, f"The run {imported} is deleted.\n"), done.stderr
    connection = sqlite3.connect(tmp_path / "data" / "spikewatch.sqlite3")
    assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
    connection.close()
    for arguments in (("delete", imported, "--yes"), ("export", imported, "--out", str(tmp_path / "x.csv"))):
        refused = run(environment, *arguments)
        assert refused.returncode == 2
        assert refused.stderr == f"spikewatch: there is no run {imported!r}; `spikewatch runs` lists them\n"
    assert run(environment, "delete", imported).returncode == 1  # nobody confirmed


def test_everything_goes_into_one_file_and_comes_back(
    environment: dict[str, str], imported: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.zip"
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "spikewatch.sqlite3")) as connection, connection:
        connection.execute("UPDATE runs SET notes = 'a long way'")
        connection.execute("""UPDATE writers SET environment = '{"host": "node-7"}'""")
    done = run(environment, "export", imported, "--out", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: 123 rows\n"), done.stderr
    again = run(environment, "import", str(file), "--project", "again")
    assert "in again, 123 records, " in again.stderr, again.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "spikewatch.sqlite3")) as connection:
        query = "SELECT notes, environment FROM runs JOIN writers ON run_id = runs.id WHERE project = 'again'"
        ((notes, environment_of_run),) = connection.execute(query).fetchall()
    assert (notes, json.loads(environment_of_run)) == ("a long way", {"host": "node-7"})
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".run")]


def test_one_broken_file_does_not_keep_the_others(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    shutil.copytree(DATA / "tensors", folder / "good")
    (folder / "bad.csv").write_text("step,loss\n1,2\n2,x\n")
    done = run(environment, "import", str(folder), str(tmp_path / "none"))
    assert done.returncode == 2
    assert "bad.csv, line 3: 'x' in the column 'loss' is not a number" in done.stderr
    assert f"spikewatch: {tmp_path / 'none'}: there is no such file or folder" in done.stderr
    assert "30 records" in done.stderr


def test_a_request_that_cannot_work_is_one_line(environment: dict[str, str], imported: str, tmp_path: Path) -> None:
    for arguments, reason in (
        (("export", imported, "--out", str(tmp_path / "run.xlsx")), ".xlsx: unknown format"),
        (("export", imported, "--out", str(tmp_path / "none" / "run.csv")), "cannot be written"),
        (("import", str(DATA), "--rename", "loss"), "--rename must be OLD=NEW"),
    ):
        done = run(environment, *arguments)
        assert done.returncode == 2
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
