"""Logins of the dashboard, identified by their digest alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import delete, or_, select

from server.schema import sessions, tokens
from server.storage.database import Database
from server.storage.tokens import StoredToken, pieces, stored_token


@dataclass(frozen=True, kw_only=True)
class StoredSession:
    """Login as it is stored, without the credential itself."""

    digest: str
    kind: str
    token: StoredToken | None
    proof: str | None
    expires_at: float


class SessionStore:
    """Stores the digests of logins."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, digest: str, *, kind: str, token_id: int | None, proof: str | None, now: float, expires_at: float
    ) -> None:
        """Store a login, and remove those that have expired."""
        values = {"kind": kind, "token_id": token_id, "proof": proof, "created_at": now, "expires_at": expires_at}
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            await connection.execute(sessions.insert().values(digest=digest, **values))

    async def find(self, digest: str) -> StoredSession | None:
        """Return the login with this SHA-256 digest (hexadecimal), or None if there is none or its token was revoked.

        The caller has to check whether the login has expired.
        """
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

    async def filter_valid(self, digests: Collection[str], now: float) -> set[str]:
        """Return the digests of those logins that are still valid."""
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
        """Remove a login, if there is one with this digest."""
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.digest == digest))


_opener_lives = or_(sessions.c.token_id.is_(None), tokens.c.revoked_at.is_(None))
