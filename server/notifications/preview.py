"""Preview of Slack messages as a web page: `python -m server.notifications.preview FILE.json > page.html`.

The file holds one payload for Slack or a list of them; those with a ``thread_ts`` are shown as replies. Text is shown
as Slack renders it: entities are decoded, ``mrkdwn`` supports bold and code, ``plain_text`` has no markup.
"""

from __future__ import annotations

import base64
import html
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

_MARKS: Final = {"🟡": "#f2c744", "🟠": "#ee8434", "🔴": "#d7263d", "🟢": "#2e9e5b", "⚪": "#c7cbd1", "🎯": "#7b2cbf"}
_STYLE: Final = """
.dot { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 50%; }
body { margin: 0; padding: 20px; font: 15px/1.46 Lato, "Noto Sans", "DejaVu Sans", sans-serif; color: #1d1c1d; }
.message { display: flex; gap: 8px; max-width: 660px; padding: 8px 0; }
.message.reply { margin-left: 44px; max-width: 616px; border-left: 3px solid #ddd; padding-left: 12px; }
.avatar { flex: none; width: 36px; height: 36px; border-radius: 4px; background: #15181e; color: #ff7a5c;
  font-weight: 900; display: grid; place-items: center; }
.body { min-width: 0; flex: 1; }
.who b { margin-right: 6px; } .who i { font: 10px sans-serif; background: #eee; border-radius: 2px; padding: 1px 3px; }
h3 { font-size: 18px; line-height: 1.33; margin: 6px 0; }
p { margin: 6px 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.fields { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 16px; margin: 6px 0; }
.fields p { margin: 0; }
code { font: 12px "DejaVu Sans Mono", monospace; color: #c01343; background: #f8f8f8; border: 1px solid #ddd;
  border-radius: 3px; padding: 1px 3px; }
.actions { display: flex; flex-wrap: wrap; gap: 8px; margin: 8px 0; }
.actions a { border: 1px solid #bbb; border-radius: 4px; padding: 4px 12px; font-weight: 700; font-size: 14px;
  color: #1d1c1d; text-decoration: none; }
.actions a.primary { background: #007a5a; border-color: #007a5a; color: #fff; }
.context { color: #616061; font-size: 12px; }
img { max-width: 100%; border: 1px solid #ddd; border-radius: 8px; margin-top: 6px; }
"""


def page(payloads: Sequence[Mapping[str, Any]], pictures: Sequence[bytes] = ()) -> str:
    """Return an HTML document with all messages. The PNG pictures are shown below the first message."""
    shown = []
    for number, payload in enumerate(payloads):
        shown.append(message(payload))
        if number == 0:
            shown += [_reply(_picture(picture)) for picture in pictures]
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Messages</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(shown)}</body></html>"
    )


def message(payload: Mapping[str, Any]) -> str:
    """Return the HTML of one message."""
    blocks = payload.get("blocks") or [{"type": "section", "text": {"type": "plain_text", "text": payload["text"]}}]
    body = "".join(_block(block) for block in blocks)
    return _reply(body) if payload.get("thread_ts") else _framed(body, "message")


def _reply(body: str) -> str:
    return _framed(body, "message reply")


def _framed(body: str, name: str) -> str:
    return (
        f'<div class="{name}"><div class="avatar">⌃</div><div class="body">'
        f'<div class="who"><b>Spikewatch</b><i>APP</i></div>{body}</div></div>'
    )


def _block(block: Mapping[str, Any]) -> str:
    match block["type"]:
        case "header":
            return f"<h3>{_text(block['text'])}</h3>"
        case "section":
            body = f"<p>{_text(block['text'])}</p>" if "text" in block else ""
            fields = "".join(f"<p>{_text(field)}</p>" for field in block.get("fields", []))
            return body + (f'<div class="fields">{fields}</div>' if fields else "")
        case "actions":
            return f'<div class="actions">{"".join(_button(element) for element in block["elements"])}</div>'
        case "context":
            return "".join(f'<p class="context">{_text(element)}</p>' for element in block["elements"])
        case other:
            return f"<p>[{html.escape(str(other))}]</p>"


def _button(element: Mapping[str, Any]) -> str:
    style = "primary" if element.get("style") == "primary" else ""
    return f'<a class="{style}" href="{html.escape(element["url"])}">{_text(element["text"])}</a>'


def _text(text: Mapping[str, Any]) -> str:
    escaped = html.escape(html.unescape(text["text"]))
    for mark, colour in _MARKS.items():  # drawn with CSS, because not every machine has a font for them
        escaped = escaped.replace(mark, f'<span class="dot" style="background: {colour}"></span>')
    if text["type"] != "mrkdwn":
        return escaped
    parts = re.split(r"(`[^`\n]+`)", escaped)
    return "".join(
        f"<code>{part[1:-1]}</code>" if part.startswith("`") else re.sub(r"\*([^*\n]+)\*", r"<b>\1</b>", part)
        for part in parts
    )


def _picture(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def main(paths: Sequence[str]) -> None:
    """Print the page for a JSON file and the pictures after it."""
    payloads = msgspec.json.decode(Path(paths[0]).read_bytes())
    pictures = [Path(path).read_bytes() for path in paths[1:]]
    sys.stdout.write(page(payloads if isinstance(payloads, list) else [payloads], pictures))


if __name__ == "__main__":
    main(sys.argv[1:])
