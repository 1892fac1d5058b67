"""docs/protocol.md agrees with the code: its examples are decoded, and its tables are compared."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from client_sdk import protocol, vocabulary
from client_sdk.protocol import (
    AlertNotice,
    Batch,
    Error,
    Finish,
    Hello,
    Welcome,
    decode_client_message,
    decode_server_message,
)

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
COMMENT_COLUMN = 46
EXAMPLES = [bytes.fromhex(block) for block in re.findall(r"```hex\n(.*?)```", TEXT, re.DOTALL)]


def _decode(frame: bytes) -> protocol.ClientMessage | protocol.ServerMessage:
    try:
        return decode_client_message(frame)
    except msgspec.ValidationError:
        return decode_server_message(frame)


def _section(title: str) -> str:
    return TEXT.split(f"### {title}\n")[1].split("\n### ")[0].split("\n## ")[0]


def test_every_kind_of_message_has_an_example() -> None:
    assert {type(_decode(frame)) for frame in EXAMPLES} == {
        Hello, Batch, Finish, Welcome, protocol.Ack, AlertNotice, Error,
    }  # fmt: skip


def test_json_next_to_an_example_is_the_same_message() -> None:
    pairs = re.findall(r"```json\n([^`]*?)```\n\n```hex\n(.*?)```", TEXT, re.DOTALL)
    assert len(pairs) == 5
    for text, block in pairs:
        message = _decode(bytes.fromhex(block))
        assert msgspec.json.decode(msgspec.json.encode(message)) == msgspec.json.decode(text)


def test_annotated_bytes_are_those_of_an_example() -> None:
    annotated = re.findall(r"```\n(8[35] .*?)```", TEXT, re.DOTALL)
    assert len(annotated) == 2
    for block in annotated:
        digits = "".join(line[:COMMENT_COLUMN] for line in block.splitlines())
        assert bytes.fromhex(digits) in EXAMPLES


def test_batch_example_agrees_with_the_text() -> None:
    batch = next(message for message in map(_decode, EXAMPLES) if isinstance(message, Batch))
    assert [record.step for record in batch.records] == [7, 8]
    assert batch.records[1].scalars == {"loss": float("inf")}
    assert batch.records[0].block is not None
    assert len(batch.records[0].block) == 2 * 3 * 4


@pytest.mark.parametrize(
    ("section", "kind"),
    [("hello", Hello), ("batch", Batch), ("finish", Finish), ("welcome", Welcome), ("error", Error)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_field_is_in_its_table(section: str, kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        assert f"| `{field.encode_name}` |" in _section(section)


@pytest.mark.parametrize("kind", [protocol.Layout, protocol.Optimizer], ids=lambda kind: kind.__name__)
def test_every_field_of_a_layout_is_documented(kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        assert f"| `{field.encode_name}` |" in _section("hello")


def test_every_key_of_an_alert_is_documented() -> None:
    for field in msgspec.structs.fields(protocol.Alert):
        assert f"`{field.encode_name}`" in _section("alert")


def test_limits_are_those_of_the_code() -> None:
    limits = TEXT.split("\n## Limits\n")[1].split("\n## ")[0]
    for limit in (protocol.MAX_FRAME_BYTES, protocol.MAX_LAYERS, protocol.MAX_SCALARS):
        assert f"{limit:,}" in limits
    for limit in (protocol.MAX_STATISTICS, protocol.MAX_NAME_CHARS, protocol.HISTOGRAM_BINS):
        assert re.search(rf"\b{limit}\b", limits)


def test_statistics_are_those_of_the_code() -> None:
    assert all(f"`{name}`" in TEXT for name in vocabulary.STATISTICS)
