"""`watch` during real training: nothing changes, nothing raises, and the records are right."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from client_sdk.errors import ConfigurationError
from client_sdk.protocol import Layout, Record
from client_sdk.run import Run
from client_sdk.stats import Meter, StepCopy
from client_sdk.watch import rhythm, watch
from tests.support.logged import MakeRun, last_layout
from tests.support.logged import kept as records

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]


class Net(nn.Module):
    """A network with all that a probe could disturb: embedding, BatchNorm, dropout, attention, unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 12)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.attend(self.embed(tokens)).mean(1)
        logits: Tensor = self.out(F.dropout(self.norm(hidden), 0.1, self.training))
        return logits


def train(make: Make, steps: int, run: Run | None, *, autocast: bool = False, **watching: Any) -> list[Tensor]:
    """Train and return everything that training leaves behind: parameters, buffers, optimizer state, random state."""
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model.parameters())
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    if run is not None:
        watch(run, model, optimizer, **watching)
    for step in range(steps):
        tokens = torch.randint(12, (6, 5))

        def loss_of(tokens: Tensor = tokens) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return F.cross_entropy(model(tokens), tokens[:, 0])

        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        if run is not None:
            run.log({"loss": loss}, step=step, closure=loss_of)
    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    return [*model.state_dict().values(), *state, torch.get_rng_state()]


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


def is_attached(handle: RemovableHandle) -> bool:
    """Return whether the hook of ``handle`` has not been removed."""
    return handle.id in (handle.hooks_dict_ref() or {})


def columns_of(record: Record, layout: Layout) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns of the record's block, [layers] each, keyed by statistic."""
    assert record.block is not None
    block = np.frombuffer(record.block, "<f4").reshape(len(layout.layers), len(layout.statistics))
    return {name: block[:, column] for column, name in enumerate(layout.statistics)}


@pytest.mark.parametrize(
    ("make", "autocast"),
    [
        (lambda p: torch.optim.AdamW(p, lr=0.01), False),
        (lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True), False),
        (lambda p: torch.optim.Adam(p, lr=0.01, fused=True), False),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), False),
        (lambda p: torch.optim.RMSprop(p, lr=0.01), False),
        (lambda p: torch.optim.Rprop(p, lr=0.01), False),
        (lambda p: torch.optim.AdamW(p, lr=0.01), True),
    ],
    ids=["adamw", "amsgrad-foreach", "adam-fused", "sgd-nesterov", "rmsprop", "unknown", "autocast"],
)
def test_training_ends_in_the_same_bits(
    make: Make, autocast: bool, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = train(make, 40, None, autocast=autocast)
    run = make_run()
    watched = train(make, 40, run, autocast=autocast, every=1, histogram_every=3, curvature_every=1, budget=math.inf)
    assert len(alone) == len(watched)
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))
    is_unknown = isinstance(make([nn.Parameter(torch.ones(1))]), torch.optim.Rprop)
    expected = {"optimizer": 1, "curvature_unsupported": 1} if is_unknown else {}
    assert dict(run.status().warnings) == expected
    found = records(run)
    assert len(found) == 40
    if not expected:
        assert sum("lambda_max" in record.scalars for record in found) >= 30


def test_records_are_complete(make_run: MakeRun) -> None:
    run = make_run()
    train(lambda p: torch.optim.Adam(p, lr=0.01), 3, run, every=1, histogram_every=2, precision="exact")
    layout = last_layout(run)
    assert "unused" in layout.layers
    assert "frozen" not in layout.layers
    assert layout.optimizer is not None
    assert (layout.optimizer.family, layout.optimizer.beta2, layout.optimizer.lr) == ("adam", 0.999, 0.01)
    found = records(run)
    assert [bool(record.histograms) for record in found] == [True, False, True]
    for record in found:
        assert {"loss", "lr", "grad_norm", "stability_limit"} <= set(record.scalars)
        assert record.scalars["stability_limit"] == pytest.approx(2 / record.scalars["lr"])
        columns = columns_of(record, layout)
        measured = [layout.layers.index(name) for name in layout.layers if name != "unused"]
        assert np.isnan(columns["grad_norm"][layout.layers.index("unused")])
        assert (columns["grad_norm"][measured] >= 0).all()
        total = float(np.sqrt((columns["grad_norm"][measured].astype(np.float64) ** 2).sum()))
        assert record.scalars["grad_norm"] == pytest.approx(total, rel=1e-5)


def test_curvature_of_the_tanh_net_warns_before_its_spike(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(200, 50), torch.randn(50, 1) / 50**0.5
    y = torch.sin(3 * x @ w) + x @ w
    model = nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.999))
    run = make_run()
    watch(run, model, optimizer, budget=math.inf)
    losses = []
    for step in range(1500):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        run.log({"loss": loss}, step=step, closure=lambda: F.mse_loss(model(x), y))
        if step > 300 and losses[-1] > 1e3 * min(losses):
            break
    found = records(run)
    calm = min(range(300, len(losses)), key=losses.__getitem__)
    onset = next(step for step in range(calm, len(losses)) if losses[step] > 100 * losses[calm])

    def crossing(name: str) -> int:
        values = [(record.step, record.scalars[name]) for record in found if name in record.scalars]
        above = onset
        for step, value in reversed([entry for entry in values if entry[0] <= onset]):
            if value <= 200.0:
                break
            above = step
        return above

    assert run.status().warnings == {}
    assert crossing("lambda_max") < crossing("lambda_grad") <= onset
    assert crossing("lambda_max") <= onset - 10
    before = [r for r in found if onset - 60 <= r.step < onset and "lambda_grad" in r.scalars]
    assert len(before) >= 20, "near the limit there is a probe at every other step"


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, run: Run | None, steps: Sequence[int]) -> None:
    """Train ``model``, which has 4 inputs, on random data, logging without a closure."""
    for step in steps:
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).pow(2).mean()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.log({"loss": loss}, step=step)


def small() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def test_model_and_optimizer_can_be_copied_saved_and_loaded(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, every=1)
    fit(model, optimizer, run, range(3))
    twin, twin_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    for other, other_optimizer in ((twin, twin_optimizer), (copied, copied_optimizer)):
        fit(other, other_optimizer, None, range(2))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    fit(model, optimizer, run, range(3, 6))
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    fit(model, optimizer, run, range(3, 5))
    found = records(run)
    assert [record.step for record in found] == [0, 1, 2, 3, 4, 5, 3, 4]
    assert all(record.block is not None for record in found)
    assert run.status().warnings == {}


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


def test_every_thins_the_statistics(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, every=3)
    fit(model, optimizer, run, range(8))
    found = records(run)
    assert [record.step for record in found if record.block is not None] == [0, 3, 6]
    assert all("lr" in record.scalars for record in found)


def test_steps_that_are_not_logged_are_not_measured(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rhythm, "SHARE", 1e9)
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, budget=math.inf)
    measured = _count_measurements(monkeypatch)
    for step in range(10, 110, 10):
        fit(model, optimizer, None, range(9))
        fit(model, optimizer, run, [step])
    assert all(record.block is not None for record in records(run))
    assert len(measured) <= 10 + 9, "the first ten steps, then each step that is logged"
    run.finish(0.0)
    measured.clear()
    fit(model, optimizer, None, range(20))
    assert measured == []


def _count_measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets one element for each measurement of a step."""
    measure = Meter.measure
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> StepCopy | None:
        calls.append(1)
        return measure(*arguments, **options)

    monkeypatch.setattr(Meter, "measure", counted)
    return calls


def test_gradient_accumulation_is_measured_once_a_step(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer)
    for micro in range(8):
        loss = model(torch.randn(8, 4)).pow(2).mean()
        loss.backward()
        if micro % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
        run.log({"loss": loss}, step=micro)
    assert [record.step for record in records(run) if record.block is not None] == [3, 7]


def test_steps_skipped_by_the_loss_scaler_are_not_measured(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, every=1, budget=math.inf)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    norms = []
    for step in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).pow(2).mean() * (float("inf") if step == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        norms.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))
        run.log({"loss": loss}, step=step)
    found = records(run)
    assert [record.step for record in found if record.block is not None] == [0, 1, 3]
    assert found[3].scalars["grad_norm"] == pytest.approx(norms[3], rel=1e-5), (
        "the gradient norm is taken after unscaling"
    )


def test_learning_rate_in_a_tensor_is_followed(make_run: MakeRun) -> None:
    model, _ = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.02), foreach=False)
    run = make_run()
    watch(run, model, optimizer)
    fit(model, optimizer, run, range(2))
    for group in optimizer.param_groups:
        group["lr"].fill_(0.0)
    fit(model, optimizer, run, range(2, 3))
    found = records(run)
    assert found[1].scalars["stability_limit"] == pytest.approx(100.0)
    assert found[2].scalars["lr"] == 0.0
    assert "stability_limit" not in found[2].scalars


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses functions that torch deprecates
def test_compiled_models_and_optimizers_are_measured_and_not_disturbed(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:

    def run_once(run: Run | None) -> list[Tensor]:
        model, optimizer = small()
        compiled = torch.compile(model, backend="aot_eager")
        assert isinstance(compiled, nn.Module)
        step_once = torch.compile(optimizer.step, backend="aot_eager")
        x = torch.randn(8, 4)
        if run is not None:
            watch(run, compiled, optimizer, curvature_every=1, budget=math.inf)
        for step in range(6):
            optimizer.zero_grad()
            loss = compiled(x).pow(2).mean()
            loss.backward()
            step_once()
            if run is not None:
                run.log({"loss": loss}, step=step, closure=lambda: compiled(x).pow(2).mean())
        return [parameter.detach() for parameter in model.parameters()]

    alone = run_once(None)
    run = make_run()
    watched = run_once(run)
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))
    found = records(run)
    assert all(record.block is not None for record in found)
    assert sum("lambda_max" in record.scalars for record in found) == 6
    assert run.status().warnings == {}


def test_two_models_share_a_run(make_run: MakeRun) -> None:
    run = make_run()
    pairs = [small(), small()]
    for model, optimizer in pairs:
        watch(run, model, optimizer)
    for step in range(2):
        for model, optimizer in pairs:
            fit(model, optimizer, None, [0])
        run.log({"loss": 0.0}, step=step)
    layout = last_layout(run)
    for record in records(run):
        assert {"lr", "lr_2"} <= set(record.scalars)
        assert len(columns_of(record, layout)["grad_norm"]) == 8


@pytest.mark.parametrize("share", [None, 0.0], ids=["independent", "zero-gradient"])
def test_closure_of_another_watched_model_causes_no_warning(make_run: MakeRun, share: float | None) -> None:
    pairs = small(), small()
    model, other = pairs[0][0], pairs[1][0]
    run = make_run()
    for one, its_optimizer in pairs:
        watch(run, one, its_optimizer, curvature_every=5, budget=math.inf)
    batch = torch.randn(8, 4)

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(batch).square().mean()
        return loss if share is None else loss + share * other(batch).square().mean()

    for step in range(30):
        for one, its_optimizer in pairs:
            fit(one, its_optimizer, None, [0])
        run.log({"loss": closure().item()}, step=step, closure=closure)
    assert not [record for record in run.warner.counts if record == "closure_nonfinite"]
    found = records(run)
    assert [record.step for record in found if "lambda_max" in record.scalars][:3] == [0, 5, 10]
    assert not any("lambda_max_2" in record.scalars or "lambda_step_2" in record.scalars for record in found)


def test_bad_closures_never_reach_training(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, curvature_every=1, budget=math.inf)
    closures: list[Any] = [lambda: 1 / 0, lambda: None, 3, lambda: model(torch.randn(2, 4)).sum() * float("nan")]
    step = 0
    for closure in closures:
        for _ in range(3):
            fit(model, optimizer, None, [0])
            run.log({"loss": 0.1}, step=step, closure=closure)
            step += 60
    assert set(run.status().warnings) == {"closure", "closure_nonfinite"}
    found = records(run)
    assert len(found) == step // 60
    assert not any("lambda_max" in record.scalars for record in found)


def test_broken_measuring_does_not_reach_training(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer)
    monkeypatch.setattr("client_sdk.stats.meter.term_table", lambda *_: 1 / 0)
    fit(model, optimizer, run, range(3))
    assert run.status().warnings["statistics"] == 3
    assert [record.block for record in records(run)] == [None] * 3


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
