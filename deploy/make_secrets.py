"""Creates the random secrets of docker-compose.yml, each in a file that only its owner can read.

    python3 make_secrets.py DIRECTORY

Existing files are kept, so that every start may run this.
"""

from __future__ import annotations

import base64
import secrets
import sys
from pathlib import Path

from server.auth.token_file import write_token_file
from server.auth.tokens import new_token

DATABASE = "spikewatch"  # the name of the database and of its user


def main(directory: Path) -> None:
    """Create the secrets that are missing in a directory."""
    directory.chmod(0o700)
    postgres = _kept(directory / "postgres_password", secrets.token_urlsafe(32))
    redis = _kept(directory / "redis_password", secrets.token_urlsafe(32))
    _kept(directory / "database_url", f"postgresql://{DATABASE}:{postgres}@postgres/{DATABASE}")
    _kept(directory / "redis_url", f"redis://:{redis}@redis:6379/0")
    _kept(directory / "admin_token", new_token())
    # Encrypts the secrets of notification channels in the database; all servers share it.
    _kept(directory / "secret_key", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())


def _kept(path: Path, secret: str) -> str:
    """Return the contents of a file, which is created with the given secret if it does not exist."""
    if not path.exists():
        write_token_file(path, secret)
    return path.read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
