"""A message as Slack's Block Kit. Pure.

Nothing that a run's author typed can become markup, a mention or a link: sentences are ``plain_text``; within
``mrkdwn`` names are code, and other text has what could be markup replaced by its likeness; `&`, `<` and `>` are
escaped, nothing is unfurled, and no name is looked up.
Limits: https://docs.slack.dev/reference/block-kit/blocks. What is longer is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from client_sdk.vocabulary import AlertLevel
from server.notification import Change
from server.notifications.notification_text import Notification

MAX_BLOCKS: Final = 50
MAX_TEXT: Final = 3_000
MAX_HEADER: Final = 150
MAX_FIELD: Final = 2_000
MAX_FIELDS: Final = 10
MAX_BUTTON: Final = 75
MAX_URL: Final = 3_000
MAX_NOTICE: Final = 600
"""More is not read on a phone."""
METADATA_EVENT: Final = "spikewatch_alert"

NAMES: Final = frozenset({"Run", "Project", "Projects", "Leading layers", "Series", "Channel"})
MARKS: Final[Mapping[str, str]] = {AlertLevel.WATCH: "🟡", AlertLevel.WARNING: "🟠", AlertLevel.CRITICAL: "🔴"}
CALM: Final = {Change.CONFIRMED: "🎯", Change.FALSE_ALARM: "⚪", Change.RESOLVED: "🟢"}


def payload(message: Notification) -> dict[str, Any]:
    """What is posted to an incoming webhook; `chat.postMessage` takes the same and a channel."""
    headline = f"{_mark(message)} {message.headline}"
    return {
        "text": _notice(headline),
        "mrkdwn": False,
        "unfurl_links": False,
        "unfurl_media": False,
        "blocks": _blocks(message, headline),
    }


def plain_payload(message: Notification) -> dict[str, Any]:
    """The same without blocks, for a receiver that refuses them."""
    return {"text": _notice(message.headline), "mrkdwn": False, "unfurl_links": False}


def _notice(headline: str) -> str:
    """The text of a notification on a phone, in which an address would become a link."""
    return escape(cut(" ".join(headline.replace("://", ":∕∕").split()), MAX_NOTICE))


def metadata(message: Notification) -> dict[str, Any]:
    """What makes a repetition recognisable to programs that read the channel."""
    return {
        "event_type": METADATA_EVENT,
        "event_payload": {
            "message_id": message.id,
            "incident_id": message.incident_id,
            "alert_id": "" if message.alert is None else message.alert.id,
            "change": message.change or "digest",
        },
    }


def escape(text: str) -> str:
    """Slack's control characters as entities, and no others but line ends."""
    return text.translate(_CONTROLS).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_CONTROLS: Final = {number: " " for number in (*range(32), 127) if chr(number) != "\n"}


def code(text: str) -> str:
    """A name within mrkdwn, where nothing in it means anything."""
    line = " ".join(text.split()).replace("`", "ˋ") or "–"
    return f"`{escape(cut(line, 200))}`"


def cut(text: str, limit: int) -> str:
    """At most so many characters once escaped, with a sign where something is missing."""
    if len(escape(text)) <= limit:
        return text
    kept: list[str] = []
    room = limit - 1
    for character in text:
        room -= len(escape(character))
        if room < 0:
            break
        kept.append(character)
    return "".join(kept) + "…"


def _blocks(message: Notification, headline: str) -> list[dict[str, Any]]:
    is_reply = bool(message.about)
    blocks: list[dict[str, Any]] = []
    if is_reply or len(escape(headline)) > MAX_HEADER:
        blocks.append(_section(f"*{_bare(headline, MAX_TEXT - 2)}*"))
    else:
        blocks.append({"type": "header", "text": _plain(headline, MAX_HEADER)})
    if message.why:
        blocks.append({"type": "section", "text": _plain(message.why, MAX_TEXT)})
    facts = message.facts[:MAX_FIELDS]
    if facts:
        fields = [_mrkdwn(f"*{label}*\n{_value(label, value)}", MAX_FIELD) for label, value in facts]
        blocks.append({"type": "section", "fields": fields})
    if message.members:
        lines = "\n".join(f"• {name}: {what}" if name else f"• {what}" for name, what in message.members)
        blocks.append({"type": "section", "text": _plain(lines, MAX_TEXT)})
    if message.advice:
        blocks.append(_section("*What to try* (change one thing)"))
        lines = "\n".join(f"{number}. {item}" for number, item in enumerate(message.advice, 1))
        blocks.append({"type": "section", "text": _plain(lines, MAX_TEXT)})
    buttons = _buttons(message)
    if buttons:
        blocks.append({"type": "actions", "elements": buttons})
    blocks.append({"type": "context", "elements": [_plain(_footer(message), MAX_TEXT)]})
    return blocks[:MAX_BLOCKS]


def _value(label: str, value: str) -> str:
    """Names stand as code, so that they can be read letter by letter; numbers and our own words stand as they are."""
    return code(value) if label in NAMES else _bare(value, 200) or "–"


def _buttons(message: Notification) -> list[dict[str, Any]]:
    """Buttons that open pages: a webhook has nobody who could answer a press."""
    links = message.links
    if links is None:
        return []
    alert = message.alert
    label = "Open Spikewatch" if alert is None else f"Open run at step {alert.updated_step:,}"
    wanted = [(label, links.run, "primary"), ("Acknowledge", links.acknowledge, ""), ("Silence 1 h", links.silence, "")]
    if message.change not in (Change.OPENED, Change.ESCALATED):
        wanted = wanted[:1]
    buttons = []
    for text, url, style in wanted:
        if not url or len(url) > MAX_URL:
            continue
        button = {"type": "button", "text": _plain(text, MAX_BUTTON), "url": url}
        buttons.append({**button, "style": style} if style else button)
    return buttons


def _footer(message: Notification) -> str:
    parts = ["Spikewatch"]
    if message.about:
        parts.append(f"about: {message.about}")
    parts.append(f"message {message.id}")
    if message.is_repeat:
        parts.append("may be a repetition of one with this id")
    return " · ".join(parts)


def _mark(message: Notification) -> str:
    if message.change in CALM:
        return CALM[message.change]
    return MARKS.get(message.level, "🟡")


_LIKENESS: Final = str.maketrans({"*": "∗", "_": "＿", "~": "∼", "`": "ˋ", "@": "＠"})


def _bare(text: str, limit: int) -> str:
    """Text within mrkdwn: what could be markup, a mention or an address is replaced by its likeness."""
    line = " ".join(text.split()).translate(_LIKENESS).replace("://", ":∕∕")
    return escape(cut(line, limit))


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(text, MAX_TEXT)}


def _mrkdwn(text: str, limit: int) -> dict[str, Any]:
    """Already escaped. ``verbatim``: no name and no address in it is made a link."""
    assert len(text) <= limit, "values are cut before they are put together"
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _plain(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": escape(cut(text, limit)), "emoji": False}
