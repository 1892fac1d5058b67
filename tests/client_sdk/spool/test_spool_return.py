"""A disk that was full takes records again: a run that never pauses must get back to it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from client_sdk.protocol import PROTOCOL_VERSION, Hello
from client_sdk.spool.spool import DISK_RETRY, RETURN_BYTES, Spool

HELLO = Hello(version=PROTOCOL_VERSION, run_id="run", writer="writer", project="p")


class FullDisk:
    """Patched over the spool's way to the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        self.written = 0  # bytes of records
        append = Spool._append_to_disk

        def try_to(spool: Spool, seq: int, payload: bytes) -> None:
            if self.is_full:
                raise OSError(errno.ENOSPC, "no space left")
            append(spool, seq, payload)
            self.written += len(payload)

        monkeypatch.setattr(Spool, "_append_to_disk", try_to)


def test_records_in_memory_return_to_the_disk_though_more_come_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    directory = tmp_path / "run-writer"
    directory.mkdir()
    spool = Spool(directory, Spool.in_memory(HELLO).meta, clock=lambda: now)
    spool.introduce(HELLO)
    logged = [b"%06d" % number * 20 for number in range(3_000)]
    spool.append(logged[0])
    disk = FullDisk(monkeypatch)
    for payload in logged[1:2_000]:
        assert spool.append(payload)
    spool.acknowledge(500)  # the server takes some of them from memory meanwhile
    disk.is_full = False
    now = DISK_RETRY + 1.0
    for payload in logged[2_000:]:
        assert spool.append(payload)
    assert spool.read(500, 10**9)[0] == logged[500]
    found: list[bytes] = []
    while records := spool.read(500 + len(found), 64 * 1024):
        found += records
    assert found == logged[500:]
    spool.release()
    # As after `kill -9`: what is not on the disk is not there.
    left = Spool.open(directory)
    assert (left.last_seq, left.acknowledged) == (3_000, 500)
    kept: list[bytes] = []
    while records := left.read(500 + len(kept), 64 * 1024):
        kept += records
    assert kept == logged[500:]
    assert left.lost == 0, "what was acknowledged from memory is not missed"
    left.release()


def test_a_long_outage_of_the_disk_is_made_up_for_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    directory = tmp_path / "run-writer"
    directory.mkdir()
    spool = Spool(directory, Spool.in_memory(HELLO).meta, clock=lambda: now)
    disk = FullDisk(monkeypatch)
    for _ in range(40):
        spool.append(bytes(RETURN_BYTES // 8))
    disk.is_full = False
    now = DISK_RETRY + 1.0
    for _ in range(5):
        before = disk.written
        spool.append(b"small")
        assert 0 < disk.written - before <= 1.5 * RETURN_BYTES, "one call of log() writes a bounded amount"
    spool.release()


def test_a_disk_that_fails_again_on_the_way_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    directory = tmp_path / "run-writer"
    directory.mkdir()
    spool = Spool(directory, Spool.in_memory(HELLO).meta, clock=lambda: now)
    disk = FullDisk(monkeypatch)
    for number in range(10):
        spool.append(b"%d" % number)
    now = DISK_RETRY + 1.0
    spool.append(b"10")
    disk.is_full = False
    spool.append(b"11")
    assert spool.failure is not None
    now = 2 * (DISK_RETRY + 1.0)
    spool.append(b"12")
    found = spool.read(0, 10**6)
    found += spool.read(len(found), 10**6)
    assert found == [b"%d" % number for number in range(13)]
    spool.release()
