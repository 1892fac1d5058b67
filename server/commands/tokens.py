"""The commands ``spikewatch token …``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from client_sdk import answers
from client_sdk.protocol import MAX_NAME_CHARS
from server.auth.tokens import digest_of, new_token
from server.commands.context import Data, load_config, one_line_errors, with_database
from server.errors import ConfigurationError
from server.models import Scope
from server.storage import migrate
from server.storage.database import Database
from server.storage.tokens import TokenStore
from server.terminal_table import print_table

app = typer.Typer(help="Manage the tokens of programs.", no_args_is_help=True)


@app.command("create")
def create_token(
    scope: Annotated[Scope, typer.Option(help="What the token permits; each scope includes the one before.")],
    project: Annotated[
        str | None, typer.Option(help="The only project that the token gives access to. [default: all]")
    ] = None,
    label: Annotated[str, typer.Option(help="Purpose of the token.")] = "",
    data: Data = None,
) -> None:
    """Create a token and print it once; the database stores only its hash."""
    token = new_token()

    async def create(database: Database) -> None:
        await migrate.upgrade(database)
        await TokenStore(database).create(digest_of(token), scope, project, label, time.time())

    with one_line_errors():
        if project is not None and not 0 < len(project) <= MAX_NAME_CHARS:
            raise ConfigurationError(f"--project: use 1 … {MAX_NAME_CHARS} characters")
        with_database(load_config(data=data), create)
        print(token)


@app.command("list")
def list_tokens(data: Data = None) -> None:
    """List all tokens with what they permit and when they were last used. The tokens themselves are not stored."""

    async def read(database: Database) -> list[answers.Token]:
        await migrate.upgrade(database)
        return await TokenStore(database).all(None)

    with one_line_errors():
        found = with_database(load_config(data=data), read)
    if not found:
        print("No tokens yet: `spikewatch token create` creates one.")
        return
    rows = []
    for token in found:
        created, used = _minute(token.created_at), _minute(token.last_used_at)
        state = "valid" if token.revoked_at is None else f"revoked {_minute(token.revoked_at)}"
        project = token.project if token.project is not None else "(all)"
        rows.append((str(token.id), token.scope, project, token.label, created, used, state))
    print_table(("ID", "SCOPE", "PROJECT", "LABEL", "CREATED", "LAST USED", "STATE"), rows)


@app.command("revoke")
def revoke_token(
    number: Annotated[int, typer.Argument(metavar="ID", help="Id of the token, from `spikewatch token list`.")],
    data: Data = None,
) -> None:
    """Revoke a token and the logins that it opened. Running servers close its connections within seconds."""

    async def revoke(database: Database) -> bool:
        await migrate.upgrade(database)
        return await TokenStore(database).revoke(number, time.time())

    with one_line_errors():
        if not with_database(load_config(data=data), revoke):
            raise ConfigurationError(f"there is no token {number} to revoke; `spikewatch token list` lists them")
        print(f"The token {number} is revoked.")


def _minute(when: float | None) -> str:
    return "never" if when is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
