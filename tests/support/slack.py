"""Local server that behaves like Slack: incoming webhooks and the Web API, with the published limits.

The limits are those of https://docs.slack.dev/reference/block-kit/blocks and …/messaging/formatting-message-text. A
payload that exceeds one is refused as by Slack, and listed in `SlackServer.problems`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.support.postbox import Postbox, Posted, Prepared

BLOCK_TYPES = {"header", "section", "context", "actions", "divider", "image", "rich_text"}
TOKEN = "xoxb-1-test"
CHANNEL_ID = "C0123456789"


@dataclass
class SlackMessage:
    """A message in a channel."""

    ts: str
    payload: dict[str, Any]
    at: float
    thread: str | None = None
    by_webhook: bool = False

    @property
    def text(self) -> str:
        """The text that phones show."""
        return unescape(self.payload["text"])

    @property
    def words(self) -> str:
        """The whole text that readers see."""
        return "\n".join(unescape(text["text"]) for text in texts(self.payload.get("blocks", [])))


@dataclass
class Upload:
    """A file that was uploaded."""

    data: bytes = b""
    thread: str | None = None
    done: bool = False


class SlackServer(Postbox):
    """A `Postbox` that stores the messages that Slack would show. `answer` makes the next calls fail."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[SlackMessage] = []
        self.problems: list[str] = []
        self.files: dict[str, Upload] = {}
        self.token = TOKEN

    @property
    def api_url(self) -> str:
        """Base URL of the Web API."""
        return self.url("/api/")

    @property
    def webhook(self) -> str:
        """URL of an incoming webhook."""
        return self.url("/services/T000/B000/secret")

    def wait_for_message(self, words: str) -> SlackMessage:
        """Wait for a message whose text contains these words, and return the first one."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: any(words in message.text for message in self.messages), 60.0), (
                f"no message contains {words!r}: {[message.text for message in self.messages]}"
            )
            return next(message for message in self.messages if words in message.text)

    def reply_to(self, posted: Posted, prepared: Prepared) -> Prepared:
        """Return the answer of Slack, unless the test has prepared a failure."""
        if prepared.status != 200 or prepared.hang or prepared.cut or prepared.body:
            return prepared
        path = urlsplit(posted.path).path
        if path.startswith("/services/"):
            return self._webhook(posted)
        if path.startswith("/upload/"):
            self.files[path.rpartition("/")[2]].data = posted.body
            return Prepared(status=200, body="OK", headers={"Content-Type": "text/plain"})
        answer = self._call(path.removeprefix("/api/"), posted)
        return Prepared(status=200, body=json.dumps(answer), headers={"Content-Type": "application/json"})

    def _webhook(self, posted: Posted) -> Prepared:
        payload = posted.json
        found = faults(payload)
        if found:
            self.problems += found
            return Prepared(status=400, body="invalid_blocks")
        self._show(payload, posted, by_webhook=True)
        return Prepared(status=200, body="ok")

    def _call(self, method: str, posted: Posted) -> dict[str, Any]:
        if posted.headers.get("Authorization") != f"Bearer {self.token}":
            return {"ok": False, "error": "invalid_auth"}
        values = _values(posted)
        if method == "chat.postMessage":
            return self._post_message(values, posted)
        if method == "files.getUploadURLExternal":
            name = f"F{len(self.files)}"
            self.files[name] = Upload()
            return {"ok": True, "upload_url": self.url(f"/upload/{name}"), "file_id": name}
        if method == "files.completeUploadExternal":
            listed = values["files"] if isinstance(values["files"], list) else json.loads(values["files"])
            if values.get("channel_id") != CHANNEL_ID:
                return {"ok": False, "error": "channel_not_found"}
            for item in listed:
                upload = self.files[item["id"]]
                upload.thread, upload.done = values.get("thread_ts"), True
            return {"ok": True, "files": [{"id": item["id"]} for item in listed]}
        return {"ok": False, "error": "unknown_method"}

    def _post_message(self, values: dict[str, Any], posted: Posted) -> dict[str, Any]:
        if values.get("channel") not in ("#ml", CHANNEL_ID):
            return {"ok": False, "error": "channel_not_found"}
        found = faults(values)
        if values.get("link_names") not in (False, None, "0") or values.get("parse") not in (None, "none"):
            found.append("names would be looked up")
        thread = values.get("thread_ts")
        if thread is not None and thread not in [message.ts for message in self.messages]:
            found.append(f"there is no thread {thread}")
        if found:
            self.problems += found
            return {"ok": False, "error": "invalid_blocks"}
        message = self._show(values, posted, thread=thread)
        return {"ok": True, "channel": CHANNEL_ID, "ts": message.ts}

    def _show(
        self, payload: dict[str, Any], posted: Posted, *, thread: str | None = None, by_webhook: bool = False
    ) -> SlackMessage:
        message = SlackMessage(
            ts=f"1700000000.{len(self.messages):06}",
            payload=payload,
            at=posted.at,
            thread=thread,
            by_webhook=by_webhook,
        )
        self.messages.append(message)
        return message


def _values(posted: Posted) -> dict[str, Any]:
    if posted.headers.get("Content-Type", "").startswith("application/json"):
        values: dict[str, Any] = posted.json
        return values
    return dict(parse_qsl(posted.body.decode())) | dict(parse_qsl(urlsplit(posted.path).query))


def unescape(text: str) -> str:
    """Return text with Slack's entities decoded."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def texts(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all text objects of a message."""
    found: list[dict[str, Any]] = []
    for block in blocks:
        found += [block["text"]] if "text" in block else []
        found += block.get("fields", [])
        for element in block.get("elements", []):
            found.append(element["text"] if element.get("type") == "button" else element)
    return found


def faults(payload: dict[str, Any]) -> list[str]:
    """Return everything in a payload that Slack or a careful reader would refuse."""
    found = []
    blocks = payload.get("blocks", [])
    if not payload.get("text"):
        found.append("no text for notifications")
    if payload.get("unfurl_links") is not False:
        found.append("links would be unfurled")
    if len(blocks) > 50:
        found.append(f"{len(blocks)} blocks")
    for block in blocks:
        found += _block_faults(block)
    plain = [{"type": "plain_text", "text": payload.get("text", "")}]
    for text in [*texts(blocks), *plain]:
        found += _text_faults(text)
    return found


def _block_faults(block: dict[str, Any]) -> list[str]:
    kind = block.get("type")
    if kind not in BLOCK_TYPES:
        return [f"the block type {kind!r}"]
    if kind == "header" and (block["text"]["type"] != "plain_text" or not 0 < len(block["text"]["text"]) <= 150):
        return [f"a header of {len(block['text']['text'])} characters"]
    if kind == "section":
        if "text" not in block and not block.get("fields"):
            return ["an empty section"]
        if len(block.get("fields", [])) > 10:
            return ["more than 10 fields"]
        return [f"a field of {len(f['text'])}" for f in block.get("fields", []) if not 0 < len(f["text"]) <= 2_000]
    if kind == "context" and not 0 < len(block["elements"]) <= 10:
        return ["a context of no or too many elements"]
    if kind == "actions":
        if not 0 < len(block["elements"]) <= 25:
            return ["no or too many buttons"]
        return [fault for element in block["elements"] for fault in _button_faults(element)]
    return []


def _button_faults(element: dict[str, Any]) -> list[str]:
    found = []
    if element["text"]["type"] != "plain_text" or not 0 < len(element["text"]["text"]) <= 75:
        found.append("a button's text")
    if not element["url"].startswith(("http://", "https://")) or len(element["url"]) > 3_000:
        found.append(f"a button's URL {element['url']!r}")
    return found


def _text_faults(text: dict[str, Any]) -> list[str]:
    content = text["text"]
    found = []
    if not 0 < len(content) <= 3_000:
        found.append(f"a text of {len(content)} characters")
    if re.search(r"[<>]|&(?!(amp|lt|gt);)", content):
        found.append(f"not escaped: {content!r}")
    if text["type"] == "mrkdwn":
        if text.get("verbatim") is not True:
            found.append(f"not verbatim: {content!r}")
        outside = re.sub(r"`[^`\n]*`", "", content)
        if outside.count("*") not in (0, 2) or re.search(r"[_~`]\S", re.sub(r"\bλ_(max|grad)", "", outside)):
            found.append(f"markup: {content!r}")
    elif text["type"] != "plain_text":
        found.append(f"the text type {text['type']!r}")
    return found
