"""Tokens, known by their digest alone."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update

from server.models import Principal, Scope
from server.schema import tokens
from server.storage.database import Database


@dataclass(frozen=True, kw_only=True)
class StoredToken:
    id: int
    digest: str
    principal: Principal


class TokenStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, digest: str, scope: Scope, project: str | None, label: str, now: float) -> None:
        async with self._database.write() as connection:
            await connection.execute(
                tokens.insert().values(digest=digest, scope=scope, project=project, label=label, created_at=now)
            )

    async def find(self, digest: str) -> StoredToken | None:
        """The token with this SHA-256 digest (hexadecimal), None where there is none or it was revoked."""
        async with self._database.read() as connection:
            query = select(tokens).where(tokens.c.digest == digest, tokens.c.revoked_at.is_(None))
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        principal = Principal(scope=Scope(row.scope), project=row.project)
        return StoredToken(id=row.id, digest=row.digest, principal=principal)

    async def touch(self, token_id: int, now: float) -> None:
        """Note that the token was used."""
        async with self._database.write() as connection:
            await connection.execute(update(tokens).where(tokens.c.id == token_id).values(last_used_at=now))

    async def revoke(self, digest: str, now: float) -> bool:
        async with self._database.write() as connection:
            result = await connection.execute(
                update(tokens).where(tokens.c.digest == digest, tokens.c.revoked_at.is_(None)).values(revoked_at=now)
            )
            return result.rowcount > 0
