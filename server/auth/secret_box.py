"""Encryption of channel secrets at rest: a copy of the database alone does not reveal them.

The cipher is Fernet (AES-128-CBC with HMAC-SHA256). The key comes from SPIKEWATCH_SECRET_KEY or from a file; if neither
is set, a key is created in the data directory. Several servers on one database need the same key.
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
    """Encrypts small mappings of strings. The first of several keys encrypts; every key decrypts."""

    def __init__(self, keys: Callable[[], str]) -> None:
        """Create a box. ``keys`` returns Fernet keys separated by commas, and is called when they are first needed."""
        self._keys = keys

    @cached_property
    def _fernet(self) -> MultiFernet:
        try:
            return MultiFernet([Fernet(key.strip()) for key in self._keys().split(",") if key.strip()])
        except (ValueError, binascii.Error) as error:
            raise ConfigurationError(
                "SPIKEWATCH_SECRET_KEY is not a valid key; create one with `openssl rand -base64 32 | tr '+/' '-_'`"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"the key file {error.filename} cannot be used ({error.strerror})") from error

    def check(self) -> None:
        """Raise `ConfigurationError` if the keys cannot be used."""
        assert self._fernet is not None

    def seal(self, secret: Mapping[str, str]) -> bytes:
        """Encrypt a secret. Raises `ConfigurationError` if the keys cannot be used."""
        return self._fernet.encrypt(json.dumps(dict(secret)).encode())

    def open(self, sealed: bytes) -> dict[str, str]:
        """Decrypt a secret. Raises `SecretLostError` if it was encrypted with another key or no key is available."""
        try:
            opened: dict[str, str] = json.loads(self._fernet.decrypt(sealed))
        except (InvalidToken, ConfigurationError) as error:
            raise SecretLostError from error
        return opened


def load_secret_box(key: str | None, file: Path) -> SecretBox:
    """Return a box with the given key, or with the key of a file, which is created when it is first needed.

    Raises `ConfigurationError` if a given key cannot be used.
    """
    if key is None:
        return SecretBox(lambda: _read_or_create(file))
    box = SecretBox(lambda: key)
    box.check()
    return box


def _read_or_create(path: Path) -> str:
    if not path.exists():
        _create(path)
    return path.read_text()


def _create(path: Path) -> None:
    """Create a key file with mode 0600. Two servers that start at the same time agree on one key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    write_token_file(draft, base64.urlsafe_b64encode(os.urandom(32)).decode())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
