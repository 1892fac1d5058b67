"""docs/alerts.md says what is so."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.notifications.dispatcher import CHANNELS_AT_ONCE, LEASE
from server.notifications.outcomes import BACKOFF
from server.notifications.policy import MAX_NEWS_AGE
from server.notifications.webhook import SIGNATURE_HEADER, TIMESTAMP_HEADER, signature
from server.storage.outbox import GATHER

TEXT = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text()
KEY = "swsk_" + "k" * 32


def verifier() -> Callable[[str, dict[str, str], bytes], bool]:
    [snippet] = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict[str, Any] = {}
    exec(snippet, names)
    found: Callable[[str, dict[str, str], bytes], bool] = names["is_genuine"]
    return found


def signed(body: bytes, at: float) -> dict[str, str]:
    stamp = str(int(at))
    return {TIMESTAMP_HEADER: stamp, SIGNATURE_HEADER: signature(KEY, stamp, body)}


def test_the_snippet_tells_genuine_messages_from_others() -> None:
    is_genuine = verifier()
    now = time.time()
    assert is_genuine(KEY, signed(b"{}", now), b"{}")
    assert not is_genuine(KEY, signed(b"{}", now), b"{ }")
    assert not is_genuine("another", signed(b"{}", now), b"{}")
    assert not is_genuine(KEY, signed(b"{}", now - 3600), b"{}")


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"again after {', '.join(f'{wait:.0f}' for wait in BACKOFF)} s" in TEXT
    assert f"Messages wait {GATHER:g} s for each other" in TEXT
    assert f"loses its lease after {LEASE:.0f} s" in TEXT
    assert f"at most {CHANNELS_AT_ONCE} channels at once" in TEXT
    assert MAX_NEWS_AGE == 6 * 3600, "six hours"
