"""The container image: its lock files, and the script of its first start."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REMEDY = "run `make lock`"


def locked(name: str) -> dict[str, str]:
    """Name to version of every package of a lock file. Each must have the hashes of its files."""
    versions: dict[str, str] = {}
    for entry in re.split(r"\n(?=[a-z])", (ROOT / "deploy" / name).read_text(encoding="utf-8")):
        package, _, version = entry.split()[0].partition("==")
        assert "--hash=sha256:" in entry, f"{package} has no hash: {REMEDY}"
        versions[canonicalize_name(package)] = version
    return versions


def required(path: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / path).read_text(encoding="utf-8"))["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    return [requirement for requirement in found if requirement.name != "spikewatch-client"]


@pytest.mark.parametrize("project", ["pyproject.toml", "client_sdk/pyproject.toml"])
def test_the_lock_file_satisfies_what_is_required(project: str) -> None:
    versions = locked("requirements.lock")
    for requirement in required(project):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{requirement} is not locked: {REMEDY}"
        assert requirement.specifier.contains(versions[name]), (
            f"{requirement}, but {versions[name]} is locked: {REMEDY}"
        )


def test_the_image_has_no_torch_and_no_tool_of_the_tests() -> None:
    assert not {"torch", "pytest", "pandas", "playwright"} & locked("requirements.lock").keys()


def test_the_image_sets_up_the_allocator() -> None:
    """A server with glibc's defaults keeps 59 MiB more after bursts of load (benchmarks/results/allocator.md)."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072" in dockerfile


def test_the_build_backend_is_locked() -> None:
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    versions = locked("build.lock")
    for requirement in map(Requirement, backend):
        assert requirement.specifier.contains(versions[requirement.name]), REMEDY


def test_the_first_start_makes_secrets_and_a_later_one_keeps_them(tmp_path: Path) -> None:
    def start() -> dict[str, str]:
        subprocess.run(
            [sys.executable, str(ROOT / "deploy" / "make_secrets.py"), str(tmp_path)], check=True, timeout=60
        )
        return {path.name: path.read_text(encoding="utf-8").strip() for path in tmp_path.iterdir()}

    first = start()
    assert set(first) == {
        "admin_token",
        "database_url",
        "postgres_password",
        "redis_password",
        "redis_url",
        "secret_key",
    }
    assert first["postgres_password"] in first["database_url"]
    assert len(set(first.values())) == 6
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    (tmp_path / "redis_url").unlink()  # of an older version, say, that had none
    assert start() == first
