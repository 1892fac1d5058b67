"""The table of set-ups: what counts as a pass, a gap and a failure, and two set-ups as `make set-ups` tries them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from campaigns.set_ups.__main__ import read_verdict
from campaigns.set_ups.catalogue import catalogue
from campaigns.set_ups.child import MARK
from campaigns.set_ups.trial import StepTruth
from campaigns.set_ups.verdict import Stored, Verdict, judge
from tests.support.server import running_server

ROOT = Path(__file__).parents[2]
STEPS = range(5)
TRUTHS = {
    step: StepTruth(grad_norm={"w": 1.0 + step}, weight_norm={"w": 2.0}, update_norm={"w": 0.1}, lr=0.01)
    for step in STEPS
}
NEEDS = ("grad_norm", "weight_norm", "update_norm")


def stored(**changes: Mapping[int, float]) -> Stored:
    """Return what is stored if all is right but for the ``changes``, keyed by statistic or "lr"."""
    right: dict[str, dict[int, float]] = {
        "grad_norm": {step: 1.0 + step for step in STEPS},
        "weight_norm": dict.fromkeys(STEPS, 2.0),
        "update_norm": dict.fromkeys(STEPS, 0.1),
        "lr": dict.fromkeys(STEPS, 0.01),
    }
    right |= {name: dict(values) for name, values in changes.items()}
    return Stored(layers={name: {"w": right[name]} for name in NEEDS}, lr=right["lr"], losses=dict.fromkeys(STEPS, 1))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({0: 60.0, 1: 50.5, 2: 49.5, 3: 50.0, 4: 50.0}, Verdict(result="pass")),
        (
            {0: 50.0, 1: 50.0, 2: 48.0, 3: 50.0, 4: 50.0},
            Verdict(result="fail", words="lambda_max is 48 at step 2, true is 50"),
        ),
        ({2: 50.0, 3: 50.0}, Verdict(result="fail", words="no lambda_max, and nothing was said")),
    ],
    ids=["right", "wrong", "rare"],
)
def test_lambda_max_must_be_right_from_its_second_reading_on(found: dict[int, float], expected: Verdict) -> None:
    truths = {step: replace(truth, lambda_max=50.0) for step, truth in TRUTHS.items()}
    right = msgspec.structs.replace(stored(), lambda_max=found)
    assert judge(truths, right, needs=NEEDS, absent=(), tolerance=1e-3, is_same=True, messages={}) == expected


RULE = {"optimizer": "the rule is unknown"}


def verdict(
    found: Stored, *, is_same: bool = True, messages: Mapping[str, str] | None = None, says: tuple[str, ...] = ()
) -> Verdict:
    return judge(
        TRUTHS,
        found,
        needs=NEEDS,
        absent=(),
        tolerance=1e-3,
        is_same=is_same,
        messages=messages or {},
        says=says,
    )


def test_all_right_is_a_pass_also_if_two_steps_are_absent() -> None:
    assert verdict(stored()) == Verdict(result="pass")
    assert verdict(stored(update_norm=dict.fromkeys(STEPS[2:], 0.1))).result == "pass"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (stored(grad_norm=dict.fromkeys(STEPS, 1.0)), "grad_norm of w is 1 at step 1, true is 2"),
        (stored(lr=dict.fromkeys(STEPS, 0.02)), "lr is 0.02 at step 0, that of the step was 0.01"),
        (stored(update_norm={}), "no update_norm, and nothing was said"),
    ],
)
def test_a_wrong_value_and_silence_about_an_absent_one_fail(found: Stored, words: str) -> None:
    assert verdict(found) == Verdict(result="fail", words=words)


def test_absent_with_a_word_is_a_gap_and_a_word_without_need_fails() -> None:
    found = verdict(stored(update_norm={}), messages=RULE)
    assert found == Verdict(result="gap", words="no update_norm. The SDK says: the rule is unknown")
    assert verdict(stored(), messages=RULE).result == "fail"


def test_a_word_that_belongs_to_the_set_up_must_be_given() -> None:
    assert verdict(stored(), messages=RULE, says=("optimizer",)) == Verdict(result="pass", words="the rule is unknown")
    assert verdict(stored(), says=("optimizer",)).words == "nothing was said about optimizer"


def test_other_weights_fail_whatever_was_stored() -> None:
    assert verdict(stored(), is_same=False).result == "fail"


def test_a_listed_gap_is_a_gap_until_it_is_closed() -> None:
    def printed(found: Verdict) -> str:
        return f"{MARK}{msgspec.json.encode(found).decode()}\n"

    assert read_verdict(printed(Verdict(result="fail", words="off by 2")), "", "not done").result == "gap"
    assert read_verdict(printed(Verdict(result="pass")), "", "not done").result == "fail"
    assert read_verdict("", "Killed", "").words == "the process gave no verdict: Killed"


def test_the_page_has_every_set_up() -> None:
    text = (ROOT / "docs" / "reference" / "set-ups.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (.*?) \| (?:pass|gap) \|", text, flags=re.M) == list(catalogue().set_ups)


@pytest.mark.parametrize("name", ["torch AdamW", "DDP"])
def test_a_set_up_passes_as_the_table_says(name: str, tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        done = subprocess.run(
            [sys.executable, "-m", "campaigns.set_ups.child", name],
            cwd=ROOT,
            env={
                **os.environ,
                "SPIKEWATCH_URL": server.url,
                "SPIKEWATCH_TOKEN": server.token,
                "SPIKEWATCH_DIR": str(tmp_path / "spool"),
            },
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
    assert read_verdict(done.stdout, done.stderr, "") == Verdict(result="pass")
