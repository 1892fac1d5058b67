"""docs/reference/sdk-settings.md documents every setting of the SDK."""

from __future__ import annotations

from pathlib import Path

from client_sdk import config

DOCUMENT = (Path(__file__).parents[2] / "docs" / "reference" / "sdk-settings.md").read_text(encoding="utf-8")


def test_every_variable_and_its_default_is_documented() -> None:
    names = [value for name, value in vars(config).items() if name.startswith("ENV_")]
    assert len(names) >= 6
    assert [name for name in names if f"| `{name}` |" not in DOCUMENT] == []
    for default in (config.DEFAULT_URL, config.DEFAULT_DIRECTORY, config.DEFAULT_HOME):
        assert f"`{default}`" in DOCUMENT
