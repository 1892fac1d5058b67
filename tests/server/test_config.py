"""Settings are explained and read from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.config import Config


def test_every_setting_is_documented() -> None:
    for name, field in Config.model_fields.items():
        assert field.description, name
        assert field.description.endswith((".", "`.")), name


def test_the_environment_sets_what_it_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPIKEWATCH_HOME", str(tmp_path))
    monkeypatch.setenv("SPIKEWATCH_PORT", "9000")
    config = Config()
    assert (config.port, config.home) == (9000, tmp_path)
    assert config.resolved_database_url == f"sqlite:///{tmp_path}/data/spikewatch.sqlite3"
    assert config.token_file == tmp_path / "server-9000.token"
    assert config.api_url == "http://127.0.0.1:9000"


def test_home_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPIKEWATCH_HOME", raising=False)
    assert Config().data_directory == tmp_path / ".spikewatch" / "data"
    assert Config(data=Path("~/elsewhere")).data_directory == tmp_path / "elsewhere"


@pytest.mark.parametrize("values", [{"port": 70_000}, {"queued_frames": 0}, {"admin_token": "short"}])
def test_invalid_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config(**values)  # type: ignore[arg-type]


def test_a_server_on_every_address_reaches_itself_by_loopback() -> None:
    assert Config(host="0.0.0.0", port=5).api_url == "http://127.0.0.1:5"
    assert Config(host="::1", port=5).api_url == "http://[::1]:5"
    assert Config(public_url="https://spikes.example/").open_url == "https://spikes.example"
