"""A guarded training does not spike, is left alone while nothing is wrong, and gets everything back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

import client_sdk
from client_sdk.errors import ConfigurationError
from client_sdk.guard import (
    Action,
    ClipUpdate,
    LowerBeta2,
    Policy,
    RaiseSecondMoment,
    ReduceRate,
    ScaleEps,
    SkipBatch,
    guard,
)
from client_sdk.run import Run
from client_sdk.vocabulary import GUARD_ACTIONS
from tests.client_sdk.guard.descent import STALE_AT, Descent, adam, rise
from tests.support.logged import MakeRun, alert, kept, warnings_of

torch.set_num_threads(1)
STEPS = STALE_AT + 120


def logging_to(run: Run) -> Callable[[dict[str, float]], None]:
    return run.log


@pytest.fixture(scope="module")
def unguarded() -> Descent:
    found = Descent()
    found.go(STEPS)
    return found


def test_the_rise_of_the_loss_is_prevented_and_every_act_is_recorded(make_run: MakeRun, unguarded: Descent) -> None:
    run, guarded = make_run(), Descent()
    handle = guard(run, guarded.optimizer, mode="act")
    losses = guarded.go(STEPS, logging_to(run))
    assert rise(unguarded.losses) > 1e6
    assert rise(losses) < 100
    assert losses[-1] < unguarded.losses[-1]
    assert 1 <= len(handle.acts) <= 5
    assert handle.touched == len(handle.acts)
    assert all(act.step >= STALE_AT and act.is_done for act in handle.acts)
    assert {act.action for act in handle.acts} == {"raise-second-moment"}
    records = kept(run)
    marked = [record for record in records if "guard_act" in record.scalars]
    assert [record.step + 1 for record in marked] == [act.step for act in handle.acts]
    assert [GUARD_ACTIONS[int(record.scalars["guard_act"])] for record in marked] == [act.action for act in handle.acts]
    assert marked[0].scalars["guard_factor"] == handle.acts[0].factor > 1.0


def test_advice_changes_no_bit_and_says_what_would_have_been_done(make_run: MakeRun, unguarded: Descent) -> None:
    run, advised = make_run(), Descent()
    handle = guard(run, advised.optimizer)
    assert advised.go(STEPS, logging_to(run)) == unguarded.losses
    assert advised.weights == unguarded.weights
    assert handle.acts
    assert not any(act.is_done for act in handle.acts)
    assert handle.acts[0].height > 2.0
    assert any("guard_advice" in record.scalars and "guard_act" not in record.scalars for record in kept(run))


def test_an_idle_guard_changes_no_bit(make_run: MakeRun) -> None:
    bare, guarded = Descent(), Descent()
    bare.go(STALE_AT)
    handle = guard(make_run(), guarded.optimizer, mode="act")
    guarded.go(STALE_AT)
    assert guarded.losses == bare.losses
    assert guarded.weights == bare.weights
    assert handle.acts == ()
    assert guarded.optimizer.state_dict()["param_groups"] == bare.optimizer.state_dict()["param_groups"]


def test_small_rises_are_left_alone(make_run: MakeRun, unguarded: Descent) -> None:
    run, guarded = make_run(), Descent()
    handle = guard(run, guarded.optimizer, mode="act", policy=Policy(least_height=1e30))
    guarded.go(STEPS, logging_to(run))
    assert handle.acts == ()
    assert handle.left_alone > 0
    assert guarded.losses == unguarded.losses


LASTING: dict[str, tuple[Action, str]] = {
    "reduce-rate": (ReduceRate(factor=0.25, steps=4, ramp=4), "lr"),
    "lower-beta2": (LowerBeta2(beta2=0.5, steps=5), "betas"),
    "scale-eps": (ScaleEps(factor=1e6, steps=5), "eps"),
}


@pytest.mark.parametrize("name", LASTING)
def test_lasting_actions_hold_during_steps_alone_and_return_by_themselves(make_run: MakeRun, name: str) -> None:
    action, key = LASTING[name]
    run, guarded = make_run(), Descent()
    policy = Policy(actions={"stale-second-moment": (action,)}, whole_share=0.1)
    handle = guard(run, guarded.optimizer, mode="act", policy=policy)
    usual, during = guarded.optimizer.param_groups[0][key], []
    guarded.optimizer.register_step_pre_hook(lambda optimizer, *_: during.append(optimizer.param_groups[0][key]))
    between = []
    for _ in range(STEPS):
        guarded.go(1, logging_to(run))
        between.append(guarded.optimizer.param_groups[0][key])
    assert set(between) == {usual}
    assert handle.acts
    assert handle.acts[0].action == name
    first = handle.acts[0].step
    assert set(during[:first]) == {usual}
    changed = [value != usual for value in during]
    assert any(changed[first : first + handle.acts[0].steps])
    assert sum(changed) <= handle.touched
    if name == "reduce-rate":
        factors = [value / usual for value in during[first : first + 8]]
        assert factors == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.4, 0.55, 0.7, 0.85])


def test_updates_are_clipped_by_the_mean_of_their_squares(make_run: MakeRun) -> None:
    run, guarded = make_run(), Descent()
    policy = Policy(actions={"learning-rate": (ClipUpdate(steps=2),)}, server_alerts=True)
    guard(run, guarded.optimizer, mode="act", policy=policy)
    guarded.go(30, logging_to(run))
    run.inbox.receive(msgspec.structs.replace(alert(1), kind="spike-predicted", level="warning", cause="learning-rate"))
    guarded.go(2, logging_to(run))  # the callback is called in log(), and the action chosen after the next step
    during: list[tuple[float, float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        (group,), (parameter,) = optimizer.param_groups, optimizer.param_groups[0]["params"]
        state = optimizer.state[parameter]
        corrected = state["exp_avg_sq"] / (1.0 - 0.999 ** float(state["step"]))
        during.append((group["lr"], float((parameter.grad.square() / corrected).mean().sqrt())))

    guarded.optimizer.register_step_pre_hook(note)
    for _ in range(3):
        guarded.step(scale=100.0)
    rates = [rate for rate, _ in during]
    assert rates[:2] == pytest.approx([0.05 / max(1.0, rms) for _, rms in during[:2]])
    assert rates[0] < 0.05
    assert rates[2] == 0.05


def test_a_scheduler_that_writes_the_rate_at_every_step_keeps_its_say(make_run: MakeRun) -> None:
    def rates(*, is_guarded: bool) -> list[float]:
        training, run = Descent(), make_run()
        if is_guarded:
            policy = Policy(actions={"stale-second-moment": (ReduceRate(),)}, whole_share=0.1)
            handle = guard(run, training.optimizer, mode="act", policy=policy)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, gamma=0.9999)
        found = []
        for _ in range(STEPS):
            training.go(1, logging_to(run))
            scheduler.step()
            found.append(training.optimizer.param_groups[0]["lr"])
        if is_guarded:
            assert handle.acts
        return found

    assert rates(is_guarded=True) == rates(is_guarded=False)


def test_an_alert_of_the_server_asks_for_an_action_at_groups_of_different_rates(make_run: MakeRun) -> None:
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    rates = (0.1, torch.tensor(0.01))
    optimizer = torch.optim.Adam([{"params": [one], "lr": rate} for one, rate in zip(weights, rates, strict=True)])
    run = make_run()
    policy = Policy(actions={"learning-rate": (ReduceRate(factor=0.5, steps=2, ramp=0),)}, server_alerts=True)
    handle = guard(run, optimizer, mode="act", policy=policy)
    during: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda one, *_: during.append([float(group["lr"]) for group in one.param_groups]))

    def step() -> None:
        optimizer.zero_grad()
        torch.cat([*weights]).square().sum().backward()
        optimizer.step()
        run.log({})

    step()
    run.inbox.receive(msgspec.structs.replace(alert(1), kind="spike-predicted", level="warning", cause="learning-rate"))
    for _ in range(5):
        step()
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.1, 0.01])
    halved = [at for at, found in enumerate(during) if found == pytest.approx([0.05, 0.005])]
    assert halved == [3, 4]
    assert [(act.cause, act.factor) for act in handle.acts] == [("learning-rate", 0.5)]


def test_the_bounds_hold_and_are_said(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run, guarded = make_run(), Descent()
    handle = guard(run, guarded.optimizer, mode="act", policy=Policy(share=0.001))
    for _ in range(3):
        guarded.go(STALE_AT + 60, logging_to(run))
        guarded.make_stale()
    assert len(handle.acts) == handle.touched == 1
    assert any("its policy allows no further step" in message for message in warnings_of(caplog))


def test_a_bad_batch_is_skipped_without_a_change_of_state(make_run: MakeRun) -> None:
    guarded, bare = Descent(), Descent()
    policy = Policy(actions={"bad-batch": (SkipBatch(jump=10.0),)})
    handle = guard(make_run(), guarded.optimizer, mode="act", policy=policy)
    for training in (guarded, bare):
        training.go(40)
    for scale in (1e4, float("nan")):
        guarded.step(scale)
    assert guarded.weights == bare.weights
    guarded.go(20)
    bare.go(20)
    assert guarded.weights == bare.weights
    assert [(act.action, act.step) for act in handle.acts] == [("skip-batch", 41), ("skip-batch", 42)]


def test_the_next_action_follows_where_one_does_not_help(make_run: MakeRun) -> None:
    run, guarded = make_run(), Descent()
    actions = (ScaleEps(factor=1.0, steps=1), RaiseSecondMoment())
    policy = Policy(actions={"stale-second-moment": actions}, patience=2)
    handle = guard(run, guarded.optimizer, mode="act", policy=policy)
    guarded.go(STEPS, logging_to(run))
    names = [act.action for act in handle.acts]
    assert names[:3] == ["scale-eps", "scale-eps", "raise-second-moment"]


def test_the_checkpoint_is_saved_before_the_first_act_of_an_episode(make_run: MakeRun) -> None:
    run, guarded = make_run(), Descent()
    saved: list[dict[str, Any]] = []
    handle = guard(
        run,
        guarded.optimizer,
        mode="act",
        checkpoint=lambda: saved.append(copy.deepcopy(guarded.optimizer.state_dict())),
    )
    guarded.go(STEPS, logging_to(run))
    assert len(saved) == 1
    assert float(saved[0]["state"][0]["step"]) == handle.acts[0].step
    assert saved[0]["param_groups"][0]["lr"] == 0.05


def test_exceptions_are_reported_and_switch_the_guard_off(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run, guarded, bare = make_run(), Descent(), Descent()
    guard(run, guarded.optimizer, mode="act")
    guarded.go(10, logging_to(run))
    bare.go(10)
    (state,) = guarded.optimizer.state.values()
    guarded.optimizer.param_groups[0]["betas"] = "no betas"  # the next step raises, in the guard and in the optimizer
    with pytest.raises((TypeError, ValueError)):
        guarded.step()
    guarded.optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    assert float(state["step"]) <= 11
    guarded.go(STEPS, logging_to(run))
    assert all("raised" in message or "guard" in message for message in warnings_of(caplog))


def test_a_failing_checkpoint_is_reported_and_the_act_goes_on(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError("no space")

    run, guarded = make_run(), Descent()
    handle = guard(run, guarded.optimizer, mode="act", checkpoint=fail)
    losses = guarded.go(STEPS, logging_to(run))
    assert rise(losses) < 100
    assert handle.acts
    assert any("checkpoint callback of guard() raised OSError" in message for message in warnings_of(caplog))


def test_loading_a_checkpoint_within_an_episode_ends_it(make_run: MakeRun) -> None:
    run, guarded = make_run(), Descent()
    policy = Policy(actions={"stale-second-moment": (ReduceRate(steps=10, ramp=5),)}, whole_share=0.1)
    handle = guard(run, guarded.optimizer, mode="act", policy=policy)
    during: list[float] = []
    guarded.optimizer.register_step_pre_hook(lambda one, *_: during.append(one.param_groups[0]["lr"]))
    while not handle.acts:
        guarded.go(1, logging_to(run))
    guarded.go(2, logging_to(run))
    assert during[-1] < 0.05
    saved = guarded.optimizer.state_dict()
    assert saved["param_groups"][0]["lr"] == 0.05
    guarded.optimizer.load_state_dict(saved)
    guarded.go(1, logging_to(run))
    assert during[-1] == 0.05


def test_a_removed_guard_leaves_nothing(make_run: MakeRun) -> None:
    run, guarded, bare = make_run(), Descent(), Descent()
    handle = guard(run, guarded.optimizer, mode="act")
    handle.remove()
    handle.remove()
    guarded.go(STEPS, logging_to(run))
    assert guarded.losses == bare.go(STEPS)
    guard(run, guarded.optimizer).remove()


def test_a_disabled_run_guards_nothing(make_run: MakeRun) -> None:
    guarded, bare = Descent(), Descent()
    handle = guard(make_run(mode="disabled"), guarded.optimizer, mode="act")
    assert guarded.go(STEPS) == bare.go(STEPS)
    assert (handle.acts, handle.touched, handle.left_alone) == ((), 0, 0)


def test_a_watched_and_guarded_run_has_both_values(make_run: MakeRun) -> None:
    run, guarded = make_run(), Descent()
    client_sdk.watch(guarded.model, guarded.optimizer, every=1, run=run)
    client_sdk.guard(guarded.optimizer, mode="act", run=run)
    guarded.go(STEPS, logging_to(run))
    marked = [record for record in kept(run) if "guard_act" in record.scalars]
    assert marked
    assert {"loss", "lr", "guard_steps"} <= marked[0].scalars.keys()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no optimizer": (lambda: (object(), {}), "needs a torch.optim.Optimizer"),
    "mode": (lambda: (Descent().optimizer, {"mode": "always"}), 'use "advise" or "act"'),
    "policy": (lambda: (Descent().optimizer, {"policy": {"share": 1}}), "which has bounds"),
    "checkpoint": (lambda: (Descent().optimizer, {"checkpoint": "last.pt"}), "a function of no arguments"),
    "amsgrad": (
        lambda: (torch.optim.Adam(Descent().model.parameters(), amsgrad=True), {}),
        "AMSGrad never lets its second moment fall",
    ),
    "sgd": (lambda: (torch.optim.SGD(Descent().model.parameters(), lr=0.1), {}), "SGD keeps no second moment"),
    "no betas": (
        lambda: (
            torch.optim.SGD(Descent().model.parameters(), lr=0.1),
            {"policy": Policy(actions={"stale-second-moment": (LowerBeta2(),)})},
        ),
        "needs 'betas'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_at_once(make_run: MakeRun, name: str) -> None:
    make, message = BAD[name]
    optimizer, options = make()
    with pytest.raises(ConfigurationError, match=message):
        guard(make_run(), optimizer, **options)


def test_an_optimizer_is_guarded_once(make_run: MakeRun) -> None:
    optimizer, run = Descent().optimizer, make_run()
    guard(run, optimizer)
    with pytest.raises(ConfigurationError, match="guarded already"):
        guard(run, optimizer)


def test_an_optimizer_without_a_second_moment_can_have_its_rate_reduced(make_run: MakeRun) -> None:
    descent = Descent(lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9))
    run = make_run()
    handle = guard(
        run, descent.optimizer, mode="act",
        policy=Policy(actions={"stale-second-moment": (ReduceRate(),)}, whole_share=0.2),
    )  # fmt: skip
    for _ in range(60):
        run.log({"loss": descent.step()})
    assert handle.acts == ()
    hessian = 2.0 * descent.data.T @ descent.data / len(descent.data)
    limit = 2.0 * (1.0 + 0.9) / float(torch.linalg.eigvalsh(hessian)[-1])
    descent.optimizer.param_groups[0]["lr"] = 1.02 * limit
    for _ in range(60):
        run.log({"loss": descent.step()})
    assert handle.acts
    assert {act.action for act in handle.acts} == {"reduce-rate"}


def test_the_module_guards_the_default_run(make_run: MakeRun) -> None:
    assert client_sdk.guard.__name__ == "guard"
    with pytest.raises(ConfigurationError):
        client_sdk.guard(torch.optim.Adam(Descent().model.parameters()), mode="now", run=make_run())  # type: ignore[arg-type]
    assert adam([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == 0.05
