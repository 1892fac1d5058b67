"""The Slack channel that an environment variable creates."""

from __future__ import annotations

import dataclasses

import pytest

from server.errors import ConfigurationError
from server.notifications.environment_channel import add_environment_channel, check_environment_channel
from server.storage.channels import ChannelStore
from server.storage.database import Database
from tests.support.alerting import SECRETS

URL = "https://hooks.slack.com/services/T0/B0/one"


async def test_the_channel_is_created_once_and_changes_only_with_the_url(database: Database) -> None:
    store = ChannelStore(database)
    await add_environment_channel(store, SECRETS, URL, 1.0)
    [made] = await store.all()
    await store.put(dataclasses.replace(made, min_level="critical", enabled=False))
    await add_environment_channel(store, SECRETS, URL, 2.0)
    [kept] = await store.all()
    assert (kept.min_level, kept.enabled, kept.created_at) == ("critical", False, 1.0)
    await add_environment_channel(store, SECRETS, URL + "other", 3.0)
    [changed] = await store.all()
    assert (changed.min_level, changed.enabled) == ("critical", True)
    assert SECRETS.open(changed.encrypted_secrets) == {"secret": URL + "other"}


def test_a_url_that_cannot_work_is_refused_by_the_name_of_its_setting() -> None:
    with pytest.raises(ConfigurationError, match="SPIKEWATCH_SLACK_WEBHOOK"):
        check_environment_channel("https://169.254.169.254/x", allow_private=False)
