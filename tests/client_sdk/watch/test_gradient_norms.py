"""The user's gradient norm stays the user's, and the measured one keeps a name of its own beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from client_sdk.watch import watch
from tests.support.logged import MakeRun
from tests.support.logged import kept as records

torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["grad_norm", "grad_norm_before_clip"])
def test_the_norms_before_and_after_clipping_do_not_overwrite_each_other(name: str, make_run: MakeRun) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    run = make_run()
    watch(run, model, optimizer, every=1)
    before = []
    for step in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).pow(2).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        before.append(float(norm))
        optimizer.step()
        run.log({"loss": 1.0, **({name: norm} if step % 2 == 0 else {})}, step=step)
    found = records(run)
    ours = "grad_norm_after_clip" if name == "grad_norm" else "grad_norm"
    assert [record.scalars[name] for record in found[::2]] == pytest.approx(before[::2], rel=1e-5)
    assert [record.scalars[ours] for record in found] == pytest.approx([0.01] * 6, rel=1e-3)
    assert not any("grad_norm" in record.scalars for record in found[1::2]) or name != "grad_norm"
