"""API tokens, identified by their digest alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import delete, select, update

from client_sdk import answers
from server.models import Principal, Scope
from server.schema import sessions, tokens
from server.storage.database import Database
from server.storage.id_list import padded

MAX_DIGESTS = 500


@dataclass(frozen=True, kw_only=True)
class StoredToken:
    """Token as it is stored, without the secret itself."""

    id: int
    digest: str
    principal: Principal


class TokenStore:
    """Stores the digests of tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, digest: str, scope: Scope, project: str | None, label: str, now: float) -> int:
        """Store a token and return its id."""
        values = {"digest": digest, "scope": scope, "project": project, "label": label, "created_at": now}
        async with self._database.write() as connection:
            token_id: int = await connection.scalar(tokens.insert().values(**values).returning(tokens.c.id))
            return token_id

    async def find(self, digest: str) -> StoredToken | None:
        """Return the token with this SHA-256 digest (hexadecimal), or None if there is none or it was revoked."""
        async with self._database.read() as connection:
            query = select(tokens).where(tokens.c.digest == digest, tokens.c.revoked_at.is_(None))
            row = (await connection.execute(query)).first()
        return None if row is None else stored_token(row)

    async def was_revoked(self, digest: str) -> bool:
        """Return whether there is a token with this digest that was revoked."""
        async with self._database.read() as connection:
            query = select(tokens.c.id).where(tokens.c.digest == digest, tokens.c.revoked_at.is_not(None))
            return (await connection.execute(query)).first() is not None

    async def filter_valid(self, digests: Collection[str]) -> set[str]:
        """Return the digests of those tokens that are not revoked."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for piece in pieces(digests):
                query = select(tokens.c.digest).where(tokens.c.digest.in_(piece), tokens.c.revoked_at.is_(None))
                found.update((await connection.execute(query)).scalars())
        return found

    async def all(self, project: str | None) -> list[answers.Token]:
        """Return every token without its digest, oldest first, restricted to ``project`` where it is given."""
        shown = [column for column in tokens.c if column.name != "digest"]
        query = select(*shown).order_by(tokens.c.id)
        if project is not None:
            query = query.where(tokens.c.project == project)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings()
            return [msgspec.convert(row, answers.Token, from_attributes=True) for row in rows]

    async def touch(self, token_id: int, now: float) -> None:
        """Record that the token was used."""
        async with self._database.write() as connection:
            await connection.execute(update(tokens).where(tokens.c.id == token_id).values(last_used_at=now))

    async def revoke(self, token_id: int, now: float, *, project: str | None = None) -> bool:
        """Revoke a token and end the logins that it opened. Returns False if there is no such valid token.

        ``project`` restricts the call to tokens of one project.
        """
        these = [tokens.c.id == token_id, tokens.c.revoked_at.is_(None)]
        if project is not None:
            these.append(tokens.c.project == project)
        async with self._database.write() as connection:
            result = await connection.execute(update(tokens).where(*these).values(revoked_at=now))
            if result.rowcount > 0:
                await connection.execute(delete(sessions).where(sessions.c.token_id == token_id))
            return result.rowcount > 0


def stored_token(row: Any) -> StoredToken:
    """Return the token of a database row."""
    principal = Principal(scope=Scope(row.scope), project=row.project, key=f"token:{row.id}", label=row.label)
    return StoredToken(id=row.id, digest=row.digest, principal=principal)


def pieces(digests: Collection[str]) -> Iterator[list[str]]:
    """Split digests into `padded` lists, one for each statement."""
    known = sorted(digests)
    return (padded(known[first : first + MAX_DIGESTS]) for first in range(0, len(known), MAX_DIGESTS))
