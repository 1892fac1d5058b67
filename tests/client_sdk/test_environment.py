"""The description of machine and software, of real processes and real git repositories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from client_sdk.environment import commit_at, describe

SCRIPT = """
import json, os
import numpy
from client_sdk.environment import describe
print(json.dumps(describe(os.environ)))
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    done = subprocess.run(("git", *identity, *arguments), cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "train.py").write_text(SCRIPT)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def run(*arguments: str, folder: Path, **more: str) -> dict[str, object]:
    root = Path(__file__).parents[2]
    environ = os.environ | {"PYTHONPATH": str(root)} | more
    done = subprocess.run(
        (sys.executable, *arguments), cwd=folder, env=environ, check=True, capture_output=True, text=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_script_is_described_without_its_arguments_and_without_what_it_has_not_loaded(repository: Path) -> None:
    found = run("train.py", "--token", "secret", folder=repository, WORLD_SIZE="4")
    assert found["script"] == "train.py"
    assert found["processes"] == 4
    assert found["git_commit"] == git(repository, "rev-parse", "HEAD")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    packages = found["packages"]
    assert isinstance(packages, dict)
    assert set(packages) == {"numpy"}
    assert "secret" not in json.dumps(found)


def test_a_module_is_named_as_it_was_started(repository: Path) -> None:
    assert run("-m", "train", folder=repository)["script"] == "-m train"


def test_the_commit_is_found_from_folders_work_trees_packed_and_detached_heads(
    repository: Path, tmp_path: Path
) -> None:
    inner = repository / "a" / "b"
    inner.mkdir(parents=True)
    commit = git(repository, "rev-parse", "HEAD")
    assert commit_at(inner) == commit
    other = tmp_path / "other"
    git(repository, "worktree", "add", "-q", "-b", "side", str(other))
    assert commit_at(other) == commit
    git(repository, "pack-refs", "--all")
    assert commit_at(inner) == commit
    git(repository, "checkout", "-q", "--detach")
    assert commit_at(inner) == commit
    assert commit_at(tmp_path) is None


def test_this_process_is_described_whatever_can_be_found_out() -> None:
    found = describe({"WORLD_SIZE": "not a number"})
    assert {"host", "system", "python", "script"} <= set(found)
    assert "processes" not in found
