"""Followed logs reach a server like the records of a training: each once, whatever is restarted or away."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from client_sdk.protocol import Error
from server.cli import app
from tests.server.following.conftest import Site, append, lines
from tests.server.test_cli import restored_logging
from tests.support.event_writer import EventWriter
from tests.support.server import RunningServer

__all__ = ["restored_logging"]

COMMAND = [sys.executable, "-c", "from server.cli import main; main()"]


def test_logs_of_every_kind_are_found_and_followed(site: Site) -> None:
    site.follow()
    append(site.logs / "a.jsonl", '{"step": 1, "train/loss": 2.0}\n')
    append(site.logs / "b.csv", "step,loss\n1,2.0\n")
    append(site.logs / "c.log", "iter 1: loss 2.0000, time 100.00ms, mfu 12.00%\n")
    (site.logs / "notes.txt").write_text("buy milk\n")
    writer = EventWriter(site.logs / "board")
    writer.add(1, train__loss=2.0, lr=0.1)
    site.wait_for(lambda: len(site.runs()) == 4 and all(site.runs().values()))
    assert {name: records[0].scalars["loss"] for name, records in site.runs().items()} == dict.fromkeys(
        ("a", "b", "c", "logs/board"), 2.0
    )
    assert site.runs()["logs/board"][0].scalars == {"loss": 2.0, "lr": float.fromhex("0x1.99999ap-4")}
    assert site.runs()["logs/board"][0].time == 1_700_000_001.0
    append(site.logs / "b.csv", "2,1.5\n")
    writer.add(2, train__loss=1.5)
    site.wait_for(lambda: [len(site.runs()[name]) for name in ("b", "logs/board")] == [2, 2])
    writer.close()


def test_several_runs_of_one_file_are_several_runs(site: Site) -> None:
    path = site.logs / "sweep.csv"
    append(path, "run,step,loss\nwide,0,1.0\nnarrow,0,2.0\nwide,1,0.9\n")
    site.follow()
    site.wait_for(lambda: len(site.server.steps()) == 3)
    append(path, "narrow,1,1.9\n")
    site.wait_for(lambda: len(site.server.steps()) == 4)
    found = {name: [record.scalars["loss"] for record in records] for name, records in site.runs().items()}
    assert found == {"wide": [1.0, 0.9], "narrow": [2.0, 1.9]}


def test_a_table_in_long_form_gives_one_record_for_each_step(site: Site) -> None:
    append(site.logs / "long.csv", "step,metric,value\n1,loss,2.0\n1,lr,0.1\n2,loss,1.9\n2,lr,0.1\n")
    site.follow()
    site.wait_for(lambda: len(site.server.steps()) == 2)
    assert [record.scalars for record in site.server.all_records()] == [
        {"loss": 2.0, "lr": 0.1},
        {"loss": 1.9, "lr": 0.1},
    ]


def test_restarts_of_the_follower_lose_and_repeat_nothing(site: Site) -> None:
    path = site.logs / "train.jsonl"
    for start in range(0, 60, 20):
        append(path, lines(range(start, start + 20)))
        site.follow()
        site.wait_for_steps(list(range(start + 20)))
    assert len({hello.run_id for hello in site.server.hellos}) == 1


def test_a_server_that_goes_away_gets_everything_later(site: Site) -> None:
    path = site.logs / "train.jsonl"
    append(path, lines(range(5)))
    site.follow()
    site.wait_for_steps(list(range(5)))
    site.server.stop()
    append(path, lines(range(5, 10)))
    site.server.start()
    append(path, lines(range(10, 12)))
    site.wait_for_steps(list(range(12)))


def test_lost_acknowledgements_and_lost_batches_change_nothing(site: Site) -> None:
    site.server.cut_batches = {1, 4}
    site.server.ignore_batches = {2, 6}
    path = site.logs / "train.jsonl"
    site.follow()
    for step in range(30):
        append(path, lines([step]))
    site.wait_for_steps(list(range(30)))


def followed_in_two_pieces(site: Site) -> Path:
    """A log of eight steps of which the follower remembers the first five as sent."""
    path = site.logs / "train.jsonl"
    append(path, lines(range(5)))
    site.follow()
    site.wait_for_steps(list(range(5)))
    append(path, lines(range(5, 8)))
    site.wait_for_steps(list(range(8)))
    site.stop()
    return path


def test_a_new_database_gets_the_log_from_its_beginning(site: Site) -> None:
    path = followed_in_two_pieces(site)
    site.server.forget()
    append(path, lines([8]))
    site.follow()
    site.wait_for_steps(list(range(9)))
    assert any("no longer has this run" in note for note in site.notes)


def test_an_older_database_gets_the_rest_under_a_new_writer(site: Site) -> None:
    path = followed_in_two_pieces(site)
    (writer,) = site.server.records
    del site.server.records[writer][2:]
    append(path, lines([8]))
    site.follow()
    site.wait_for_steps([0, 1, 5, 6, 7, 8])
    assert any("2 of 5 records that it acknowledged" in note for note in site.notes)


def test_a_refused_record_does_not_stop_the_others(site: Site) -> None:
    site.server.refuses = lambda record: record.step == 7 and bool(record.scalars)
    append(site.logs / "train.jsonl", lines(range(12)))
    site.follow()
    site.wait_for_steps(list(range(12)))
    assert [record.step for record in site.server.all_records() if not record.scalars] == [7]
    assert any("refused the record at step 7" in note for note in site.notes)


def test_a_deleted_run_is_not_sent_again(site: Site) -> None:
    path = site.logs / "train.jsonl"
    append(path, lines(range(3)))
    site.follow()
    site.wait_for_steps([0, 1, 2])
    site.server.error = Error(code="run_deleted", message="the run is being deleted", retryable=False)
    site.server.dismiss(site.server.error, 4400)
    append(path, lines([3]))
    site.wait_for(lambda: len(site.server.hellos) == 2)
    append(site.logs / "other.jsonl", "")
    site.server.error = None
    append(site.logs / "other.jsonl", lines([9]))
    site.wait_for(lambda: 9 in site.server.steps())
    assert 3 not in site.server.steps()


def test_a_refused_token_ends_the_follower_with_the_remedy(site: Site) -> None:
    site.server.token = "sw_right_token_of_this_server"
    append(site.logs / "train.jsonl", lines([1]))
    site.follow(token="sw_wrong")
    deadline = time.monotonic() + 20
    while not any("no such token" in note for note in site.notes):
        assert time.monotonic() < deadline


def test_a_log_is_followed_once_at_a_time(site: Site, tmp_path: Path) -> None:
    path = site.logs / "train.jsonl"
    append(path, lines([1]))
    site.follow()
    site.wait_for_steps([1])
    other = Site(logs=site.logs, home=site.home, server=site.server)
    other.follow(path)
    deadline = time.monotonic() + 20
    while not any("is followed already" in note for note in other.notes):
        assert time.monotonic() < deadline
    other.stop()


def test_logs_of_yesterday_wait_until_they_grow(site: Site) -> None:
    old, new = site.logs / "old.jsonl", site.logs / "new.jsonl"
    append(old, lines([1]))
    os.utime(old, (time.time() - 86_400,) * 2)
    append(new, lines([2]))
    site.follow()
    site.wait_for_steps([2])
    append(old, lines([3]))
    site.wait_for(lambda: len(site.server.steps()) == 3)
    assert [record.step for record in site.runs()["old"]] == [1, 3]


def test_a_follower_that_is_killed_again_and_again_sends_each_line_once(site: Site) -> None:
    path, chance = site.logs / "train.jsonl", random.Random(3)
    environment = os.environ | {
        "SPIKEWATCH_HOME": str(site.home),
        "SPIKEWATCH_URL": site.server.url,
        "SPIKEWATCH_TOKEN": "sw_any_token_will_do",
    }
    sent = 0
    for kill in range(3):
        with killed_at_exit([*COMMAND, "follow", str(path), "--every", "0.02"], environment) as process:
            before = site.server.batches
            append(path, lines(range(sent, sent + 7)))
            sent += 7
            site.server.wait_for(partial(has_batch_after, site, before))
            for _ in range(chance.randrange(1, 9)):
                append(path, lines(range(sent, sent + 7)))
                sent += 7
            if kill == 2:
                site.wait_for_steps(list(range(sent)))
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0


@contextlib.contextmanager
def killed_at_exit(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def has_batch_after(site: Site, before: int) -> bool:
    return site.server.batches > before


def test_a_spike_in_a_followed_log_raises_an_alert(server: RunningServer, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    with (
        subprocess.Popen(
            [*COMMAND, "follow", str(logs), "--url", server.url, "--project", "gpt"],
            env=os.environ | {"SPIKEWATCH_HOME": str(tmp_path / "home"), "SPIKEWATCH_TOKEN": server.token},
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
        server.api() as api,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        with (logs / "wide.jsonl").open("w") as file:
            for step in range(300):
                loss = 1.0 + 0.01 * ((step * 37) % 11) if step < 270 else 9.0
                file.write(json.dumps({"step": step, "loss": loss}) + "\n")
                file.flush()
        assert process.stdout is not None
        assert process.stdout.readline() == "wide: critical at step 270: Loss spike at step 270\n"
        (run,) = api.get("/runs").json()["runs"]
        assert (run["name"], run["project"], run["state"]) == ("wide", "gpt", "running")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_up_serves_and_follows_in_one_command(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    append(logs / "gpt.csv", "step,loss\n1,2.0\n")
    environment = os.environ | {"SPIKEWATCH_HOME": str(tmp_path / "home")}
    with (
        subprocess.Popen(
            [*COMMAND, "up", "--port", "0", "--follow", str(logs)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        url, _, token = process.stdout.readline().split()[-1].partition("/?token=")
        assert process.stderr.readline().startswith(f"spikewatch: {logs / 'gpt.csv'}: run ")
        headers = {"Authorization": f"Bearer {token}"}
        deadline = time.monotonic() + 20
        runs: list[dict[str, object]] = []
        while not (runs and runs[0]["last_step"] == 1):
            assert time.monotonic() < deadline
            runs = httpx.get(f"{url}/api/v1/runs", headers=headers, trust_env=False, verify=False).json()["runs"]
        assert [(run["name"], run["project"]) for run in runs] == [("gpt", "followed")]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/train.log", "there is no "),
        ("run.parquet", "it does not grow line by line; import it when the training has ended"),
        ("page.log", "line 1: this is a web page, not a log"),
    ],
)
def test_a_path_that_cannot_be_followed_is_named_and_ends_the_command(tmp_path: Path, name: str, reason: str) -> None:
    if "/" not in name:
        (tmp_path / name).write_text("<!doctype html>\n" if name == "page.log" else "")
    environment = {"SPIKEWATCH_HOME": str(tmp_path / "home"), "SPIKEWATCH_URL": "http://127.0.0.1:9"}
    done = CliRunner().invoke(app, ["follow", str(tmp_path / name)], env=environment)
    assert done.exit_code == 2
    assert done.stderr.startswith("spikewatch: ")
    assert reason in done.stderr
