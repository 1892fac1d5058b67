"""Secrets are read from files or the environment, with a message for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.config import SECRETS, Config
from server.secret_files import secret

PASSWORD = "correct horse battery"


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_comes_from_a_file_or_from_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "secret"
    path.write_text(PASSWORD + "\n")
    monkeypatch.setenv(f"SPIKEWATCH_{name.upper()}_FILE", str(path))
    assert getattr(Config(), name) == PASSWORD
    monkeypatch.delenv(f"SPIKEWATCH_{name.upper()}_FILE")
    monkeypatch.setenv(f"SPIKEWATCH_{name.upper()}", PASSWORD)
    assert getattr(Config(), name) == PASSWORD
    description = Config.model_fields[name].description
    assert description is not None
    assert f"SPIKEWATCH_{name.upper()}_FILE" in description


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPIKEWATCH_ADMIN_TOKEN", "SPIKEWATCH_ADMIN_TOKEN_FILE", "SPIKEWATCH_PORT"):
        monkeypatch.setenv(name, "")
    assert (Config().admin_token, Config().port) == (None, 8787)


def test_an_unusable_secret_file_is_named_with_the_reason(tmp_path: Path) -> None:
    empty, binary, large = (tmp_path / name for name in ("empty", "binary", "large"))
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    large.write_text("x" * 70_000)
    for path, words in (
        (tmp_path / "missing", "cannot be read"),
        (empty, "is empty"),
        (binary, "not text"),
        (large, "too large"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            secret({"SPIKEWATCH_TOKEN_FILE": str(path)}, "SPIKEWATCH_TOKEN")
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="both set"):
        secret({"SPIKEWATCH_TOKEN": "a", "SPIKEWATCH_TOKEN_FILE": "b"}, "SPIKEWATCH_TOKEN")


def test_the_password_fills_a_database_url_that_has_none() -> None:
    def url(given: str) -> str:
        return Config(database_url=given, database_password="p@ss/word").resolved_database_url

    assert url("postgresql://me@db:5432/x?a=b") == "postgresql://me:p%40ss%2Fword@db:5432/x?a=b"
    assert url("postgresql://me:known@db/x") == "postgresql://me:known@db/x"
    assert url("sqlite:////data/x") == "sqlite:////data/x"
