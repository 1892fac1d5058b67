"""docs/reference/settings.md says what server/config.py says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    script = [sys.executable, str(ROOT / "deploy" / "settings_page.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    made = subprocess.run(script, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert made.stdout == (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8"), (
        "run `make settings`"
    )
