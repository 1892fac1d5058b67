"""The SDK is a package of its own, with three dependencies, without torch and without the server."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SOURCE = Path(__file__).parents[2] / "client_sdk"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel for users from a copy of the sources."""
    directory = tmp_path_factory.mktemp("wheel")
    shutil.copytree(SOURCE, directory / "client_sdk", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory / "dist")],
        cwd=directory / "client_sdk",
        check=True,
        capture_output=True,
        timeout=100,
    )
    (built,) = (directory / "dist").iterdir()
    return built


def test_wheel_installs_one_package(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path, wheel],
        check=True,
        capture_output=True,
        timeout=100,
    )
    packages = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".dist-info")}
    assert packages == {"client_sdk"}
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import client_sdk; print(client_sdk.__file__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.startswith(str(tmp_path))


def test_wheel_has_every_source_file_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {f"client_sdk/{path.relative_to(SOURCE)}" for path in SOURCE.rglob("*.py")}
    assert names == sources | {"client_sdk/py.typed"}


def test_wheel_requires_three_libraries(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    headers = Parser().parsestr(archive.read(metadata).decode())
    required = [Requirement(text) for text in headers.get_all("Requires-Dist", [])]
    optional = {requirement.name: str(requirement.marker) for requirement in required if requirement.marker}
    assert optional == {"numba": 'extra == "cpu"'}
    assert {requirement.name for requirement in required if not requirement.marker} == {
        "websockets",
        "msgspec",
        "numpy",
    }
