"""Defines the readiness checks of a server: what it requires, and what it can do without."""

from __future__ import annotations

from server.broker import Broker
from server.config import Config
from server.errors import ConfigurationError
from server.readiness import Check, Readiness
from server.storage import migrate
from server.storage.database import Database


def make_readiness(config: Config, database: Database, broker: Broker) -> Readiness:
    """Return the checks of the database, its schema and, if configured, Redis."""

    async def schema() -> None:
        if not await migrate.is_current(database):
            raise ConfigurationError("the schema of the database is not up to date: run `spikewatch migrate`")

    async def redis() -> None:
        if broker.is_degraded:
            raise ConfigurationError("Redis does not answer")

    readiness = Readiness()
    readiness.add(Check(name="database", ask=database.ping, fault="the database does not answer"))
    readiness.add(Check(name="schema", ask=schema, fault="the schema of the database is not that of this program"))
    if config.redis_url is not None:
        fault = "Redis does not answer: data is stored, the live view is degraded"
        readiness.add(Check(name="redis", ask=redis, fault=fault, is_required=False))
    return readiness
