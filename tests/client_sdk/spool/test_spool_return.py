"""A disk that was full accepts records again, and a run that never pauses returns to it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from client_sdk.protocol import PROTOCOL_VERSION, Hello
from client_sdk.spool.appender import Appender
from client_sdk.spool.spool import DISK_RETRY, RETURN_BYTES, Spool

HELLO = Hello(version=PROTOCOL_VERSION, run_id="run", writer="writer", project="p")


class FullDisk:
    """A disk that has room for no record until `is_full` is cleared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        self.written = 0  # bytes of records
        append = Appender.append

        def append_if_there_is_room(appender: Appender, end: int, payload: bytes | bytearray) -> int:
            if self.is_full:
                raise OSError(errno.ENOSPC, "no space left")
            self.written += len(payload)
            return append(appender, end, payload)

        monkeypatch.setattr(Appender, "append", append_if_there_is_room)


def read_all(spool: Spool, after: int = 0) -> list[bytes]:
    found: list[bytes] = []
    while records := spool.read(after + len(found), 64 * 1024):
        found += records
    return found


def test_records_in_memory_return_to_the_disk_while_more_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    directory = tmp_path / "run-writer"
    directory.mkdir()
    spool = Spool(directory, Spool.in_memory(HELLO).meta, clock=lambda: now)
    spool.update_hello(HELLO)
    logged = [b"%06d" % number * 20 for number in range(3_000)]
    spool.append(logged[0])
    disk = FullDisk(monkeypatch)
    for payload in logged[1:2_000]:
        assert spool.append(payload)
    spool.acknowledge(500)  # the sender reads from memory in the meantime
    disk.is_full = False
    now = DISK_RETRY + 1.0
    for payload in logged[2_000:]:
        assert spool.append(payload)
    assert spool.read(500, 10**9)[0] == logged[500]
    assert read_all(spool, after=500) == logged[500:]
    spool.release()
    # As after `kill -9`: records that are not on the disk are lost.
    later = Spool.open(directory)
    assert (later.last_seq, later.acknowledged) == (3_000, 500)
    assert read_all(later, after=500) == logged[500:]
    assert later.lost == 0, "records that were acknowledged from memory do not count as lost"
    later.release()


def test_records_of_a_long_outage_return_to_the_disk_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_disk_that_fails_again_during_the_return_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert read_all(spool) == [b"%d" % number for number in range(13)]
    spool.release()


def test_file_that_received_no_record_does_not_delete_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    directory = tmp_path / "run-writer"
    directory.mkdir()
    spool = Spool(directory, Spool.in_memory(HELLO).meta, clock=lambda: now)
    spool.append(b"1")
    disk = FullDisk(monkeypatch)
    spool.append(b"2")
    now = DISK_RETRY + 1.0
    spool.append(b"3")  # the next file gets its header, but the record does not fit
    disk.is_full = False
    now = 2 * (DISK_RETRY + 1.0)
    spool.append(b"4")
    assert spool.memory_count == 0
    spool.acknowledge(1)
    assert read_all(spool, after=1) == [b"2", b"3", b"4"]
    spool.release()
