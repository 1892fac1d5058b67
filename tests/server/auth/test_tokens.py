"""Tokens: what they allow, and how long they are valid."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from server.auth.logins import Logins, LoginSettings, _network
from server.auth.throttle import MAX_KEYS, Throttle
from server.auth.token_file import load_token_file, write_token_file
from server.auth.tokens import TOKEN_CACHE, Authenticator, digest_of, new_session, new_token
from server.errors import ApiError
from server.models import Principal, Scope
from server.storage.database import Database
from server.storage.sessions import SessionStore
from server.storage.tokens import StoredToken, TokenStore


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_token_grants_its_scope_and_project(database: Database, clock: Clock) -> None:
    store = TokenStore(database)
    token = new_token()
    await store.create(digest_of(token), Scope.WRITE, "project", "a label", 0.0)
    authenticator = Authenticator(store, SessionStore(database), admin_token="sw_admin_token_0000", clock=clock)
    assert await authenticator.principal(token) == Principal(scope=Scope.WRITE, project="project")
    assert await authenticator.principal("sw_admin_token_0000") == Principal(scope=Scope.ADMIN)
    for wrong in (None, "", token + "x", token[:-1], digest_of(token), "x" * 10_000, "\udc80"):
        assert await authenticator.principal(wrong) is None


async def test_a_revoked_token_works_no_longer_than_the_cache(database: Database, clock: Clock) -> None:
    store = TokenStore(database)
    token = new_token()
    token_id = await store.create(digest_of(token), Scope.READ, None, "", 0.0)
    authenticator = Authenticator(store, SessionStore(database), admin_token=None, clock=clock)
    assert await authenticator.principal(token) is not None
    assert await store.revoke(token_id, 1.0)
    assert not await store.revoke(token_id, 1.0)
    clock.now += TOKEN_CACHE + 1
    assert await authenticator.principal(token) is None


async def test_a_refusal_tells_a_missing_an_unknown_and_a_revoked_token_and_an_ended_login_apart(
    database: Database, clock: Clock
) -> None:
    store = TokenStore(database)
    token = new_token()
    token_id = await store.create(digest_of(token), Scope.READ, None, "", 0.0)
    authenticator = Authenticator(store, SessionStore(database), admin_token=None, clock=clock)
    await store.revoke(token_id, 1.0)
    missing, unknown, revoked, ended = [
        await authenticator.refusal(credential) for credential in (None, new_token(), token, new_session())
    ]
    assert {refusal.code for refusal in (missing, unknown, revoked, ended)} == {"unauthenticated"}
    assert len({refusal.message for refusal in (missing, unknown, revoked, ended)}) == 4
    assert "was revoked" in revoked.message
    assert "does not know" in unknown.message
    assert missing.authenticate == "Bearer"
    assert {unknown.authenticate, revoked.authenticate, ended.authenticate} == {'Bearer error="invalid_token"'}


async def test_only_the_whole_revoked_token_is_recognised(database: Database, clock: Clock) -> None:
    """Nobody who holds a part of a token, its digest or its id learns anything from the refusal."""
    store = TokenStore(database)
    token = new_token()
    token_id = await store.create(digest_of(token), Scope.READ, None, "", 0.0)
    authenticator = Authenticator(store, SessionStore(database), admin_token=None, clock=clock)
    await store.revoke(token_id, 1.0)
    unknown = (await authenticator.refusal(new_token())).message
    for other in (token[:-1], token + "x", digest_of(token), str(token_id), "x" * 10_000, "\udc80"):
        assert (await authenticator.refusal(other)).message == unknown


async def test_refused_tokens_ask_the_database_once_in_a_while(database: Database, clock: Clock) -> None:
    store = TokenStore(database)
    asked: list[str] = []
    was_revoked = store.was_revoked

    async def counting(digest: str) -> bool:
        asked.append(digest)
        return await was_revoked(digest)

    store.was_revoked = counting  # type: ignore[method-assign]
    authenticator = Authenticator(store, SessionStore(database), admin_token=None, clock=clock)
    token = new_token()
    for _ in range(50):
        await authenticator.refusal(token)
    assert len(asked) == 1
    clock.now += TOKEN_CACHE + 1
    await authenticator.refusal(token)
    assert len(asked) == 2


async def test_a_thousand_connections_at_once_ask_the_database_once(database: Database, clock: Clock) -> None:
    store = TokenStore(database)
    token = new_token()
    await store.create(digest_of(token), Scope.READ, None, "", 0.0)
    asked: list[str] = []
    find = store.find

    async def counting(digest: str) -> StoredToken | None:
        asked.append(digest)
        return await find(digest)

    store.find = counting  # type: ignore[method-assign]
    authenticator = Authenticator(store, SessionStore(database), admin_token=None, clock=clock)
    found = await asyncio.gather(*(authenticator.principal(token) for _ in range(1_000)))
    assert len(asked) == 1
    assert None not in found
    asking = asyncio.create_task(authenticator.principal(token))
    authenticator.forget()
    await asking
    assert await authenticator.principal(token) is not None
    assert len(asked) >= 2, "a credential revoked meanwhile is looked up again"


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


async def test_a_login_ends_with_its_time_its_token_or_its_secret(database: Database, clock: Clock) -> None:
    tokens, sessions = TokenStore(database), SessionStore(database)
    token = new_token()
    token_id = await tokens.create(digest_of(token), Scope.WRITE, "project", "label", 0.0)

    def authenticator(admin_token: str = "sw_admin_token_0000") -> Authenticator:
        return Authenticator(tokens, sessions, admin_token=admin_token, clock=clock)

    async def log_in(secret: str) -> str:
        logins = Logins(
            authenticator(), sessions, LoginSettings(days=1, attempts=3, window=60), clock=clock, monotonic=clock
        )
        login = await logins.open(secret, "192.0.2.1")
        assert login.credential not in repr(login)
        return login.credential

    of_token, of_admin = await log_in(token), await log_in("sw_admin_token_0000")
    found = await authenticator().identity(of_token)
    assert found is not None
    assert (found.principal, found.token_id) == (Principal(scope=Scope.WRITE, project="project"), token_id)
    assert await authenticator().principal(of_admin) == Principal(scope=Scope.ADMIN)
    assert await authenticator("sw_admin_token_0001").principal(of_admin) is None
    with pytest.raises(ApiError, match="is not valid"):
        await log_in(of_token)
    held = authenticator()
    identities = [found, *filter(None, [await held.identity(of_admin), await held.identity(token)])]
    assert await held.ended(identities) == set()
    await tokens.revoke(token_id, 1.0)
    assert await held.ended(identities) == {digest_of(of_token), digest_of(token)}
    assert await authenticator().principal(of_token) is None
    clock.now += 86_401
    assert await authenticator().principal(of_admin) is None
    assert await held.principal(of_admin) is None, "a cached login expires too"


async def test_a_server_whose_clock_jumps_keeps_tokens_and_logins(database: Database) -> None:
    clock = [1_000_000.0]
    tokens, sessions = TokenStore(database), SessionStore(database)
    await tokens.create("d" * 64, Scope.READ, None, "", clock[0])
    authenticator = Authenticator(tokens, sessions, admin_token="sw_admin_token_0000", clock=lambda: clock[0])
    for jump in (-300.0, 600.0, -300.0):
        clock[0] += jump
        assert await authenticator.principal("sw_admin_token_0000") is not None
        assert await authenticator.principal("sw_unknown") is None
    assert await tokens.filter_valid(["d" * 64, "e" * 64]) == {"d" * 64}


def test_addresses_of_one_household_count_as_one(clock: Clock) -> None:
    assert _network("2001:db8::1") == _network("2001:db8::ffff:1") != _network("2001:db8:0:1::1")
    assert _network("192.0.2.1") != _network("192.0.2.2")
    assert _network("testclient") == "testclient"


def test_a_throttle_refills_steadily_and_forgets_old_keys(clock: Clock) -> None:
    throttle = Throttle(3, 0.5, clock)
    assert [throttle.take("a") for _ in range(4)] == [0, 0, 0, 2.0]
    assert throttle.take("b") == 0
    clock.now += 2
    assert [throttle.take("a"), throttle.take("a")] == [0, 2.0]
    throttle.give_back("a")
    assert throttle.take("a") == 0
    assert throttle.owe("c", 13) == 20.0
    clock.now += 20
    assert throttle.owe("c", 0) == 0
    for key in range(MAX_KEYS + 5):
        throttle.take(key)
    assert len(throttle) == MAX_KEYS


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
