"""Laws that every kind of channel obeys."""

from __future__ import annotations

import pytest

from server.notifications.channels.channel_kind import ChannelKind, Target, TargetError
from server.notifications.channels.registry import KINDS, kind_named

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def test_names_are_unique_and_stay_as_they_are_stored() -> None:
    assert [kind.name for kind in KINDS] == ["slack-webhook", "slack-bot", "apprise", "webhook"]
    with pytest.raises(KeyError):
        kind_named("carrier-pigeon")


@every_kind
def test_a_kind_is_found_by_its_name_and_has_distinct_fields(kind: ChannelKind) -> None:
    assert kind_named(kind.name) is kind
    names = [field.name for field in kind.fields]
    assert len(names) == len(set(names))
    assert kind.is_signed == ("signing_key" in names)
    assert not any(field.secret and field.in_settings for field in kind.fields), "settings are returned by the API"


@every_kind
@pytest.mark.parametrize("secret", ["", " ", "no secret of any kind", "x" * 5_000])
def test_a_wrong_secret_is_refused_at_its_field(kind: ChannelKind, secret: str) -> None:
    with pytest.raises(TargetError) as caught:
        kind.check(Target(secret=secret), allow_private=True)
    assert caught.value.field == "secret"
    assert not secret.strip() or secret not in caught.value.reason


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("slack-webhook", Target(secret="https://hooks.slack.com/services/T0/B0/hidden")),
        ("slack-bot", Target(secret="xoxb-hidden", settings={"channel": "#ml"})),
        ("apprise", Target(secret="discord://4174216298/hidden")),
        ("webhook", Target(secret="https://ci.example/hidden", signing_key="hidden" * 4)),
    ],
)
def test_a_hint_and_a_representation_contain_nothing_secret(name: str, target: Target) -> None:
    kind_named(name).check(target, allow_private=False)
    assert "hidden" not in kind_named(name).hint(target)
    assert "hidden" not in repr(target)


def test_a_bot_without_a_slack_channel_is_refused_at_that_field() -> None:
    with pytest.raises(TargetError) as caught:
        kind_named("slack-bot").check(Target(secret="xoxb-1"), allow_private=False)
    assert caught.value.field == "settings.channel"
