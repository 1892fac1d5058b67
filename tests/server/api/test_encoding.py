"""Compressed answers, and answers that the client has already."""

from __future__ import annotations

import gzip
from pathlib import Path

import httpx
import msgspec
import pytest
import zstandard
from starlette.responses import Response

from server.api.encoding import MIN_COMPRESSED, compressed
from tests.support.server import running_server
from tests.support.writer import Writer, record

CALLS = (("series", {"keys": "loss"}), ("heatmap", {"stat": "grad_norm"}))


@pytest.mark.parametrize(("call", "parameters"), CALLS)
def test_answers_are_compressed_as_asked_and_known_ones_are_not_sent(
    tmp_path: Path, call: str, parameters: dict[str, str]
) -> None:
    with running_server(tmp_path) as server, server.connect("/ingest") as socket, server.api() as api:
        writer = Writer(socket)
        writer.hello("run")
        writer.commit(*(record(step, float(step), block=[[step, 1], [2, 3]]) for step in range(1_000)))
        path = f"/runs/run/{call}"
        plain = api.get(path, params=parameters, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers

        for name, decompress in (("zstd", _unzstd), ("gzip", gzip.decompress)):
            with api.stream("GET", path, params=parameters, headers={"accept-encoding": name}) as answer:
                raw = b"".join(answer.iter_raw())
            assert answer.headers["content-encoding"] == name
            assert len(raw) < len(plain.content) / 2
            assert decompress(raw) == plain.content

        tag = plain.headers["etag"]
        for known in (tag, f'W/"another", {tag}', "*"):
            unchanged = api.get(path, params=parameters, headers={"if-none-match": known})
            assert (unchanged.status_code, unchanged.content) == (304, b"")
            assert (unchanged.headers["etag"], unchanged.headers["vary"]) == (tag, plain.headers["vary"])
        other = api.get(path, params={**parameters, "from": "5"}, headers={"if-none-match": tag})
        assert other.status_code == 200
        packed = api.get(path, params=parameters, headers={"accept": "application/msgpack", "if-none-match": tag})
        assert packed.status_code == 200

        writer.commit(record(1_000, -1.0, block=[[-1, 1], [2, 3]]))
        after = api.get(path, params=parameters, headers={"if-none-match": tag})
        assert after.status_code == 200
        assert after.headers["etag"] != tag
        assert _last_step(after) == 1_000


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("gzip;q=0.8, zstd;q=0.9", "zstd"),
        ("gzip; q=0.001", "gzip"),
        ("GZIP", "gzip"),
        ("zstd;q=0, gzip", "gzip"),
        ("zstd;q=0.000, gzip;q=0", None),
        ("br", None),
        ("", None),
    ],
)
def test_weights_of_encodings_are_understood(asked: str, given: str | None) -> None:
    answer = compressed(Response(b"a" * MIN_COMPRESSED), asked)
    assert answer.headers.get("content-encoding") == given


def _last_step(answer: httpx.Response) -> int:
    body = msgspec.json.decode(answer.content)
    steps: list[int] = body["step"] if "step" in body else body["series"]["loss"]["step"]
    assert body["bucket_steps"] <= 2
    return steps[-1]


def _unzstd(raw: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(raw)
