"""Secrets of channels, encrypted at rest: who copies the database alone can open no channel.

Fernet (AES-128-CBC with HMAC-SHA256). The key comes from SPIKEWATCH_SECRET_KEY or a file; where neither is set, one is
made in the data directory. Several servers on one database need the same key.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from server.auth.token_file import write_token_file
from server.errors import ConfigurationError, SecretLostError


class SecretBox:
    """Seals small maps of text. The first of several keys seals, all of them open."""

    def __init__(self, keys: Callable[[], str]) -> None:
        """``keys``: gives Fernet keys, separated by commas, when the first secret is sealed or opened."""
        self._keys = keys

    @cached_property
    def _fernet(self) -> MultiFernet:
        try:
            return MultiFernet([Fernet(key.strip()) for key in self._keys().split(",") if key.strip()])
        except (ValueError, binascii.Error) as error:
            raise ConfigurationError(
                "SPIKEWATCH_SECRET_KEY is no key: make one with `openssl rand -base64 32 | tr '+/' '-_'`"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"the key file {error.filename} cannot be used ({error.strerror})") from error

    def check(self) -> None:
        """Raises `ConfigurationError` where the keys cannot be used."""
        assert self._fernet is not None

    def seal(self, secret: Mapping[str, str]) -> bytes:
        """Raises `ConfigurationError` as `check`."""
        return self._fernet.encrypt(json.dumps(dict(secret)).encode())

    def open(self, sealed: bytes) -> dict[str, str]:
        """Raises `SecretLostError` where it was sealed with a key that is not known here, or there is none."""
        try:
            opened: dict[str, str] = json.loads(self._fernet.decrypt(sealed))
        except (InvalidToken, ConfigurationError) as error:
            raise SecretLostError from error
        return opened


def load_secret_box(key: str | None, file: Path) -> SecretBox:
    """With a key that must be usable now, else with that of a file, which is made when the first secret needs it.

    Raises `ConfigurationError`.
    """
    if key is None:
        return SecretBox(lambda: _kept(file))
    box = SecretBox(lambda: key)
    box.check()
    return box


def _kept(path: Path) -> str:
    if not path.exists():
        _make(path)
    return path.read_text()


def _make(path: Path) -> None:
    """A new key with mode 0600. Two servers that start at once agree on the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    write_token_file(draft, base64.urlsafe_b64encode(os.urandom(32)).decode())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
