"""Files that contain a token and are readable only by their owner."""

from __future__ import annotations

import os
from pathlib import Path

from server.auth.tokens import new_token


def write_token_file(path: Path, token: str) -> None:
    """Write a token to a file with mode 0600, atomically. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def load_token_file(path: Path) -> str:
    """Return the token of a file, creating the token and the file if there is none. Raises `OSError`."""
    if path.exists():
        path.chmod(0o600)
        kept = path.read_text().strip()
        if kept:
            return kept
    token = new_token()
    write_token_file(path, token)
    return token
