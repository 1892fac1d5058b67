"""The files of a spool, byte by byte: what an earlier release of the SDK left is sent by a later one."""

from __future__ import annotations

import zlib
from pathlib import Path

from client_sdk.protocol import Finish, Hello, Layout, Record, decode_record, encode
from client_sdk.spool.spool import Spool

# A spool that release 0.1.0 wrote: four records, the first acknowledged, rebased, and finished as crashed.
FILES = {
    "lock": "",
    "meta": (
        "83a568656c6c6f8ca474797065a568656c6c6fa776657273696f6e01a672756e5f6964a372756ea6777269746572a67365636f6e64a770"
        "726f6a656374a170a46e616d65c0a472616e6b01a6636f6e66696780a47461677391a174a76c61796f7574739185a2696400a66c617965"
        "727391a161aa7374617469737469637391a9677261645f6e6f726da573697a657390a96f7074696d697a6572c0aa737461727465645f61"
        "74cb3ff8000000000000a373646bac707974686f6e2f302e312e30a46261736501a666696e69736883a474797065a666696e697368a86c"
        "6173745f73657104a57374617465a763726173686564"
    ),
    "acknowledged": "0100000000000000f7df88a9",
    "00000000000000000002.segment": (
        "53504b575345473102000000000000002200000054e00e069601cb3ff000000000000081a46c6f7373cb3ff000000000000000c4040000"
        "000090"
    ),
    "00000000000000000003.segment": (
        "53504b5753454731030000000000000022000000907a0d5c9602cb400000000000000081a46c6f7373cb3ff000000000000000c4040000"
        "000090"
    ),
    "00000000000000000004.segment": (
        "53504b575345473104000000000000002200000062f489529603cb400800000000000081a46c6f7373cb3ff000000000000000c4040000"
        "000090"
    ),
}  # fmt: skip
HELLO = Hello(
    version=1,
    run_id="run",
    writer="second",
    project="p",
    rank=1,
    tags=("t",),
    layouts=(Layout(id=0, layers=("a",), statistics=("grad_norm",)),),
    started_at=1.5,
    sdk="python/0.1.0",
)


def record(step: int) -> Record:
    return Record(step=step, time=float(step), scalars={"loss": 1.0}, layout=0, block=bytes(4))


def test_a_spool_of_an_earlier_release_opens_with_everything_in_it(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(bytes.fromhex(data))
    spool = Spool.open(tmp_path)
    assert (spool.acknowledged, spool.last_seq, spool.lost) == (1, 4, 0)
    assert (spool.hello, spool.meta.base) == (HELLO, 1)
    assert spool.meta.finish == Finish(last_seq=4, state="crashed")
    found: list[bytes] = []
    while payloads := spool.read(1 + len(found), 1000):
        found += payloads
    assert [decode_record(payload) for payload in found] == [record(step) for step in (1, 2, 3)]
    spool.release()


def test_a_spool_of_this_release_has_the_names_and_bytes_that_an_earlier_one_reads(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, Hello(version=1, run_id="run", writer="writer", project="p"))
    payload = encode(record(0))
    spool.append(payload)
    spool.acknowledge(1)
    spool.release()
    assert spool.directory == tmp_path / "run-writer"
    assert sorted(path.name for path in spool.directory.iterdir()) == [
        "00000000000000000001.segment",
        "acknowledged",
        "lock",
        "meta",
    ]
    frame = len(payload).to_bytes(4, "little") + zlib.crc32(payload).to_bytes(4, "little") + payload
    written = (spool.directory / "00000000000000000001.segment").read_bytes()
    assert written == b"SPKWSEG1" + (1).to_bytes(8, "little") + frame
    assert (spool.directory / "acknowledged").read_bytes().hex() == FILES["acknowledged"]
