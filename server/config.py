"""Settings of the server, from the environment (``SPIKEWATCH_…``) or from the command line.

Every setting is described where it is defined; `spikewatch serve --help` and the documentation print these texts.
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
"""Settings that may come from a file instead: SPIKEWATCH_ADMIN_TOKEN_FILE and so on (`server.secret_files`)."""


class Config(BaseSettings):
    """Frozen once made; `with_port` gives the copy that knows the port really bound."""

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
        description="redis://:PASSWORD@HOST:6379/0, where several servers on one database hear each other. Default: "
        "none, one server alone. Or SPIKEWATCH_REDIS_URL_FILE names a file that holds it.",
    )
    redis_password: str | None = Field(
        default=None,
        description="The password of a Redis URL that names none. Or SPIKEWATCH_REDIS_PASSWORD_FILE names a file that "
        "holds it.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on. Every address asks for a token.")
    port: int = Field(default=8787, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    admin_token: str | None = Field(
        default=None,
        min_length=16,
        description="A token with the scope admin that is not kept in the database. `up` makes its own. Or "
        "SPIKEWATCH_ADMIN_TOKEN_FILE names a file that holds it.",
    )
    dashboard_password: str | None = Field(
        default=None,
        min_length=8,
        description="A password that opens the dashboard, beside tokens. Or SPIKEWATCH_DASHBOARD_PASSWORD_FILE names a "
        "file that holds it.",
    )
    dashboard_password_scope: Literal["read", "write", "admin"] = Field(
        default="admin", description="What a login with the password allows: read, write or admin."
    )
    login_attempts: int = Field(
        default=10, ge=1, description="Wrong logins that one address may make within the login window."
    )
    login_window: float = Field(default=300.0, gt=0, description="Seconds of the login window.")
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="Addresses and networks, separated by commas, whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed; * believes everybody's.",
    )
    max_connections: int = Field(
        default=10_000,
        ge=8,
        description="Most open connections of this process, of all clients together; fewer where the limit of open "
        "files is lower. A quarter of them may be such that have sent no whole request.",
    )
    token_connections: int = Field(default=2_000, ge=1, description="Most open sockets of one token in this process.")
    token_connections_per_second: float = Field(
        default=100.0, gt=0, description="Most new sockets a second of one token, after a first burst."
    )
    token_values_per_second: float = Field(
        default=0.0,
        ge=0,
        description="Most numbers a second that are read from the sockets of one token; above, they wait. 0: no limit.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Logs as lines for people, or as one JSON object a line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="What is logged: debug, info, warning or error, and everything above it."
    )
    metrics_token: str | None = Field(
        default=None,
        min_length=16,
        description="A token that opens /metrics and nothing else. Or SPIKEWATCH_METRICS_TOKEN_FILE names a file that "
        "holds it.",
    )
    metrics_open_to_loopback: bool = Field(
        default=True, description="Whether /metrics needs no token from the same machine."
    )
    max_body_bytes: int = Field(
        default=1024 * 1024, ge=1024, description="Largest body of a request to the API; larger ones get 413."
    )
    request_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Seconds that a connection has to send the head of a request, and again for its body.",
    )
    dashboard: bool = Field(default=True, description="Serve the dashboard at / (embedded mode).")
    public_url: str | None = Field(
        default=None, description="The address that people open, where it is not http://HOST:PORT."
    )
    max_frame_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="Largest ingest frame; larger ones are refused with `too_large`."
    )
    hello_timeout: float = Field(default=10.0, gt=0, description="Seconds that a new connection has to say hello.")
    queued_frames: int = Field(
        default=4, ge=1, description="Frames held per connection before its socket is no longer read."
    )
    group_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1, description="Largest sum of frames of one connection that share a commit."
    )
    stale_after: float = Field(default=60.0, gt=0, description="Seconds of silence after which a run is stale.")
    heartbeat_every: float = Field(
        default=10.0, gt=0, description="Seconds between two checks of connections and run states."
    )
    retention_days: float = Field(
        default=0.0,
        ge=0,
        description="Days after which a run that has ended or fallen silent is deleted; 0 keeps all for ever.",
    )
    retention_every: float = Field(default=3600.0, gt=0, description="Seconds between two looks for such runs.")
    live_queue: int = Field(
        default=256, ge=8, description="Messages held per live subscriber; beyond, the oldest are dropped."
    )
    lease_seconds: float = Field(
        default=15.0,
        gt=0,
        description="Seconds after which another server takes over the detectors of a run, where the one that had them "
        "no longer says that it is there.",
    )
    live_tail: int = Field(
        default=4096, ge=64, description="Messages of all runs kept for viewers that come back with a cursor."
    )
    live_run_tail: int = Field(
        default=256, ge=16, description="The same for each run, where viewers watch only some (with Redis)."
    )
    run_messages_per_second: float = Field(
        default=5.0, gt=0, description="Most run summaries a second that are pushed for one run."
    )
    compact_every: float = Field(
        default=2.0, gt=0, description="Seconds between two looks for measurements to compact into tiles."
    )
    cache_bytes: int = Field(
        default=256 * 1024 * 1024, ge=0, description="Memory for decoded tiles and segments of queries."
    )
    shutdown_timeout: float = Field(
        default=10.0, gt=0, description="Seconds that commits in flight have to finish at shutdown."
    )
    secret_key: str | None = Field(
        default=None,
        repr=False,
        description="Key that encrypts the secrets of channels: 32 random bytes in URL-safe base64. Several, separated "
        "by commas, change it: the first encrypts, all decrypt. Default: DATA/secret.key, made when it is first "
        "needed; servers that share a database share a key. Or SPIKEWATCH_SECRET_KEY_FILE names a file that holds it.",
    )
    notify_allow_private: bool = Field(
        default=False,
        description="Let channels lead to loopback, private and link-local addresses, and to plain http.",
    )
    slack_webhook: str | None = Field(
        default=None,
        repr=False,
        description="An incoming webhook of Slack: alerts go there without any page. Or "
        "SPIKEWATCH_SLACK_WEBHOOK_FILE names a file that holds it.",
    )
    slack_api_url: str = Field(
        default="https://slack.com/api/", description="Where Slack's Web API answers; another one for tests."
    )
    session_days: float = Field(default=30.0, gt=0, description="Days that a login of the dashboard lasts.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SecretFiles(settings_cls, SECRETS, os.environ)

    @field_validator("home", "data")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @property
    def data_directory(self) -> Path:
        return self.data if self.data is not None else self.home.expanduser() / "data"

    @property
    def resolved_database_url(self) -> str:
        """The URL of the database, with the embedded default filled in."""
        if self.database_url is not None:
            return _with_password(self.database_url, self.database_password)
        return f"sqlite:///{(self.data_directory / 'spikewatch.sqlite3').absolute()}"

    @property
    def token_file(self) -> Path:
        """Where `up` leaves its token for SDKs on the same machine."""
        return self.home.expanduser() / f"server-{self.port}.token"

    @property
    def admin_token_file(self) -> Path:
        """Where `up` keeps its token from one start to the next, so that open pages and trainings stay logged in."""
        return self.data_directory / "admin.token"

    @property
    def secret_key_file(self) -> Path:
        """Where the key of the channels' secrets is made, where none is set."""
        return self.data_directory / "secret.key"

    @property
    def api_url(self) -> str:
        """The address at which this process reaches itself."""
        host = self.host if self.host in LOOPBACK_HOSTS else "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def open_url(self) -> str:
        """The address that people open."""
        return self.public_url.rstrip("/") if self.public_url is not None else self.api_url

    def with_port(self, port: int) -> Self:
        return self.model_copy(update={"port": port})

    def with_admin_token(self, token: str) -> Self:
        return self.model_copy(update={"admin_token": token})


def _with_password(url: str, password: str | None) -> str:
    """The URL with the password, where it names a user without one."""
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    if password is None or not at or ":" in user:
        return url
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{place}"))
