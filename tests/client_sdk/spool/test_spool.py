"""The spool keeps order and content, whatever is cut off, damaged or full."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from client_sdk.errors import SpoolError
from client_sdk.protocol import STATISTICS_THINNED, Finish, Hello, Layout, Record, decode_record, encode
from client_sdk.spool.appender import AHEAD_BYTES, Appender
from client_sdk.spool.spool import Spool
from client_sdk.spool.spool_file import FRAME, HEADER

HELLO = Hello(version=1, run_id="run", writer="writer", project="p")
payloads = st.lists(st.binary(min_size=1, max_size=300), max_size=30)


def record(step: int) -> bytes:
    return encode(Record(step=step, time=float(step), scalars={"loss": step / 7}))


def read_all(spool: Spool, after: int = 0, max_bytes: int = 1000) -> list[bytes]:
    found: list[bytes] = []
    while some := spool.read(after + len(found), max_bytes):
        found += some
    return found


def spool_files(spool: Spool) -> list[Path]:
    assert spool.directory is not None
    return sorted(spool.directory.glob("*.segment"))


@given(payloads=payloads, file_bytes=st.integers(1, 2000), max_bytes=st.integers(1, 2000))
@settings(max_examples=50, deadline=None)
def test_what_is_appended_is_read_in_order_and_by_a_later_process(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], file_bytes: int, max_bytes: int
) -> None:
    spool = Spool.create(tmp_path_factory.mktemp("spool"), HELLO, file_bytes=file_bytes)
    assert all(spool.append(payload) for payload in payloads)
    assert read_all(spool, max_bytes=max_bytes) == payloads
    spool.release()
    assert spool.directory is not None
    later = Spool.open(spool.directory)
    assert later.last_seq == len(payloads)
    assert later.hello == HELLO
    assert read_all(later, max_bytes=max_bytes) == payloads
    later.release()


@given(count=st.integers(1, 12), cut=st.integers(1, 400), file_bytes=st.sampled_from([1, 100, 10_000]))
@settings(max_examples=50, deadline=None)
def test_torn_tail_is_cut(tmp_path_factory: pytest.TempPathFactory, count: int, cut: int, file_bytes: int) -> None:
    spool = Spool.create(tmp_path_factory.mktemp("spool"), HELLO, file_bytes=file_bytes)
    written = [record(step) for step in range(count)]
    for payload in written:
        spool.append(payload)
    spool.release()
    last = spool_files(spool)[-1]
    os.truncate(last, max(0, last.stat().st_size - cut))
    assert spool.directory is not None
    later = Spool.open(spool.directory)
    found = read_all(later)
    assert found == written[: len(found)]
    assert later.append(b"after")
    assert read_all(later) == [*found, b"after"]
    later.release()


@given(count=st.integers(2, 12), where=st.floats(0, 1), flip=st.integers(1, 255))
@settings(max_examples=50, deadline=None)
def test_damage_in_the_middle_leaves_no_hole_in_the_sequence(
    tmp_path_factory: pytest.TempPathFactory, count: int, where: float, flip: int
) -> None:
    spool = Spool.create(tmp_path_factory.mktemp("spool"), HELLO, file_bytes=100)
    written = [record(step) for step in range(count)]
    for payload in written:
        spool.append(payload)
    spool.release()
    path = spool_files(spool)[0]
    data = bytearray(path.read_bytes())
    data[HEADER.size + int(where * (len(data) - HEADER.size - 1))] ^= flip
    path.write_bytes(data)
    assert spool.directory is not None
    later = Spool.open(spool.directory)
    found = [decode_record(payload) for payload in read_all(later)]
    later.release()
    if len(spool_files(spool)) > 1:
        assert len(found) == count
        assert later.lost > 0
    kept = [one for one in found if one.scalars]
    assert kept == [decode_record(payload) for payload in written if decode_record(payload) in kept]
    assert [one.step for one in found] == sorted(one.step for one in found), "stand-ins begin no new attempt"


def test_zeros_after_a_power_cut_are_not_records(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO)
    spool.append(b"one")
    spool.release()
    with spool_files(spool)[0].open("ab") as file:
        file.write(bytes(4096))
    assert spool.directory is not None
    later = Spool.open(spool.directory)
    assert read_all(later) == [b"one"]
    later.release()


def test_acknowledged_files_are_removed_and_the_watermark_outlives_the_process(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO, file_bytes=200)
    written = [record(step) for step in range(50)]
    for payload in written:
        spool.append(payload)
    before = len(spool_files(spool))
    spool.acknowledge(40)
    assert len(spool_files(spool)) < before
    assert spool.queued_bytes == sum(len(payload) + FRAME.size for payload in written[40:])
    spool.release()
    assert spool.directory is not None
    later = Spool.open(spool.directory)
    assert later.acknowledged == 40
    assert later.queued_bytes == spool.queued_bytes
    assert read_all(later, after=40) == written[40:]
    later.release()


def test_damaged_watermark_costs_only_a_resend(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO)
    for step in range(3):
        spool.append(record(step))
    spool.acknowledge(2)
    spool.release()
    assert spool.directory is not None
    (spool.directory / "acknowledged").write_bytes(struct.pack("<QI", 77, 1))
    later = Spool.open(spool.directory)
    assert later.acknowledged == 0
    assert len(read_all(later)) == 3
    later.release()


def test_meta_keeps_layouts_and_finish(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO)
    layout = Layout(id=0, layers=("a",), statistics=("x",))
    spool.update_hello(Hello(version=1, run_id="run", writer="writer", project="p", layouts=(layout,)))
    spool.finish(Finish(last_seq=0, state="crashed"))
    spool.release()
    assert spool.directory is not None
    later = Spool.open(spool.directory)
    assert later.hello.layouts == (layout,)
    assert later.meta.finish == Finish(last_seq=0, state="crashed")
    later.release()


def test_two_users_never_share_a_spool(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO)
    assert spool.directory is not None
    with pytest.raises(SpoolError, match="this process"):
        Spool.open(spool.directory)
    program = (
        "import sys; from pathlib import Path; from client_sdk.spool.spool import Spool; Spool.open(Path(sys.argv[1]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, str(spool.directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "another process uses it" in other.stderr
    spool.release()
    Spool.open(spool.directory).release()


def test_directory_that_is_not_a_spool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta").write_bytes(b"\xc1 nonsense")
    with pytest.raises(SpoolError, match="cannot use"):
        Spool.open(tmp_path)


def test_full_spool_refuses_and_keeps_a_reserve(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO, disk_limit=1000)
    while spool.append(b"x" * 92):
        assert spool.queued_bytes <= 1000
    assert spool.last_seq == 10
    assert spool.append(b"y" * 20, reserve=1.1)
    spool.acknowledge(5)
    assert spool.append(b"x" * 92)
    spool.release()


def test_disk_that_fails_degrades_to_memory_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    spool = Spool(tmp_path, Spool.in_memory(HELLO).meta, memory_limit=300, mapped=False, clock=lambda: now)
    spool.append(b"disk")
    with monkeypatch.context() as broken:

        def pwritev(descriptor: int, parts: object, offset: int) -> int:
            os.pwrite(descriptor, b"half of a frame", offset)
            raise OSError(errno.ENOSPC, "no space left")

        broken.setattr(os, "pwritev", pwritev)
        assert spool.append(b"memory 1")
        assert spool.failure is not None
    assert spool.append(b"memory 2"), "records go to memory until it is empty, so that their order is kept"
    assert len(spool_files(spool)) == 1
    assert read_all(spool) == [b"disk", b"memory 1", b"memory 2"]
    while spool.append(b"x" * 50):
        pass
    assert spool.queued_bytes <= 320, "memory is bounded"
    spool.acknowledge(spool.last_seq)
    assert spool.append(b"too early for the disk")
    spool.acknowledge(spool.last_seq)
    now = 11.0
    assert spool.append(b"disk again")
    assert len(spool_files(spool)) == 2
    assert read_all(spool, after=spool.last_seq - 1) == [b"disk again"]
    spool.release()


def test_spool_without_a_directory_keeps_records_in_memory() -> None:
    spool = Spool.in_memory(HELLO, memory_limit=1000)
    for step in range(5):
        assert spool.append(record(step))
    spool.acknowledge(2)
    assert read_all(spool, after=2) == [record(step) for step in range(2, 5)]
    assert spool.read(3, 1) == [record(3)]
    spool.delete()


def test_rebase_continues_as_a_new_writer(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO)
    for step in range(5):
        spool.append(record(step))
    spool.acknowledge(3)
    spool.rebase("another")
    assert (spool.hello.writer, spool.meta.base) == ("another", 3)
    spool.update_hello(HELLO)
    assert spool.hello.writer == "another", "a hello from before does not restore the old writer"
    spool.release()


def test_reading_returns_at_least_one_record(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO)
    spool.append(b"x" * 5000)
    spool.append(b"y")
    assert spool.read(0, 10) == [b"x" * 5000]
    spool.delete()


@pytest.mark.parametrize("mapped", [True, False])
def test_mapped_and_written_files_have_the_same_bytes(tmp_path: Path, mapped: bool) -> None:
    spool = Spool.create(tmp_path, HELLO, mapped=mapped, file_bytes=10_000)
    for step in range(3):
        spool.append(record(step) + bytes(3000 * step))
    spool.append(bytes(200_000))
    assert read_all(spool) == [*(record(step) + bytes(3000 * step) for step in range(3)), bytes(200_000)]
    spool.release()
    frames = [record(step) + bytes(3000 * step) for step in range(3)]
    expected = HEADER.pack(b"SPKWSEG1", 1) + b"".join(FRAME.pack(len(one), zlib.crc32(one)) + one for one in frames)
    assert spool_files(spool)[0].read_bytes()[: len(expected)] == expected
    assert sum(path.stat().st_size for path in spool_files(spool)) < 220_000, "reserved blocks are freed"


def test_disk_without_room_for_a_whole_file_is_used_record_by_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    spool = Spool.create(tmp_path, HELLO, mapped=True)
    assert spool.append(record(1))
    assert spool.failure is None
    assert spool_files(spool)[0].stat().st_size == HEADER.size + FRAME.size + len(record(1))
    spool.delete()


def test_next_file_is_created_in_advance_and_full_ones_are_closed_afterwards(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO, file_bytes=1000)
    spool.maintain()
    for step in range(40):
        assert spool.append(record(step))
        spool.maintain()
        assert len(list((spool.directory or tmp_path).glob("spare-*"))) <= 1
    assert read_all(spool) == [record(step) for step in range(40)]
    spool.release()
    assert not list((spool.directory or tmp_path).glob("spare-*"))


def test_killed_process_leaves_records_in_its_mapped_file(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from client_sdk.spool.spool import Spool\n"
        "from client_sdk.protocol import Hello\n"
        "spool = Spool.create(Path(sys.argv[1]), Hello(version=1, run_id='r', writer='w', project='p'), mapped=True)\n"
        "spool.maintain()\n"
        "for step in range(1000): spool.append(b'%d' % step * 50)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
    spool = Spool.open(tmp_path / "r-w")
    assert read_all(spool, max_bytes=100_000) == [b"%d" % step * 50 for step in range(1000)]
    spool.delete()


# -- Filling up --


def measured(step: int) -> bytes:
    return encode(
        Record(step=step, time=float(step), scalars={"loss": step / 7}, layout=0, block=step.to_bytes(4) * 100)
    )


def test_full_spool_thins_blocks_and_keeps_every_scalar(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO, disk_limit=100_000, file_bytes=8_000)
    for step in range(600):
        assert spool.append(measured(step)), "thinning makes room before the limit is reached"
        spool.maintain()
        assert spool.queued_bytes <= 100_000
    records = [decode_record(payload) for payload in read_all(spool, max_bytes=10_000)]
    assert [(one.step, one.scalars["loss"]) for one in records] == [(step, step / 7) for step in range(600)]
    whole = [one for one in records if one.block is not None]
    assert all(one.block == one.step.to_bytes(4) * 100 and one.layout == 0 for one in whole)
    assert 40 < len(whole) < 400
    assert spool.thinned >= 600 - len(whole)
    assert all((STATISTICS_THINNED in one.scalars) == (one.block is None) for one in records), (
        "each thinned record is marked"
    )
    gaps = [second.step - first.step for first, second in itertools.pairwise(whole)]
    assert max(gaps) <= 16, "the remaining blocks are spread over the whole run"
    on_disk = sum(len(payload) + FRAME.size for payload in map(encode, records))
    assert spool.queued_bytes == on_disk
    spool.acknowledge(600)
    assert spool.queued_bytes == 0
    spool.delete()


def test_later_process_reads_a_thinned_spool(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO, disk_limit=30_000, file_bytes=8_000)
    for step in range(200):
        spool.append(measured(step), reserve=1.1)
        spool.maintain()
    spool.acknowledge(20)
    before = read_all(spool, after=20)
    queued = spool.queued_bytes
    spool.release()
    assert spool.directory is not None
    later = Spool.open(spool.directory)
    assert (later.lost, later.queued_bytes) == (0, queued)
    assert read_all(later, after=20) == before
    later.delete()


def test_files_that_the_sender_has_begun_to_read_are_not_thinned(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO, disk_limit=40_000, file_bytes=8_000)
    for step in range(60):
        spool.append(measured(step))
    begun = read_all(spool, max_bytes=3_000)[:30]
    again = spool.read(0, 3_000)
    for step in range(60, 110):
        spool.append(measured(step))
        spool.maintain()
    assert spool.thinned > 0
    assert spool.read(0, 3_000) == again
    assert begun[: len(again)] == again
    spool.delete()


def test_spool_with_nothing_left_to_thin_refuses_the_next_block(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, HELLO, disk_limit=5_000, file_bytes=1_000)
    for step in range(200):
        spool.append(record(step))
        spool.maintain()
    assert not spool.append(measured(200))
    assert spool.thinned == 0
    spool.delete()


class SpoolMachine(RuleBasedStateMachine):
    """A spool behaves like a list under any order of appending, reading, acknowledging and reopening."""

    @initialize(file_bytes=st.sampled_from([1, 64, 400, 10_000]))
    def create(self, file_bytes: int) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.spool = Spool.create(Path(self.directory.name), HELLO, file_bytes=file_bytes)
        self.model: list[bytes] = []
        self.acknowledged = 0

    @rule(payload=st.binary(min_size=1, max_size=100))
    def append(self, payload: bytes) -> None:
        assert self.spool.append(payload)
        self.model.append(payload)

    @rule(share=st.floats(0, 1))
    def acknowledge(self, share: float) -> None:
        seq = self.acknowledged + int(share * (len(self.model) - self.acknowledged))
        self.spool.acknowledge(seq)
        self.acknowledged = max(self.acknowledged, seq)

    @rule(share=st.floats(0, 1), max_bytes=st.integers(1, 300))
    def read(self, share: float, max_bytes: int) -> None:
        after = self.acknowledged + int(share * (len(self.model) - self.acknowledged))
        found = self.spool.read(after, max_bytes)
        assert found == self.model[after : after + len(found)]
        assert bool(found) == (after < len(self.model))

    @rule()
    def reopen(self) -> None:
        self.spool.release()
        assert self.spool.directory is not None
        self.spool = Spool.open(self.spool.directory)

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "model"):
            assert self.spool.last_seq == len(self.model)
            assert self.spool.acknowledged == self.acknowledged
            unsent = sum(len(payload) + FRAME.size for payload in self.model[self.acknowledged :])
            assert self.spool.queued_bytes == unsent

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.delete()
            self.directory.cleanup()


TestSpoolIsAList = SpoolMachine.TestCase
TestSpoolIsAList.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.skipif(tuple(map(int, os.uname().release.split(".")[:2])) < (5, 14), reason="MADV_POPULATE_WRITE is newer")
def test_record_finds_its_pages_populated(tmp_path: Path) -> None:
    appender = Appender(tmp_path / "file", 4 * AHEAD_BYTES, mapped=True)
    payload = os.urandom(15_000)
    end = appender.append(HEADER.size, payload)  # includes the pages that Python itself touches for the first time

    def faults_of_a_record() -> int:
        nonlocal end
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        end = appender.append(end, payload)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    prepared = [faults_of_a_record() for _ in range(20)]
    end = 2 * AHEAD_BYTES
    unprepared = [faults_of_a_record() for _ in range(20)]
    appender.prepare(end)
    prepared += [faults_of_a_record() for _ in range(20)]
    appender.close(end)
    assert sum(prepared) < 20 <= sum(unprepared)


def test_no_pages_are_populated_behind_the_end_of_the_file(tmp_path: Path) -> None:
    appender = Appender(tmp_path / "file", 10_000, mapped=True)
    appender.prepare(9_000)
    end = appender.append(HEADER.size, b"x" * 9_000)
    appender.close(end)
    appender.prepare(end)  # as when the other thread has closed it in the meantime
    assert (tmp_path / "file").stat().st_size == end
