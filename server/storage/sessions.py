"""Logins of the dashboard, known by their digest alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import delete, or_, select

from server.schema import sessions, tokens
from server.storage.database import Database
from server.storage.tokens import StoredToken, pieces, stored_token


@dataclass(frozen=True, kw_only=True)
class StoredSession:
    digest: str
    kind: str
    token: StoredToken | None
    proof: str | None
    expires_at: float


class SessionStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, digest: str, *, kind: str, token_id: int | None, proof: str | None, now: float, expires_at: float
    ) -> None:
        """Keep a login, and forget those that are over."""
        values = {"kind": kind, "token_id": token_id, "proof": proof, "created_at": now, "expires_at": expires_at}
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            await connection.execute(sessions.insert().values(digest=digest, **values))

    async def find(self, digest: str) -> StoredSession | None:
        """The login with this SHA-256 digest (hexadecimal); None where there is none, or where its token was revoked.
        Whether its time is over is for the caller to see."""
        query = (
            select(sessions.c.kind, sessions.c.token_id, sessions.c.proof, sessions.c.expires_at, *tokens.c)
            .select_from(sessions.outerjoin(tokens))
            .where(sessions.c.digest == digest, _opener_lives)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        token = None if row.token_id is None else stored_token(row)
        return StoredSession(digest=digest, kind=row.kind, token=token, proof=row.proof, expires_at=row.expires_at)

    async def living(self, digests: Collection[str], now: float) -> set[str]:
        """Those among them that are not over."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for piece in pieces(digests):
                query = (
                    select(sessions.c.digest)
                    .select_from(sessions.outerjoin(tokens))
                    .where(sessions.c.digest.in_(piece), sessions.c.expires_at > now, _opener_lives)
                )
                found.update((await connection.execute(query)).scalars())
        return found

    async def delete(self, digest: str) -> None:
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.digest == digest))


_opener_lives = or_(sessions.c.token_id.is_(None), tokens.c.revoked_at.is_(None))
