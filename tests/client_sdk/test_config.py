"""Settings: arguments win over the environment, wrong ones raise at once, and a local server's token is found."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client_sdk.config import Endpoint, Settings, plain_config
from client_sdk.errors import ConfigurationError
from client_sdk.protocol import Hello
from client_sdk.run import Run
from client_sdk.spool.spool import Spool


def resolve(environ: dict[str, str] | None = None, **arguments: Any) -> Settings:
    return Settings.resolve(**{"project": "p", "environ": environ or {}, **arguments})


def test_defaults_are_those_of_the_contract() -> None:
    settings = resolve()
    assert settings.mode == "online"
    assert settings.directory == Path.cwd() / ".spikewatch"
    assert settings.endpoint.url == "http://127.0.0.1:8787"
    assert settings.endpoint.token is None
    assert settings.rank == 0


def test_environment_is_read() -> None:
    settings = resolve(
        {
            "SPIKEWATCH_URL": "https://spikes.example:9000/base/",
            "SPIKEWATCH_TOKEN": "t0k",
            "SPIKEWATCH_MODE": "offline",
            "SPIKEWATCH_DIR": "/somewhere",
            "SPIKEWATCH_HOME": "/home-of-it",
            "RANK": "3",
        }
    )
    assert settings.endpoint.socket_url == "wss://spikes.example:9000/base/api/v1/ingest"
    assert settings.endpoint.find_token() == "t0k"
    assert settings.mode == "offline"
    assert settings.directory == Path("/somewhere")
    assert settings.endpoint.home == Path("/home-of-it")
    assert settings.rank == 3


def test_size_of_the_spool_is_a_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve().spool_bytes == 2 * 1024**3
    settings = resolve({"SPIKEWATCH_SPOOL_BYTES": "100000000", "SPIKEWATCH_DIR": str(tmp_path)}, mode="offline")
    assert settings.spool_bytes == 100_000_000
    limits: list[int] = []
    create = Spool.create

    def observed(root: Path, hello: Hello, *, disk_limit: int) -> Spool:
        limits.append(disk_limit)
        return create(root, hello, disk_limit=disk_limit)

    monkeypatch.setattr(Spool, "create", observed)
    Run(settings).finish()
    assert limits == [100_000_000]
    for bad in ("2G", "-1", "1000", "9" * 19):
        with pytest.raises(ConfigurationError, match="SPIKEWATCH_SPOOL_BYTES"):
            resolve({"SPIKEWATCH_SPOOL_BYTES": bad})


def test_arguments_win_over_the_environment() -> None:
    settings = resolve(
        {"SPIKEWATCH_URL": "http://a", "SPIKEWATCH_TOKEN": "a", "SPIKEWATCH_MODE": "offline", "SPIKEWATCH_DIR": "/a"},
        url="http://b",
        token="b",
        mode="disabled",
        directory="/b",
    )
    assert (settings.endpoint.url, settings.endpoint.token) == ("http://b", "b")
    assert (settings.mode, settings.directory) == ("disabled", Path("/b"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"project": ""},
        {"project": 3},
        {"project": "x" * 257},
        {"project": "two\nlines"},
        {"name": ""},
        {"name": b"bytes"},
        {"config": 3},
        {"config": "text"},
        {"config": {"big": "x" * 2_000_000}},
        {"tags": "one-string"},
        {"tags": 3},
        {"tags": [1]},
        {"tags": ["x"] * 65},
        {"url": "127.0.0.1:8787"},
        {"url": "ftp://host"},
        {"url": "http://"},
        {"url": "http://host:notaport"},
        {"url": "http://host:99999"},
        {"url": 3},
        {"token": ""},
        {"token": "two words"},
        {"token": "line\r\nX-Header: 1"},
        {"token": "ünicode"},
        {"mode": "on"},
        {"directory": 3},
        {"run_id": ""},
        {"run_id": "../elsewhere"},
        {"run_id": "x" * 65},
        {"run_id": 3},
    ],
    ids=str,
)
def test_bad_argument_raises(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(**arguments)
    assert 10 < len(str(caught.value)) < 300


def test_bad_environment_raises() -> None:
    with pytest.raises(ConfigurationError, match="mode"):
        resolve({"SPIKEWATCH_MODE": "maybe"})


def test_rank_of_another_tool_is_ignored() -> None:
    assert resolve({"RANK": "captain"}).rank == 0


def test_config_may_be_a_namespace_or_a_dataclass() -> None:
    @dataclass
    class Options:
        lr: float
        where: Path

    assert plain_config(argparse.Namespace(lr=0.1)) == {"lr": 0.1}
    assert plain_config(Options(lr=0.1, where=Path("data"))) == {"lr": 0.1, "where": "data"}
    assert plain_config(None) == {}


def test_config_values_without_a_plain_form_are_kept_as_text() -> None:
    looped: dict[str, Any] = {}
    looped["self"] = looped
    plain = plain_config({1: {2}, "huge": 2**80, "kind": int, "bad": "\ud800", "loop": looped})
    assert plain["1"] == [2]
    assert plain["huge"] == str(2**80)
    assert plain["kind"] == "<class 'int'>"
    assert plain["bad"] == "?"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.9.9.9"])
def test_token_of_a_server_on_this_machine_is_found(tmp_path: Path, host: str) -> None:
    (tmp_path / "server-9123.token").write_text("abc\n")
    endpoint = Endpoint.resolve(url=f"http://{host}:9123", token=None, environ={"SPIKEWATCH_HOME": str(tmp_path)})
    assert endpoint.find_token() == "abc"


def test_token_of_this_machine_is_not_sent_to_another_host(tmp_path: Path) -> None:
    (tmp_path / "server-9123.token").write_text("abc\n")
    endpoint = Endpoint.resolve(url="http://example.org:9123", token=None, environ={"SPIKEWATCH_HOME": str(tmp_path)})
    assert endpoint.find_token() is None


def test_token_is_found_when_the_server_starts_later(tmp_path: Path) -> None:
    endpoint = Endpoint.resolve(url="http://127.0.0.1:80", token=None, environ={"SPIKEWATCH_HOME": str(tmp_path)})
    assert endpoint.find_token() is None
    (tmp_path / "server-80.token").write_text("later")
    assert endpoint.find_token() == "later"
