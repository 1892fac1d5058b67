"""Settings of the server, from the environment (``SPIKEWATCH_…``) or from the command line.

Every setting is described where it is defined; docs/reference/settings.md is generated from these texts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from server.secret_files import SecretFiles

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
"""Hosts that only processes on the same machine can reach."""

SECRETS = (
    "admin_token",
    "dashboard_password",
    "database_password",
    "database_url",
    "metrics_token",
    "redis_password",
    "redis_url",
    "secret_key",
    "slack_webhook",
)
"""Settings that may be read from a file: SPIKEWATCH_ADMIN_TOKEN_FILE and so on (`server.secret_files`)."""


class Config(BaseSettings):
    """All settings of a server process. Immutable."""

    model_config = SettingsConfigDict(env_prefix="SPIKEWATCH_", frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(
        default=Path("~/.spikewatch"), description="Directory of token files and, by default, of the data."
    )
    data: Path | None = Field(default=None, description="Directory of the embedded database. Default: HOME/data.")
    database_url: str | None = Field(
        default=None,
        description="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME. Default: DATA/spikewatch.sqlite3. Or "
        "SPIKEWATCH_DATABASE_URL_FILE names a file that holds it.",
    )
    database_password: str | None = Field(
        default=None,
        description="The password of a database URL that names a user and no password. Or "
        "SPIKEWATCH_DATABASE_PASSWORD_FILE names a file that holds it.",
    )
    redis_url: str | None = Field(
        default=None,
        description="redis://:PASSWORD@HOST:6379/0, through which several servers on one database exchange live "
        "messages. "
        "Default: none, for a single server. Or SPIKEWATCH_REDIS_URL_FILE names a file that holds it.",
    )
    redis_password: str | None = Field(
        default=None,
        description="The password of a Redis URL that names none. Or SPIKEWATCH_REDIS_PASSWORD_FILE names a file that "
        "holds it.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on. Every address requires a token.")
    port: int = Field(default=8787, ge=0, le=65535, description="Port to listen on; 0 selects a free one.")
    admin_token: str | None = Field(
        default=None,
        min_length=16,
        description="A token with the scope admin that is not stored in the database. `up` creates its own. Or "
        "SPIKEWATCH_ADMIN_TOKEN_FILE names a file that holds it.",
    )
    dashboard_password: str | None = Field(
        default=None,
        min_length=8,
        description="A password for the dashboard, in addition to tokens. Or SPIKEWATCH_DASHBOARD_PASSWORD_FILE names "
        "a "
        "file that holds it.",
    )
    dashboard_password_scope: Literal["read", "write", "admin"] = Field(
        default="admin", description="What a login with the password permits: read, write or admin."
    )
    login_attempts: int = Field(
        default=10, ge=1, description="Failed logins that one address may make within the login window."
    )
    login_window: float = Field(default=300.0, gt=0, description="Length of the login window in seconds.")
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="Addresses and networks, separated by commas, whose X-Forwarded-For and X-Forwarded-Proto are "
        "trusted; * trusts every address.",
    )
    max_connections: int = Field(
        default=10_000,
        ge=8,
        description="Maximum number of open connections of this process; lower if the limit of open files requires it. "
        "At most a quarter of them may be connections that have not sent a complete request.",
    )
    token_connections: int = Field(default=2_000, ge=1, description="Maximum number of open sockets per token.")
    token_connections_per_second: float = Field(
        default=100.0, gt=0, description="Maximum number of new sockets per second and token, after an initial burst."
    )
    token_values_per_second: float = Field(
        default=0.0,
        ge=0,
        description="Values per second that are read from the sockets of one token; further ones wait. 0 for no limit.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Format of the log: text lines, or one JSON object per line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="Minimum level of the log: debug, info, warning or error."
    )
    metrics_token: str | None = Field(
        default=None,
        min_length=16,
        description="A token that gives access to /metrics and nothing else. Or SPIKEWATCH_METRICS_TOKEN_FILE names a "
        "file that "
        "holds it.",
    )
    metrics_open_to_loopback: bool = Field(
        default=True, description="Whether clients on the same machine read /metrics without a token."
    )
    max_body_bytes: int = Field(
        default=1024 * 1024,
        ge=1024,
        description="Largest body of an API request in bytes; larger ones are refused with 413.",
    )
    request_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Seconds that a client has to send the header of a request, and again to send its body.",
    )
    dashboard: bool = Field(default=True, description="Whether the server also serves the dashboard at /.")
    public_url: str | None = Field(
        default=None, description="The address that users open, if it is not http://HOST:PORT."
    )
    max_frame_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=1024,
        description="Largest ingest frame in bytes; larger ones are refused with `too_large`.",
    )
    hello_timeout: float = Field(
        default=10.0, gt=0, description="Seconds that a new ingest connection has to send hello."
    )
    queued_frames: int = Field(
        default=4, ge=1, description="Frames that are queued per ingest connection before its socket is no longer read."
    )
    group_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=1,
        description="Largest sum of frames of one connection that share a commit, in bytes.",
    )
    stale_after: float = Field(
        default=60.0, gt=0, description="Seconds without a connected writer after which a run is stale."
    )
    heartbeat_every: float = Field(
        default=10.0, gt=0, description="Seconds between two checks of run states and alert rules about missing data."
    )
    retention_days: float = Field(
        default=0.0,
        ge=0,
        description="Days after which a run that has ended or gone silent is deleted; 0 keeps all runs.",
    )
    retention_every: float = Field(default=3600.0, gt=0, description="Seconds between two searches for such runs.")
    live_queue: int = Field(
        default=256,
        ge=8,
        description="Live messages that are queued per subscriber; beyond that, the oldest are dropped.",
    )
    lease_seconds: float = Field(
        default=15.0,
        gt=0,
        description="Seconds after which another server takes over the detectors of a run if the server that had them "
        "no "
        "longer renews its lease.",
    )
    live_tail: int = Field(
        default=4096,
        ge=64,
        description="Live messages of all runs that are kept for viewers that reconnect with a cursor.",
    )
    live_run_tail: int = Field(
        default=256, ge=16, description="Live messages that are kept per run for viewers of single runs (with Redis)."
    )
    run_messages_per_second: float = Field(
        default=5.0, gt=0, description="Maximum number of summaries per second that are pushed for one run."
    )
    compact_every: float = Field(
        default=2.0, gt=0, description="Seconds between two searches for measurements to compact into tiles."
    )
    cache_bytes: int = Field(
        default=256 * 1024 * 1024, ge=0, description="Bytes of memory for decoded tiles and segments of queries."
    )
    shutdown_timeout: float = Field(
        default=10.0, gt=0, description="Seconds that commits in progress have to finish at shutdown."
    )
    secret_key: str | None = Field(
        default=None,
        repr=False,
        description="Key that encrypts the secrets of channels: 32 random bytes in URL-safe base64. To change it, list "
        "several, separated by commas: the first encrypts, all decrypt. Default: DATA/secret.key, created on first "
        "use; "
        "servers that share a database must share a key. Or SPIKEWATCH_SECRET_KEY_FILE names a file that holds it.",
    )
    notify_allow_private: bool = Field(
        default=False,
        description="Whether channels may use loopback, private and link-local addresses, and plain http.",
    )
    slack_webhook: str | None = Field(
        default=None,
        repr=False,
        description="An incoming webhook of Slack that receives alerts without further setup. Or "
        "SPIKEWATCH_SLACK_WEBHOOK_FILE names a file that holds it.",
    )
    slack_api_url: str = Field(
        default="https://slack.com/api/", description="Address of Slack's Web API; another one is for tests."
    )
    session_days: float = Field(default=30.0, gt=0, description="Days for which a login of the dashboard is valid.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read options first, then the environment, then secret files."""
        return init_settings, env_settings, SecretFiles(settings_cls, SECRETS, os.environ)

    @field_validator("home", "data")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @property
    def data_directory(self) -> Path:
        """Directory of the embedded database and of keys."""
        return self.data if self.data is not None else self.home.expanduser() / "data"

    @property
    def resolved_database_url(self) -> str:
        """URL of the database, with the embedded database as default and the password filled in."""
        if self.database_url is not None:
            return _with_password(self.database_url, self.database_password)
        return f"sqlite:///{(self.data_directory / 'spikewatch.sqlite3').absolute()}"

    @property
    def token_file(self) -> Path:
        """File in which `up` provides its token to SDKs on the same machine."""
        return self.home.expanduser() / f"server-{self.port}.token"

    @property
    def admin_token_file(self) -> Path:
        """File in which `up` keeps its token across restarts, so that open pages and trainings stay logged in."""
        return self.data_directory / "admin.token"

    @property
    def secret_key_file(self) -> Path:
        """File in which the key for secrets of channels is created if none is set."""
        return self.data_directory / "secret.key"

    @property
    def api_url(self) -> str:
        """Address at which this process reaches itself."""
        host = self.host if self.host in LOOPBACK_HOSTS else "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def open_url(self) -> str:
        """Address that users open."""
        return self.public_url.rstrip("/") if self.public_url is not None else self.api_url

    def with_port(self, port: int) -> Self:
        """Return a copy with the port that was bound."""
        return self.model_copy(update={"port": port})

    def with_admin_token(self, token: str) -> Self:
        """Return a copy with an admin token."""
        return self.model_copy(update={"admin_token": token})


def _with_password(url: str, password: str | None) -> str:
    """Return the URL with the password inserted if it names a user without one."""
    parts = urlsplit(url)
    user, at, address = parts.netloc.rpartition("@")
    if password is None or not at or ":" in user:
        return url
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{address}"))
