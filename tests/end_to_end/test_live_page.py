"""The path of a step from `client_sdk.log` in a training loop to the pixels of a run page."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from playwright.sync_api import BrowserContext, Page
from torch import nn

import client_sdk
from tests.support.embedded import embedded

STEPS = 160
RATE = 16  # steps a second

OBSERVE_LOSS_GRAPH = """() => {
  window.seen = [];
  const graph = document.querySelector('#loss-box .js-plotly-plot');
  const note = () => requestAnimationFrame(() => {
    const steps = graph._fullData.flatMap(trace => Array.from(trace.x || []).filter(Number.isFinite));
    if (steps.length) window.seen.push([Math.max(...steps), Date.now() / 1000]);
  });
  graph.on('plotly_afterplot', note);
}"""


def _train(run_directory: Path, url: str, token: str, page: Page) -> dict[int, float]:
    """Train at a steady rate, open the page after the first steps and return the Unix time at which each was logged."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    inputs, targets = torch.randn(64, 8), torch.randn(64, 1)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = client_sdk.init(project="end-to-end", name="walk", url=url, token=token, directory=run_directory)
    client_sdk.watch(model, optimizer)

    def batch_loss() -> torch.Tensor:
        return F.mse_loss(model(inputs), targets)

    logged: dict[int, float] = {}
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = batch_loss()
        loss.backward()
        optimizer.step()
        logged[step] = time.time()
        client_sdk.log({"loss": loss}, step=step, closure=batch_loss)
        if step == 20:
            assert client_sdk.flush()
            page.goto(f"{url}/?token={token}")
            page.goto(f"{url}/runs/{run.id}")
            page.wait_for_selector("#loss-box .js-plotly-plot")
            page.evaluate(OBSERVE_LOSS_GRAPH)
        page.wait_for_timeout(1000 / RATE)  # the rate of the training; meanwhile Playwright handles events
    return logged


@pytest.mark.browser
def test_steps_reach_the_pixels_of_the_page_while_training_goes_on(
    tmp_path: Path, context: BrowserContext, capsys: pytest.CaptureFixture[str]
) -> None:
    page = context.new_page()
    with embedded(tmp_path) as server:
        try:
            logged = _train(tmp_path / "spool", server.url, server.token, page)
            page.wait_for_function(f"window.seen.some(([step]) => step === {STEPS})")
            seen = [(int(step), at) for step, at in page.evaluate("window.seen")]
        finally:
            client_sdk.finish()

        first_seen: dict[int, float] = {}
        for step, at in seen:
            first_seen.setdefault(step, at)
        assert max(first_seen) == STEPS
        assert sum(step < STEPS for step in first_seen) >= 3, "the page did not change while training went on"
        latencies = sorted(at - logged[step] for step, at in first_seen.items() if step > 25)
        with capsys.disabled():
            print(
                f"\nstep to pixel: median {1000 * statistics.median(latencies):.0f} ms, "
                f"95th percentile {1000 * latencies[int(0.95 * len(latencies))]:.0f} ms, {len(latencies)} frames\n"
            )

        with server.api() as api:
            stored = api.get(f"/runs/{page.url.rsplit('/', 1)[-1]}/series", params={"keys": "loss", "points": 1000})
        assert stored.json()["series"]["loss"]["step"] == list(range(1, STEPS + 1))
