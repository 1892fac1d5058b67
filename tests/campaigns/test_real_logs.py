"""`make real-logs` holds what the product says about logs against their labels, also where the real logs are absent."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from campaigns.real_logs.__main__ import LABELS, OWN, SHARED, main
from campaigns.real_logs.goals import goals
from campaigns.real_logs.judge import add_up, judge
from campaigns.real_logs.labels import LabelledEvent, Labels
from campaigns.real_logs.logs import Log, find_logs, read_logs
from campaigns.real_logs.own_logs import write
from campaigns.real_logs.replay import Replayed, Told, replay

PACKAGE = Path(__file__).parents[2] / "campaigns" / "real_logs"
RECORDS = tuple(range(0, 10_000, 100))


def _alert(
    named: int,
    *,
    kind: str = "spike",
    level: str = "warning",
    cause: str = "unknown",
    message_record: int | None = None,
) -> Told:
    record = named // 100 if message_record is None else message_record
    is_message = level != "watch"
    return Told(
        kind=kind,
        opened_step=named,
        named_step=named,
        level=level,
        cause=cause,
        message_step=RECORDS[record] if is_message else None,
        message_record=record if is_message else None,
        last_step=named,
    )


def _replayed(*alerts: Told, kind: str = "algoperf") -> Replayed:
    return Replayed(
        kind=kind,
        name=f"{kind}/a.csv",
        steps=9_901,
        records=RECORDS,
        has_gradients=True,
        alerts=alerts,
    )


def _rise(first: int = 5_000, **changes: int | str) -> LabelledEvent:
    event = {"first_step": first, "last_step": first + 1_000, "kind": "sustained"}
    return msgspec.convert(event | changes, LabelledEvent)


def test_the_goals_hold_on_our_own_logs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(OWN), "--jobs", "1", "--details"]) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    assert "goals" in shown
    assert "MISS" not in shown


@pytest.mark.parametrize("seed", range(11, 17))
def test_the_goals_hold_with_other_noise(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "own", seed)
    code = main([str(tmp_path), "--labels", str(OWN / LABELS), "--jobs", "1", "--details"])
    assert code == 0, capsys.readouterr().out


def test_our_own_logs_are_those_that_their_program_writes(tmp_path: Path) -> None:
    write(tmp_path)
    stored = {path.name: path.read_text() for path in (OWN / "own").glob("*.csv")}
    assert {path.name: path.read_text() for path in tmp_path.glob("*.csv")} == stored
    assert len(stored) == 10


def test_each_of_our_own_logs_is_labelled_at_records_that_exist() -> None:
    labels = Labels.read(OWN / LABELS)
    for path in find_logs(OWN):
        for log in read_logs(OWN, path):
            _check_labels(labels, log)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public half of the real logs is not here")
def test_each_real_log_is_labelled_at_records_that_exist() -> None:
    labels = Labels.read(PACKAGE / LABELS)
    paths = find_logs(SHARED)
    for path in paths:
        if path.parent.name == "algoperf":
            _check_labels(labels, *read_logs(SHARED, path))
    assert all(labels.of(path.relative_to(SHARED).as_posix()) is not None for path in paths)


def _check_labels(labels: Labels, log: Log) -> None:
    events = labels.of(log.name)
    assert events is not None, log.name
    steps = {sample.step for sample in log.samples}
    for event in events:
        for step in (event.first_step, event.up_to_step, event.gradient_step):
            assert event.kind == "unclear" or step is None or step in steps, (log.name, event)
        assert event.last_step >= event.first_step, (log.name, event)


def test_a_missed_goal_is_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "own")
    event = {"first_step": 100, "last_step": 110, "kind": "sustained"}
    (tmp_path / LABELS).write_bytes(msgspec.json.encode({"own/healthy.csv": [event]}))
    assert main([str(tmp_path), "--jobs", "1", "--details"]) == 1
    shown = capsys.readouterr().out
    assert "MISS  at least 100% of the rises found at their first record: 0 of 1" in shown
    assert "own/healthy.csv: nothing said" in shown


def test_a_folder_without_logs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "there are no logs" in capsys.readouterr().err


def test_names_of_scalars_are_those_that_an_import_gives(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,train/loss,learning_rate\n0,3,0.1\n10,2,\n")
    (log,) = read_logs(tmp_path, tmp_path / "a.csv")
    assert [(sample.step, dict(sample.scalars)) for sample in log.samples] == [
        (0, {"loss": 3.0, "lr": 0.1}),
        (10, {"loss": 2.0}),
    ]
    assert (log.kind, log.name, log.steps) == (tmp_path.name, f"{tmp_path.name}/a.csv", 11)


def test_calm_records_come_before_each_instability_of_a_log_that_holds_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "bloom").mkdir()
    path = tmp_path / "bloom" / "a.csv"
    path.write_text("step,loss,grad_norm\n5000,3.2,9000\n5010,7,90000\n8000,3.3,9000\n8001,7,90000\n")
    first, second = read_logs(tmp_path, path)
    assert [sample.step for sample in first.samples[-3:]] == [4_990, 5_000, 5_010]
    assert [sample.step for sample in second.samples[-3:]] == [7_999, 8_000, 8_001]
    assert len(second.samples) == 402
    assert all(2.9 < sample.scalars["loss"] < 3.3 for sample in second.samples[:-2])


def test_a_replay_tells_the_level_at_which_a_person_hears_of_an_alert() -> None:
    (log,) = read_logs(OWN, OWN / "own" / "every_1.csv")
    replayed = replay(log)
    assert [alert.kind for alert in replayed.alerts if alert.is_message and alert.named_step < 300] == ["spike"]
    assert replayed.steps == len(replayed.records) == 600
    assert not replayed.has_gradients


@pytest.mark.parametrize(
    ("named", "values", "error"),
    [
        (5_000, {}, 0),
        (4_800, {}, -2),
        (5_300, {}, 3),
        (5_100, {"up_to_step": 5_200}, 0),
        (5_300, {"up_to_step": 5_200}, 1),
    ],
)
def test_a_step_error_is_counted_in_records(named: int, values: dict[str, int | str], error: int) -> None:
    (event,) = judge(_replayed(_alert(named)), (msgspec.structs.replace(_rise(), **values),)).events
    assert event.is_found
    assert event.error == error
    assert event.is_found_at_first == (error == 0)


def test_an_event_is_missed_without_a_message() -> None:
    (event,) = judge(_replayed(_alert(5_000, level="watch")), (_rise(),)).events
    assert event.error == 0
    assert not event.is_found
    assert not event.is_found_at_first


def test_an_alert_belongs_to_the_event_that_begins_nearest() -> None:
    events = judge(_replayed(_alert(5_500)), (_rise(5_000), _rise(5_500))).events
    assert [event.is_found for event in events] == [False, True]


def test_a_message_outside_events_is_false_only_where_the_log_is_labelled() -> None:
    replayed = _replayed(_alert(2_000), _alert(5_000), _alert(7_000, level="watch"))
    assert [alert.named_step for alert in judge(replayed, (_rise(),)).false] == [2_000]
    assert not judge(replayed, None).false


def test_a_gradient_alarm_leads_a_rise_or_is_false() -> None:
    alarms = (
        _alert(1_000, kind="gradient-explosion"),
        _alert(4_900, kind="gradient-explosion", message_record=49),
    )
    score = judge(_replayed(*alarms), (_rise(gradient_step=4_800),))
    assert (score.events[0].gradient_lead, score.events[0].gradient_delay) == (1, 1)
    assert [alert.named_step for alert in score.false_gradient] == [1_000]
    assert not score.false


def test_a_restart_that_is_called_a_bad_batch_misses_the_goal() -> None:
    restart = _rise(kind="restart")
    for cause, is_met in (("bad-batch", False), ("state-loss", True)):
        (kind,) = add_up([judge(_replayed(_alert(5_000, cause=cause)), (restart,))]).values()
        outcome = {goal.text: goal.is_met for goal in goals(kind)}
        assert outcome["restarts called a bad batch: at most 0"] is is_met


def test_messages_on_logs_in_which_nothing_happened_miss_the_goal() -> None:
    (kind,) = add_up([judge(_replayed(_alert(5_000), kind="modded-nanogpt"), ())]).values()
    outcome = {goal.text: goal.is_met for goal in goals(kind)}
    assert outcome["messages per 1,000 steps: at most 0.05"] is False
    assert outcome["forecasts: at most 0"] is True


def test_an_exact_path_wins_over_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / LABELS
    path.write_bytes(msgspec.json.encode({"a/*": [], "a/b.csv": [_rise()]}))
    labels = Labels.read(path)
    assert labels.of("a/b.csv") == (_rise(),)
    assert labels.of("a/c.csv") == ()
    assert labels.of("b/c.csv") is None
