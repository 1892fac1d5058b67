"""`watch` refuses bad arguments at once, and its hooks are there only while it measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from client_sdk.errors import ConfigurationError
from client_sdk.watch import watch
from tests.support.logged import MakeRun
from tests.support.logged import kept as records
from tests.support.watched_training import fit, is_attached, small

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[RemovableHandle]:
    """Handles of the step hooks that have been registered with any optimizer."""
    handles: list[RemovableHandle] = []
    for name in ("register_step_pre_hook", "register_step_post_hook"):
        register = getattr(torch.optim.Optimizer, name)

        def registered(optimizer: torch.optim.Optimizer, hook: Any, register: Any = register) -> RemovableHandle:
            handles.append(register(optimizer, hook))
            return handles[-1]

        monkeypatch.setattr(torch.optim.Optimizer, name, registered)
    return handles


def test_remove_stops_measuring(make_run: MakeRun, hooks: list[RemovableHandle]) -> None:
    model, optimizer = small()
    run = make_run()
    handle = watch(run, model, optimizer)
    fit(model, optimizer, run, range(2))
    assert all(is_attached(hook) for hook in hooks)
    handle.remove()
    handle.remove()
    fit(model, optimizer, run, range(2, 4))
    assert [record.block is not None for record in records(run)] == [True, True, False, False]
    assert hooks
    assert not any(is_attached(hook) for hook in hooks)


def test_a_disabled_run_leaves_no_hook(make_run: MakeRun, hooks: list[RemovableHandle]) -> None:
    model, optimizer = small()
    run = make_run(mode="disabled")
    handle = watch(run, model, optimizer)
    assert hooks == []
    fit(model, optimizer, run, range(2))
    handle.remove()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "torch.nn.Module"),
        ({"optimizer": "adam"}, "torch.optim.Optimizer"),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)}, "shares no parameter"),
        ({"every": 0}, "every is 0"),
        ({"every": "often"}, "every is 'often'"),
        ({"every": 1.5}, "every is 1.5"),
        ({"histogram_every": -1}, "histogram_every is -1"),
        ({"curvature_every": True}, "curvature_every is True"),
        ({"group": "layers"}, "group is 'layers'"),
        ({"group": lambda name: None}, "left out every parameter"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_bad_arguments_raise_at_once(
    arguments: dict[str, Any], message: str, mode: str, make_run: MakeRun, hooks: list[RemovableHandle]
) -> None:
    model, optimizer = small()
    values: dict[str, Any] = {"model": model, "optimizer": optimizer, **arguments}
    with pytest.raises(ConfigurationError, match=message):
        watch(make_run(mode=mode), values.pop("model"), values.pop("optimizer"), **values)
    assert hooks == []
