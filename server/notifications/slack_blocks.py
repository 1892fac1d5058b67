"""Rendering of notifications as Slack's Block Kit. Pure.

Text of a run's author can become neither markup nor a mention nor a link: sentences are ``plain_text``; within
``mrkdwn``, names are code, and other text has markup characters replaced by look-alikes; `&`, `<` and `>` are escaped;
Slack is told not to unfurl links and not to look up names. Longer text is cut to Slack's limits:
https://docs.slack.dev/reference/block-kit/blocks.
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
MAX_PREVIEW: Final = 600
"""Maximum length of the text that phones show; more would not be read."""
METADATA_EVENT: Final = "spikewatch_alert"

NAMES: Final = frozenset({"Run", "Project", "Projects", "Leading layers", "Series", "Channel"})
MARKS: Final[Mapping[str, str]] = {AlertLevel.WATCH: "🟡", AlertLevel.WARNING: "🟠", AlertLevel.CRITICAL: "🔴"}
CLOSING_MARKS: Final = {Change.CONFIRMED: "🎯", Change.FALSE_ALARM: "⚪", Change.RESOLVED: "🟢", Change.ENDED: "🏁"}


def payload(notification: Notification) -> dict[str, Any]:
    """Return the body for an incoming webhook; `chat.postMessage` accepts it too, together with a channel."""
    headline = f"{_mark(notification)} {notification.headline}"
    return {
        "text": _preview_text(headline),
        "mrkdwn": False,
        "unfurl_links": False,
        "unfurl_media": False,
        "blocks": _blocks(notification, headline),
    }


def plain_payload(notification: Notification) -> dict[str, Any]:
    """Return the body without blocks, in case Slack rejects them."""
    return {"text": _preview_text(notification.headline), "mrkdwn": False, "unfurl_links": False}


def _preview_text(headline: str) -> str:
    """Return the text that phones show as notification, with addresses changed so that they do not become links."""
    return escape(cut(" ".join(headline.replace("://", ":∕∕").split()), MAX_PREVIEW))


def metadata(notification: Notification) -> dict[str, Any]:
    """Return the metadata by which programs that read the channel recognise a repetition."""
    return {
        "event_type": METADATA_EVENT,
        "event_payload": {
            "message_id": notification.id,
            "incident_id": notification.incident_id,
            "alert_id": "" if notification.alert is None else notification.alert.id,
            "change": notification.change or "digest",
        },
    }


def escape(text: str) -> str:
    """Return text with Slack's control characters as entities, and without other control characters but line ends."""
    return text.translate(_CONTROLS).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_CONTROLS: Final = {number: " " for number in (*range(32), 127) if chr(number) != "\n"}


def code(text: str) -> str:
    """Return a name as mrkdwn code, in which no character is markup."""
    line = " ".join(text.split()).replace("`", "ˋ") or "–"
    return f"`{escape(cut(line, 200))}`"


def cut(text: str, limit: int) -> str:
    """Return text of at most ``limit`` characters once escaped, with an ellipsis where it was cut."""
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


def _blocks(notification: Notification, headline: str) -> list[dict[str, Any]]:
    is_reply = bool(notification.about)
    blocks: list[dict[str, Any]] = []
    if is_reply or len(escape(headline)) > MAX_HEADER:
        blocks.append(_section(f"*{_bare(headline, MAX_TEXT - 2)}*"))
    else:
        blocks.append({"type": "header", "text": _plain(headline, MAX_HEADER)})
    if notification.why:
        blocks.append({"type": "section", "text": _plain(notification.why, MAX_TEXT)})
    facts = notification.facts[:MAX_FIELDS]
    if facts:
        fields = [_mrkdwn(f"*{label}*\n{_value(label, value)}", MAX_FIELD) for label, value in facts]
        blocks.append({"type": "section", "fields": fields})
    if notification.members:
        lines = "\n".join(f"• {name}: {what}" if name else f"• {what}" for name, what in notification.members)
        blocks.append({"type": "section", "text": _plain(lines, MAX_TEXT)})
    if notification.advice:
        blocks.append(_section("*What to try* (change one thing)"))
        lines = "\n".join(f"{number}. {item}" for number, item in enumerate(notification.advice, 1))
        blocks.append({"type": "section", "text": _plain(lines, MAX_TEXT)})
    buttons = _buttons(notification)
    if buttons:
        blocks.append({"type": "actions", "elements": buttons})
    blocks.append({"type": "context", "elements": [_plain(_footer(notification), MAX_TEXT)]})
    return blocks[:MAX_BLOCKS]


def _value(label: str, value: str) -> str:
    """Return names as code, so that they can be read letter by letter, and numbers and our own words as they are."""
    return code(value) if label in NAMES else _bare(value, 200) or "–"


def _buttons(notification: Notification) -> list[dict[str, Any]]:
    """Return buttons that open pages: a webhook cannot receive the press of a button."""
    links = notification.links
    if links is None:
        return []
    alert = notification.alert
    label = "Open Spikewatch" if alert is None else f"Open run at step {alert.updated_step:,}"
    wanted = [(label, links.run, "primary"), ("Acknowledge", links.acknowledge, ""), ("Silence 1 h", links.silence, "")]
    if notification.change not in (Change.OPENED, Change.ESCALATED):
        wanted = wanted[:1]
    buttons = []
    for text, url, style in wanted:
        if not url or len(url) > MAX_URL:
            continue
        button = {"type": "button", "text": _plain(text, MAX_BUTTON), "url": url}
        buttons.append({**button, "style": style} if style else button)
    return buttons


def _footer(notification: Notification) -> str:
    parts = ["Spikewatch"]
    if notification.about:
        parts.append(f"about: {notification.about}")
    parts.append(f"message {notification.id}")
    if notification.is_repeat:
        parts.append("may be a repetition of one with this id")
    return " · ".join(parts)


def _mark(notification: Notification) -> str:
    if notification.change in CLOSING_MARKS:
        return CLOSING_MARKS[notification.change]
    return MARKS.get(notification.level, "🟡")


_LOOK_ALIKES: Final = str.maketrans({"*": "∗", "_": "＿", "~": "∼", "`": "ˋ", "@": "＠"})


def _bare(text: str, limit: int) -> str:
    """Return text for mrkdwn in which markup, mentions and addresses are replaced by look-alikes."""
    line = " ".join(text.split()).translate(_LOOK_ALIKES).replace("://", ":∕∕")
    return escape(cut(line, limit))


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(text, MAX_TEXT)}


def _mrkdwn(text: str, limit: int) -> dict[str, Any]:
    """Return a text object of escaped text, in which Slack turns neither names nor addresses into links."""
    assert len(text) <= limit, "values must be cut before they are joined"
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _plain(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": escape(cut(text, limit)), "emoji": False}
