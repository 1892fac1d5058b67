"""A policy is frozen and bounded; one that is not is refused with a word about what to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest

from client_sdk.errors import ConfigurationError
from client_sdk.guard import LowerBeta2, Policy, RaiseSecondMoment, ReduceRate, ScaleEps, SkipBatch
from client_sdk.guard.bounds import WINDOW, Bounds

INVALID: dict[str, tuple[Callable[[], object], str]] = {
    "no share": (lambda: Policy(share=None), "needs a bound"),  # type: ignore[arg-type]
    "all steps and more": (lambda: Policy(share=1.5), "from 0 to 1"),
    "no whole share": (lambda: Policy(whole_share=math.nan), "needs a bound"),
    "endless rows": (lambda: Policy(in_a_row=math.inf), "a number of steps"),  # type: ignore[arg-type]
    "no patience": (lambda: Policy(patience=0), "patience"),
    "height": (lambda: Policy(least_height=-1.0), "least_height"),
    "no actions": (lambda: Policy(actions={}), "mapping"),
    "cause": (lambda: Policy(actions={"weather": (ReduceRate(),)}), "is no cause"),
    "not a tuple": (lambda: Policy(actions={"learning-rate": ReduceRate()}), "use a tuple"),  # type: ignore[dict-item]
    "no action": (lambda: Policy(actions={"learning-rate": ("halve",)}), "is no action"),  # type: ignore[dict-item]
    "skipping": (lambda: Policy(actions={"learning-rate": (SkipBatch(),)}), "bad-batch"),
    "not skipping": (lambda: Policy(actions={"bad-batch": (ReduceRate(),)}), "SkipBatch is"),
    "too long": (lambda: Policy(actions={"learning-rate": (ReduceRate(steps=30),)}), "in_a_row allows 20"),
    "no step": (lambda: Policy(actions={"learning-rate": (ReduceRate(steps=0, ramp=0),)}), "lasts no step"),
    "a larger rate": (lambda: Policy(actions={"learning-rate": (ReduceRate(factor=2.0),)}), "raises the learning rate"),
    "no rate": (lambda: Policy(actions={"learning-rate": (ReduceRate(factor=0.0),)}), "above 0"),
    "no decay": (lambda: Policy(actions={"learning-rate": (LowerBeta2(beta2=1.0),)}), "below 1"),
    "no ε": (lambda: Policy(actions={"vanished-gradients": (ScaleEps(factor=0.0),)}), "above 0"),
    "too little": (lambda: Policy(actions={"stale-second-moment": (RaiseSecondMoment(margin=0.5),)}), "at least 1"),
    "not a number": (lambda: Policy(actions={"learning-rate": (ReduceRate(factor=math.nan),)}), "finite number"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_policies_are_refused(name: str) -> None:
    make, message = INVALID[name]
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_policy_is_frozen() -> None:
    policy = Policy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.share = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.actions["learning-rate"] = ()  # type: ignore[index]


def test_shares_are_counted_over_a_window() -> None:
    bounds = Bounds(Policy(share=0.002, whole_share=0.01))
    for step in (10, 20):
        assert bounds.allows(step, 1, is_whole=False)
        bounds.touch(step, 1, is_whole=False)
    assert not bounds.allows(30, 1, is_whole=False)
    assert bounds.allows(30, 10, is_whole=True), "other actions have a share of their own"
    assert not bounds.allows(30, 11, is_whole=True)
    assert bounds.allows(10 + WINDOW, 1, is_whole=False), "the first is out of the window"
    assert bounds.total == 2


def test_a_row_of_steps_has_an_end() -> None:
    bounds = Bounds(Policy(share=1.0, in_a_row=20))
    for step in range(20):
        assert bounds.allows(step, 1, is_whole=False)
        bounds.touch(step, 1, is_whole=False)
    assert not bounds.allows(20, 1, is_whole=False)
    assert bounds.allows(21, 20, is_whole=False)
    assert not bounds.allows(21, 21, is_whole=False)
