"""Settings of a run and of its server, from arguments and environment variables.

Owns the names and defaults of the environment variables, and the search for the token that `spikewatch up` stores on
this machine. Reads only the environment that it is given and that token file.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import SplitResult, urlsplit, urlunsplit

import msgspec

from client_sdk.errors import ConfigurationError
from client_sdk.launch import Launch
from client_sdk.protocol import MAX_NAME_CHARS

ENV_URL: Final = "SPIKEWATCH_URL"
ENV_TOKEN: Final = "SPIKEWATCH_TOKEN"  # noqa: S105 - the name of a variable
ENV_MODE: Final = "SPIKEWATCH_MODE"
ENV_DIR: Final = "SPIKEWATCH_DIR"
ENV_HOME: Final = "SPIKEWATCH_HOME"
ENV_RUN_ID: Final = "SPIKEWATCH_RUN_ID"
ENV_SPOOL_BYTES: Final = "SPIKEWATCH_SPOOL_BYTES"

DEFAULT_URL: Final = "http://127.0.0.1:8787"
DEFAULT_DIRECTORY: Final = ".spikewatch"
DEFAULT_HOME: Final = "~/.spikewatch"
DEFAULT_SPOOL_BYTES: Final = 2 * 1024**3  # on the disk and not acknowledged
MIN_SPOOL_BYTES: Final = 64 * 1024**2  # several spool files, so that some of them can be thinned
INGEST_PATH: Final = "/api/v1/ingest"
MAX_CONFIG_BYTES: Final = 1024 * 1024
MAX_TAGS: Final = 64
MAX_CONFIG_DEPTH: Final = 16

Mode = Literal["online", "offline", "disabled"]

_SCHEMES: Final = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Address of the server, and the token for it."""

    url: str = DEFAULT_URL
    token: str | None = None
    """Token of the server, or None to read the file that `spikewatch up` writes at every connection: the server may
    start later."""
    home: Path = Path(DEFAULT_HOME)
    """Directory of the token files."""

    @classmethod
    def resolve(cls, *, url: str | None, token: str | None, environ: Mapping[str, str]) -> Endpoint:
        """Return the endpoint; arguments win over the environment. Raises `ConfigurationError` if one is invalid."""
        url = _text("url", url if url is not None else environ.get(ENV_URL) or DEFAULT_URL)
        token = token if token is not None else environ.get(ENV_TOKEN) or None
        if token is not None:
            token = _text("token", token).strip()
            if not token or not token.isascii() or not token.isprintable() or " " in token:
                raise ConfigurationError(f"the token is invalid; expected printable ASCII. Check {ENV_TOKEN}")
        endpoint = cls(url=url, token=token, home=Path(environ.get(ENV_HOME) or DEFAULT_HOME).expanduser())
        _ = endpoint.socket_url  # raises for an invalid URL now instead of on the sender thread
        return endpoint

    @property
    def socket_url(self) -> str:
        """Address of the ingest websocket."""
        parts = self._parts
        return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, parts.path.rstrip("/") + INGEST_PATH, "", ""))

    def find_token(self) -> str | None:
        """Return the given token, or the one that a server on this machine stored for its port, or None."""
        if self.token is not None:
            return self.token
        if not self.is_local:
            return None
        parts = self._parts
        port = parts.port or _DEFAULT_PORTS[_SCHEMES[parts.scheme]]
        try:
            return (self.home / f"server-{port}.token").read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    @property
    def host(self) -> str:
        """Name or address of the server."""
        return self._parts.hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine, where no proxy can reach it."""
        return _is_loopback(self.host)

    @property
    def _parts(self) -> SplitResult:
        try:
            parts = urlsplit(self.url)
            _ = parts.port  # raises for an invalid port
        except ValueError as error:
            raise ConfigurationError(f"{self.url!r} is not a URL: {error}; expected one like {DEFAULT_URL}") from error
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ConfigurationError(f"{self.url!r} is not the URL of a server; expected one like {DEFAULT_URL}")
        return parts


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Validated arguments of `init`."""

    project: str
    name: str | None
    config: dict[str, Any]
    tags: tuple[str, ...]
    mode: Mode
    directory: Path
    run_id: str | None
    rank: int
    endpoint: Endpoint
    loss: str | None = None
    """Name of the scalar that is the training loss; None leaves it to the usual names."""
    spool_bytes: int = DEFAULT_SPOOL_BYTES

    @classmethod
    def resolve(
        cls,
        *,
        project: str,
        name: str | None = None,
        config: Any = None,
        tags: Iterable[str] = (),
        url: str | None = None,
        token: str | None = None,
        mode: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        run_id: str | None = None,
        loss: str | None = None,
        environ: Mapping[str, str],
    ) -> Settings:
        """Return the settings; arguments win over the environment.

        Raises `ConfigurationError`, whose message says what to change, if one is invalid.
        """
        chosen_mode = mode if mode is not None else environ.get(ENV_MODE) or "online"
        if chosen_mode not in get_args(Mode):
            raise ConfigurationError(f"mode is {chosen_mode!r}; expected one of {', '.join(get_args(Mode))}")
        if isinstance(tags, str) or not isinstance(tags, Iterable):
            raise ConfigurationError(f"tags is {tags!r}; expected a sequence of strings, for example ('baseline',)")
        labels = tuple(_name("a tag", tag) for tag in tags)
        if len(labels) > MAX_TAGS:
            raise ConfigurationError(f"{len(labels)} tags were given; at most {MAX_TAGS} are allowed")
        chosen_directory = directory if directory is not None else environ.get(ENV_DIR) or DEFAULT_DIRECTORY
        if not isinstance(chosen_directory, str | os.PathLike):
            raise ConfigurationError(f"directory is {chosen_directory!r}; expected a path")
        run_id = run_id if run_id is not None else environ.get(ENV_RUN_ID) or None
        if run_id is not None and (not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id)):
            raise ConfigurationError(f"run_id is {run_id!r}; expected 1 to 64 letters, digits, '.', '_' or '-'")
        launch = Launch.read(_name("project", project), environ)
        return cls(
            project=project,
            name=None if name is None else _name("name", name),
            config=plain_config(config),
            tags=labels,
            mode=cast(Mode, chosen_mode),
            directory=Path(chosen_directory).expanduser().absolute(),
            run_id=run_id if run_id is not None else launch.run_id,
            rank=launch.rank,
            endpoint=Endpoint.resolve(url=url, token=token, environ=environ),
            loss=None if loss is None else _name("loss", loss),
            spool_bytes=_spool_bytes(environ.get(ENV_SPOOL_BYTES) or str(DEFAULT_SPOOL_BYTES)),
        )


def plain_config(config: Any) -> dict[str, Any]:
    """Return a configuration (a mapping, a dataclass or an `argparse.Namespace`) as JSON-like values.

    Values without such a form are converted by `str`. Raises `ConfigurationError` if the configuration is of another
    type or too large.

    >>> plain_config({"lr": 0.1, "betas": (0.9, 0.999), "path": Path("data")})
    {'lr': 0.1, 'betas': [0.9, 0.999], 'path': 'data'}
    """
    if config is None:
        return {}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    elif not isinstance(config, Mapping):
        try:
            config = vars(config)
        except TypeError:
            raise ConfigurationError(f"config is {type(config).__name__}; expected a dictionary") from None
    values: dict[str, Any] = _plain(config, 0)
    size = len(msgspec.msgpack.encode(values))
    if size > MAX_CONFIG_BYTES:
        raise ConfigurationError(f"config has {size} bytes; at most {MAX_CONFIG_BYTES} are allowed")
    return values


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if depth < MAX_CONFIG_DEPTH:
        if isinstance(value, Mapping):
            return {_clean(str(key)): _plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(item, depth + 1) for item in value]
    return _clean(str(value))


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _text(argument: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{argument} is {value!r}; expected a string")
    return value


def _name(argument: str, value: object) -> str:
    text = _text(argument, value)
    if not text or len(text) > MAX_NAME_CHARS or not text.isprintable():
        shown = text if len(text) <= 64 else text[:64] + "…"
        raise ConfigurationError(f"{argument} is {shown!r}; expected 1 to {MAX_NAME_CHARS} printable characters")
    return text


def _spool_bytes(text: str) -> int:
    size = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
    if size < MIN_SPOOL_BYTES:
        raise ConfigurationError(
            f"{ENV_SPOOL_BYTES} is {text!r}; expected a number of bytes, at least {MIN_SPOOL_BYTES}"
        )
    return size


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
