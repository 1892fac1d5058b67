"""Builds the parts that control access: tokens, logins, and the limits of each token."""

from __future__ import annotations

from dataclasses import dataclass

from server.auth.admissions import Admissions, TokenLimits
from server.auth.logins import Logins, LoginSettings
from server.auth.tokens import Authenticator
from server.config import Config
from server.metrics import Metrics
from server.models import Scope
from server.storage.database import Database
from server.storage.sessions import SessionStore
from server.storage.tokens import TokenStore


@dataclass(frozen=True, kw_only=True)
class Access:
    """Parts that authenticate clients and limit what each may do."""

    tokens: TokenStore
    authenticator: Authenticator
    admissions: Admissions
    logins: Logins


def make_access(config: Config, database: Database, metrics: Metrics) -> Access:
    """Return the parts that control access, with the limits of the configuration."""
    tokens, sessions = TokenStore(database), SessionStore(database)
    password = config.dashboard_password
    authenticator = Authenticator(
        tokens,
        sessions,
        admin_token=config.admin_token,
        password=None if password is None else (password, Scope(config.dashboard_password_scope)),
    )
    admissions = Admissions(
        authenticator,
        TokenLimits(
            connections=config.token_connections,
            new_per_second=config.token_connections_per_second,
            values_per_second=config.token_values_per_second,
        ),
    )
    logins = Logins(
        authenticator,
        sessions,
        LoginSettings(
            password=password,
            days=config.session_days,
            attempts=config.login_attempts,
            window=config.login_window,
        ),
        count=lambda result: metrics.logins.labels(result).inc(),
    )
    return Access(tokens=tokens, authenticator=authenticator, admissions=admissions, logins=logins)
