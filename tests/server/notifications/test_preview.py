"""The preview shows the messages, and escapes all of their text."""

from __future__ import annotations

from server.notifications.preview import page
from server.notifications.slack_blocks import payload
from tests.server.notifications.test_slack_blocks import EVIL, message
from tests.support.alerting import prediction


def test_a_preview_shows_words_and_buttons_and_no_markup_of_authors() -> None:
    sent = payload(message(prediction(message="<script>alert(1)</script> & more"), run_name=EVIL))
    shown = page([sent, {**sent, "thread_ts": "1.0"}], [b"png"])
    assert "85 steps (step 712, 698–731)" in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in shown
    assert "<script" not in shown
    assert '<a class="primary" href="https://spikes.example/runs/run?step=627">Open run at step 627</a>' in shown
    assert shown.count('class="message reply"') == 2
