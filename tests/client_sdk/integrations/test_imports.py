"""Every integration imports its own framework and no other, and says what to install where it is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

PACKAGES = {"huggingface": "transformers", "lightning": "lightning", "accelerate": "accelerate"}


def python(program: str) -> str:
    """Run a program that must succeed and return what it printed."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sdk_imports_no_framework() -> None:
    frameworks = sorted({*PACKAGES.values(), "trl", "peft", "torch"})
    python(
        "import sys, client_sdk, client_sdk.integrations, client_sdk.integrations.session\n"
        f"assert not set({frameworks}) & set(sys.modules)"
    )


@pytest.mark.parametrize(("module", "package"), PACKAGES.items())
def test_a_missing_framework_is_named_with_the_command(module: str, package: str) -> None:
    printed = python(
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"  # what `import` finds of a package that is not installed
        "try:\n"
        f"    import client_sdk.integrations.{module}\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert f"client_sdk.integrations.{module} needs" in printed
    assert "pip install '" in printed
