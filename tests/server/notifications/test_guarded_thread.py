"""A library that connects by itself reaches no address of the server's own network."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server.errors import ForbiddenAddressError
from server.notifications.channels.apprise_url import AppriseUrl
from server.notifications.channels.channel_kind import DeliveryContext, Target
from server.notifications.guarded_thread import public_addresses_only
from server.notifications.notification_text import channel_test_notification
from server.notifications.outbound import Outbound
from tests.support.postbox import Postbox

DOCUMENTED = "203.0.113.7"


def connect(address: Any, family: int = socket.AF_INET) -> None:
    """Raise the audit event of a connection without making one, so that nothing leaves this machine."""
    with socket.socket(family) as opened:
        sys.audit("socket.connect", opened, address)


@pytest.mark.parametrize(
    ("address", "family"),
    [
        (("127.0.0.1", 80), socket.AF_INET),
        (("169.254.169.254", 80), socket.AF_INET),
        (("::1", 80, 0, 0), socket.AF_INET6),
        (("fe80::1%1", 80, 0, 1), socket.AF_INET6),
        ("/run/docker.sock", socket.AF_UNIX),
        (("localhost", 80), socket.AF_INET),
    ],
    ids=["loopback", "metadata", "loopback of IPv6", "link-local", "a local socket", "a name"],
)
def test_a_guarded_thread_cannot_reach_its_own_network(address: Any, family: int) -> None:
    with pytest.raises(ForbiddenAddressError), public_addresses_only():
        connect(address, family)


def test_a_refusal_that_the_library_swallows_is_raised_at_the_end() -> None:
    with pytest.raises(ForbiddenAddressError, match=r"127\.0\.0\.1"), public_addresses_only():  # noqa: PT012
        with contextlib.suppress(Exception):
            connect(("127.0.0.1", 80))
        connect(("1.1.1.1", 443))


def test_other_threads_and_later_work_are_not_restricted() -> None:
    with Postbox() as postbox:
        with public_addresses_only():
            connect(("1.1.1.1", 443))
            other = threading.Thread(target=lambda: connect(("127.0.0.1", 80)))
            other.start()
            other.join()
        with socket.create_connection(("127.0.0.1", postbox.port), 5):
            pass


@pytest.fixture
async def context() -> AsyncIterator[DeliveryContext]:
    outbound = Outbound(allow_private=False)
    with ThreadPoolExecutor(1) as threads:
        yield DeliveryContext(outbound=outbound, threads=threads, slack_api_url="", clock=time.time)
    await outbound.close()


async def test_apprise_is_stopped_at_a_name_that_resolves_to_loopback(
    context: DeliveryContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    notification = channel_test_notification("m", "ops", "https://spikes.example", 0.0)
    with Postbox() as postbox:

        def look_up(*_: Any, **__: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", postbox.port))]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        target = Target(secret=f"json://public.example:{postbox.port}/x")
        answer = await AppriseUrl().deliver(context, target, notification, None)
        assert answer.forbidden
        assert "127.0.0.1" in answer.code
        assert postbox.requests == []
