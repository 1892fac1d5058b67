"""The first command of the README, judged by its own exit code."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.embedded import COMMAND
from tests.support.slack import SlackServer

TIMEOUT = 240.0  # seconds; once installed it takes under two minutes on two idle cores


@pytest.mark.long
@pytest.mark.timeout(TIMEOUT + 30)
def test_demo_predicts_the_spike_and_names_the_bad_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SlackServer() as slack:
        done = subprocess.run(
            [*COMMAND, "demo", "--exit"],
            env=os.environ
            | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "TERM": "dumb"}
            | {"SPIKEWATCH_SLACK_WEBHOOK": slack.webhook, "SPIKEWATCH_NOTIFY_ALLOW_PRIVATE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.search(
        r"spike predicted at step (\d+) for step \d+ .*it came at step (\d+): lead (\d+) steps", done.stdout
    )
    assert summary is not None, done.stdout
    predicted, came, lead = map(int, summary.groups())
    assert predicted < came
    assert lead == came - predicted
    assert "bad-batch: named the batch of step 400 a bad batch, not a predicted spike" in done.stdout
    assert 'char-transformer: healthy for 500 steps, no alert above "watch"' in done.stdout
    _check_slack(slack, done.stdout, lead)
    assert list(tmp_path.glob("spikewatch-demo-*")) == [], "the demo left something behind"
    with capsys.disabled():
        print("\n" + "\n".join(line for line in done.stdout.splitlines() if "✓" in line))
        print(done.stdout[done.stdout.index("Timeline of the spike") :])


def _check_slack(slack: SlackServer, printed: str, lead: int) -> None:
    """Check that the run of the spike was followed from its steps to the messages in Slack."""
    assert slack.problems == []
    headlines = [message.text for message in slack.messages if "run tanh-net" in message.text]
    assert re.match(r". Spike (possible|predicted) in ~[\d,]+ steps \(step \d+, \d+–\d+\), run tanh-net", headlines[0])
    assert any(f"lead {lead} steps" in headline for headline in headlines), headlines
    assert not any("char-transformer" in message.text and "🟡" not in message.text for message in slack.messages)
    reported = re.search(
        r'step \d+ logged, where "spike-predicted" opens.*opened: stored.*message sent: Spike', printed, re.S
    )
    assert reported is not None, printed
    assert f"message sent: it came, lead {lead} steps" in printed
