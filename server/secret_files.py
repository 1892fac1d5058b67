"""Reads secrets from files: ``SPIKEWATCH_X_FILE`` names a file with the value of ``SPIKEWATCH_X``.

Orchestrators provide secrets as files (``/run/secrets/…``), so that none appears in a process list or in the settings
of a container.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

SUFFIX = "_FILE"
"""Suffix of a variable that names a file."""
MAX_BYTES = 65_536
"""Largest file that is accepted as a secret."""


def secret(environment: Mapping[str, str], name: str) -> str | None:
    """Return the value of a variable, or the contents of the file that its ``_FILE`` variant names.

    Line ends around the contents are removed. Returns None if neither is set; an empty variable counts as not set,
    because compose files leave unset variables empty. Raises `ValueError` with a message for the terminal if both are
    set, or if the file cannot be read, is empty or is too large.
    """
    given, path = environment.get(name) or None, environment.get(name + SUFFIX) or None
    if path is None:
        return given
    if given is not None:
        raise ValueError(f"{name} and {name}{SUFFIX} are both set; keep one of them")
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode().strip("\r\n")
    except OSError as error:
        raise ValueError(f"{name}{SUFFIX}: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}{SUFFIX}: {path} is not text in UTF-8") from error
    if not text or len(content) > MAX_BYTES:
        raise ValueError(f"{name}{SUFFIX}: {path} {'is empty' if not text else 'is too large for a secret'}")
    return text


class SecretFiles(PydanticBaseSettingsSource):
    """A source of settings for pydantic that reads the fields ``names`` with `secret`."""

    def __init__(self, settings: type[BaseSettings], names: tuple[str, ...], environment: Mapping[str, str]) -> None:
        super().__init__(settings)
        self._names = names
        self._environment = environment
        self._prefix = settings.model_config.get("env_prefix", "")

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value of a field, its name, and that the value is not JSON."""
        variable = f"{self._prefix}{field_name}".upper()
        return secret(self._environment, variable), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the fields that are set."""
        found = {name: self.get_field_value(self.settings_cls.model_fields[name], name)[0] for name in self._names}
        return {name: value for name, value in found.items() if value is not None}
