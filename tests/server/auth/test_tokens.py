"""Tokens: who they let in, and for how long."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from server.auth.sessions import Sessions
from server.auth.token_file import load_token_file, write_token_file
from server.auth.tokens import TOKEN_CACHE, Authenticator, digest_of, new_token
from server.models import Principal, Scope
from server.storage.database import Database
from server.storage.tokens import TokenStore


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_token_gives_what_it_was_made_for(database: Database, clock: Clock) -> None:
    store = TokenStore(database)
    token = new_token()
    await store.create(digest_of(token), Scope.WRITE, "project", "a label", 0.0)
    authenticator = Authenticator(store, admin_token="sw_admin_token_0000", clock=clock)
    assert await authenticator.principal(token) == Principal(scope=Scope.WRITE, project="project")
    assert await authenticator.principal("sw_admin_token_0000") == Principal(scope=Scope.ADMIN)
    for wrong in (None, "", token + "x", token[:-1], digest_of(token), "x" * 10_000, "\udc80"):
        assert await authenticator.principal(wrong) is None


async def test_a_revoked_token_works_no_longer_than_the_cache(database: Database, clock: Clock) -> None:
    store = TokenStore(database)
    token = new_token()
    await store.create(digest_of(token), Scope.READ, None, "", 0.0)
    authenticator = Authenticator(store, admin_token=None, clock=clock)
    assert await authenticator.principal(token) is not None
    assert await store.revoke(digest_of(token), 1.0)
    assert not await store.revoke(digest_of(token), 1.0)
    clock.now += TOKEN_CACHE + 1
    assert await authenticator.principal(token) is None


async def test_the_database_never_sees_a_token(database: Database) -> None:
    token = new_token()
    await TokenStore(database).create(digest_of(token), Scope.READ, None, "", 0.0)
    found = await TokenStore(database).find(digest_of(token))
    assert found is not None
    assert token not in repr(found)


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (Scope.READ, {Scope.READ}),
        (Scope.WRITE, {Scope.READ, Scope.WRITE}),
        (Scope.ADMIN, {Scope.READ, Scope.WRITE, Scope.ADMIN}),
    ],
)
def test_each_scope_includes_the_one_before(scope: Scope, allowed: set[Scope]) -> None:
    assert {other for other in Scope if Principal(scope=scope).may(other)} == allowed


def test_a_session_ends_and_cannot_be_made_up(clock: Clock) -> None:
    sessions = Sessions("secret", days=1, clock=clock)
    value = sessions.issue()
    assert sessions.is_valid(value)
    expiry, _, signature = value.partition(".")
    for forged in (f"{int(expiry) + 1}.{signature}", f"{expiry}.", "", "x.y", f"{expiry}.{signature[:-1]}é"):
        assert not sessions.is_valid(forged)
    assert not Sessions("another", days=1, clock=clock).is_valid(value)
    clock.now += 86_401
    assert not sessions.is_valid(value)


def test_a_token_file_is_for_its_owner_alone_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "admin.token"
    token = load_token_file(path)
    assert load_token_file(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert load_token_file(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_token_file(path, "another")
    assert path.read_text() == "another\n"
    assert [item.name for item in path.parent.iterdir()] == ["admin.token"]
