"""A message as Slack's Block Kit. Pure.

Nothing that a run's author typed can become markup, a mention or a link: sentences are ``plain_text``, names within
``mrkdwn`` are code with `&`, `<`, `>` and the backtick replaced, nothing is unfurled, and no name is looked up.
Limits: https://docs.slack.dev/reference/block-kit/blocks. What is longer is cut.
"""

from __future__ import annotations

from typing import Any, Final

from server.notices import Change
from server.notifications.message import Message

MAX_BLOCKS: Final = 50
MAX_TEXT: Final = 3_000
MAX_HEADER: Final = 150
MAX_FIELD: Final = 2_000
MAX_FIELDS: Final = 10
MAX_BUTTON: Final = 75
MAX_URL: Final = 3_000
METADATA_EVENT: Final = "spikewatch_alert"

MARKS: Final = {"watch": "🟡", "warning": "🟠", "critical": "🔴"}
CALM: Final = {Change.CONFIRMED: "🎯", Change.FALSE_ALARM: "⚪", Change.RESOLVED: "🟢"}


def payload(message: Message) -> dict[str, Any]:
    """What is posted to an incoming webhook; `chat.postMessage` takes the same and a channel."""
    headline = f"{_mark(message)} {message.headline}"
    return {
        "text": escape(cut(headline, MAX_TEXT // 5)),
        "mrkdwn": False,
        "unfurl_links": False,
        "unfurl_media": False,
        "blocks": _blocks(message, headline),
    }


def plain_payload(message: Message) -> dict[str, Any]:
    """The same without blocks, for a receiver that refuses them."""
    return {"text": escape(cut(message.headline, MAX_TEXT // 5)), "mrkdwn": False, "unfurl_links": False}


def metadata(message: Message) -> dict[str, Any]:
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
    """Slack's control characters as entities."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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


def _blocks(message: Message, headline: str) -> list[dict[str, Any]]:
    is_reply = bool(message.about)
    blocks: list[dict[str, Any]] = []
    if is_reply or len(escape(headline)) > MAX_HEADER:
        blocks.append(_section(f"*{_bold(headline)}*"))
    else:
        blocks.append({"type": "header", "text": _plain(headline, MAX_HEADER)})
    if message.why:
        blocks.append({"type": "section", "text": _plain(message.why, MAX_TEXT)})
    facts = message.facts[:MAX_FIELDS]
    if facts:
        fields = [_mrkdwn(f"*{label}*\n{code(value)}", MAX_FIELD) for label, value in facts]
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


def _buttons(message: Message) -> list[dict[str, Any]]:
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


def _footer(message: Message) -> str:
    parts = ["Spikewatch"]
    if message.about:
        parts.append(f"about: {message.about}")
    parts.append(f"message {message.id}")
    if message.is_repeat:
        parts.append("may be a repetition of one with this id")
    return " · ".join(parts)


def _mark(message: Message) -> str:
    if message.change in CALM:
        return CALM[message.change]
    return MARKS.get(message.level, "🟡")


def _bold(text: str) -> str:
    """Text in bold mrkdwn: what could end or begin other markup is replaced by its likeness."""
    likeness = str.maketrans({"*": "∗", "_": "＿", "~": "∼", "`": "ˋ"})
    return escape(cut(" ".join(text.split()).translate(likeness), MAX_TEXT - 2))


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(text, MAX_TEXT)}


def _mrkdwn(text: str, limit: int) -> dict[str, Any]:
    """Already escaped. ``verbatim``: no name and no address in it is made a link."""
    assert len(text) <= limit, "values are cut before they are put together"
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _plain(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": escape(cut(text, limit)), "emoji": False}
