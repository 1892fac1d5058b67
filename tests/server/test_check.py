"""`spikewatch check` tells a script by its exit code whether a run is as it should be, and people why not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from client_sdk import answers
from client_sdk.protocol import Outcome, PredictedStep
from client_sdk.vocabulary import AlertLevel, EventKind
from server.checking.finding import RunFacts, findings_of
from server.checking.report import CheckReport
from server.cli import app
from tests.server.test_cli import restored_logging

__all__ = ["restored_logging"]


def check(home: Path, *arguments: str) -> Result:
    environment = {"SPIKEWATCH_HOME": str(home), "SPIKEWATCH_DATA": None, "SPIKEWATCH_DATABASE_URL": None}
    return CliRunner().invoke(app, arguments, env=environment)


def log(path: Path, *, spike_at: int | None = None) -> Path:
    """Write a log of 300 steps, with a loss that jumps and returns."""
    rows = ["step,loss"]
    for step in range(300):
        loss = 1.0 + math.exp(-step / 100) + 0.01 * math.sin(7 * step)
        rows.append(f"{step},{9.0 if spike_at is not None and spike_at <= step < spike_at + 4 else loss}")
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_calm_log_passes(tmp_path: Path) -> None:
    done = check(tmp_path / "home", "check", str(log(tmp_path / "calm.csv")))
    assert done.exit_code == 0, done.output
    assert "Nothing was found." in done.stdout
    assert done.stdout.endswith("passed: 1 run, nothing at the level warning or above\n")
    assert not (tmp_path / "home").exists()


def test_a_spike_fails_and_is_explained(tmp_path: Path) -> None:
    path = str(log(tmp_path / "gpt.csv", spike_at=250))
    done = check(tmp_path / "home", "check", path)
    assert done.exit_code == 1, done.output
    assert "Loss spike at step 250" in done.stdout
    assert "              try: " in done.stdout
    assert len(done.stdout.splitlines()) <= 24
    told = check(tmp_path / "home", "check", path, "--json", "--fail-on", "critical")
    report = json.loads(told.stdout)
    assert told.exit_code == (0 if report["passed"] else 1)
    (run,) = report["runs"]
    assert (run["name"], run["run_id"], run["last_step"], report["fail_on"]) == ("gpt", None, 299, "critical")
    assert run["worst"] == run["findings"][0]["level"]
    assert report["passed"] == (run["worst"] != "critical")


def test_a_stored_run_is_checked_by_its_id(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    imported = check(home, "import", str(log(tmp_path / "gpt.csv", spike_at=250)))
    run_id = imported.stderr.split(": run ")[1].split(" ")[0]
    done = check(home, "check", run_id)
    assert done.exit_code == 1, done.output
    assert done.stdout.startswith(f"gpt (run {run_id} in imported, finished): steps 0 to 299, loss ")
    unknown = check(home, "check", "nothing")
    assert unknown.exit_code == 2
    assert unknown.stderr.startswith("spikewatch: nothing is neither a file, a folder nor a run; ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("time,loss\n1,2\n", "no column of steps"),
        ("step,loss\n1,2\n2,x\n", "line 3: 'x' in the column 'loss' is not a number"),
        ("", "the file is empty"),
        ("version https://git-lfs.github.com/spec/v1\n", "line 1: this is a pointer of Git LFS"),
    ],
)
def test_bad_input_is_named_and_is_no_verdict(tmp_path: Path, text: str, reason: str) -> None:
    log(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(text)
    for subject in (tmp_path / "b.csv", tmp_path):
        done = check(tmp_path / "home", "check", str(subject))
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"spikewatch: {tmp_path / 'b.csv'}")
        assert reason in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_path_that_is_missing_is_not_taken_for_a_run(tmp_path: Path) -> None:
    done = check(tmp_path, "check", "logs/train.csv")
    assert (done.exit_code, done.stderr) == (2, "spikewatch: logs/train.csv: there is no such file or folder\n")


def alert(level: str, *, kind: str = "spike", step: int = 5, result: str | None = None) -> answers.Alert:
    outcome = None if result is None else Outcome(result=result, step=None, lead=None)  # type: ignore[arg-type]
    return answers.Alert(
        id=f"{kind}-{step}",
        run_id="run",
        kind=kind,
        level=level,
        state="resolved",
        step=step,
        title=f"{kind} at step {step}",
        message="",
        outcome=outcome,
        predicted_step=PredictedStep(low=1, best=2, high=3),
    )


def facts(*alerts: answers.Alert, name: str = "gpt", events: tuple[answers.Event, ...] = ()) -> RunFacts:
    return RunFacts(run=answers.RunDetail(id=name, name=name, last_step=99), alerts=alerts, events=events)


def test_a_forecast_that_did_not_come_true_does_not_fail() -> None:
    false = facts(alert("critical", kind="spike-predicted", result="false"))
    assert CheckReport.of([false], AlertLevel.WARNING, is_stored=True).passed
    hit = facts(alert("critical", kind="spike-predicted", result="hit"))
    report = CheckReport.of([hit], AlertLevel.WARNING, is_stored=True)
    assert not report.passed
    assert "    critical  spike-predicted at step 5 [hit]" in list(report.lines())


def test_findings_are_sorted_and_stand_in_their_parts() -> None:
    back = answers.Event(step=40, kind=EventKind.ROLLBACK.value)
    found = findings_of(facts(alert("watch"), alert("critical", kind="lr-jump"), events=(back,)))
    assert [(finding.level, finding.section) for finding in found] == [
        ("critical", "settings"),
        ("watch", "events"),
        ("watch", "events"),
    ]
    assert found[-1].title == "The training went back to step 40"


def test_findings_of_the_audit_are_warnings_unless_they_are_dismissed() -> None:
    found = answers.AuditFinding.of("betas-coupled", message="β1² ≥ β2", step=0)
    audit = answers.RunAudit(checks=(answers.AuditCheckRuns.of("betas-coupled", 3, 7),), findings=(found,))
    run = answers.RunDetail(id="gpt", name="gpt", last_step=9)
    report = CheckReport.of([RunFacts(run=run, alerts=(), events=(), audit=audit)], AlertLevel.WARNING, is_stored=True)
    assert not report.passed
    lines = list(report.lines())
    assert "  What the audit found:" in lines
    assert "    warning   step 0: β1 is too large for β2" in lines
    assert "  Audit: 1 check ran 3 times; last at step 7." in lines
    dismissed = msgspec.structs.replace(audit, findings=(msgspec.structs.replace(found, dismissed=True),))
    calm = RunFacts(run=run, alerts=(), events=(), audit=dismissed)
    assert CheckReport.of([calm], AlertLevel.WATCH, is_stored=True).passed


def test_a_hundred_runs_fit_on_a_screen_with_the_worst_first() -> None:
    runs = [facts(*(alert("warning", step=step) for step in range(9)), name=f"run-{n}") for n in range(99)]
    report = CheckReport.of([*runs, facts(alert("critical"), name="worst")], AlertLevel.WATCH, is_stored=False)
    lines = list(report.lines())
    assert lines[0].startswith("worst: ")
    assert len(lines) <= 40
    assert lines[-1] == "failed: 100 runs, 892 findings at the level watch or above"
