"""Rules over logged values and layer statistics that no training of milliseconds reaches, and the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client_sdk.audit.fault import Fault
from client_sdk.audit.layer_history import LayerHistory
from client_sdk.audit.ledger import MAX_LAYERS, REPORTED_AFTER, REPORTED_EVERY, Ledger
from client_sdk.audit.logged_values import LoggedValues, RateOfLog
from client_sdk.protocol import Layout

NAMES = ("grad_norm", "update_ratio", "eps_fraction", "swallowed")


def values(**known: Any) -> LoggedValues:
    return LoggedValues(**{"max_norm": None, "micro_batches": None, "ranks": 1, "loss": None, **known})


def observed(rule: LoggedValues, step: int, *, logs_norm: bool = False, **scalars: float) -> list[str]:
    found = rule.observe(scalars, step=step, logs_norm=logs_norm, loss_scale=None, is_moving=True, is_whole=True)
    return [fault.check for fault in found]


def layer_history(matrices: tuple[str, ...] = ("w", "b")) -> LayerHistory:
    return LayerHistory(Layout(id=0, layers=("w", "b"), statistics=NAMES, sizes=(90, 10)), matrices)


def block(**columns: tuple[float, float]) -> NDArray[np.float32]:
    usual = {"grad_norm": (1.0, 1.0), "update_ratio": (1e-3, 1e-3), "eps_fraction": (0.0, 0.0), "swallowed": (0.0, 0.0)}
    return np.array([(usual | columns)[name] for name in NAMES], np.float32).T


def histories(steps: Iterator[int] | range, lr: float = 0.1, **columns: tuple[float, float]) -> list[str]:
    history = layer_history()
    return [fault.check for step in steps for fault in history.observe(step, block(**columns), lr)]


def test_clipping_at_each_of_a_thousand_records_is_named_once_and_a_pause_begins_anew() -> None:
    rule = values()

    def clipped(step: int) -> list[str]:
        return observed(rule, step, logs_norm=True, grad_norm=2.0, grad_norm_after_clip=1.0)

    assert not any(clipped(step) for step in range(999))
    assert clipped(999) == ["clipping-constant"]
    assert not any(clipped(step) for step in range(1000, 3000))
    other = values()
    for step in range(1500):
        clips = step % 700 != 0
        named = observed(other, step, logs_norm=True, grad_norm=2.0, grad_norm_after_clip=1.0 if clips else 2.0)
        assert named == []


def test_a_clipped_run_whose_ratio_passes_a_factor_is_not_named() -> None:
    rule = values(micro_batches=4.0)
    for step, norm in enumerate(np.linspace(3.0, 5.0, 801)):
        assert observed(rule, step, logs_norm=True, grad_norm=float(norm), grad_norm_after_clip=1.0) == []


def test_a_factor_that_appears_later_is_named_at_three_records_with_different_norms() -> None:
    rule = values(ranks=4)
    assert observed(rule, 0, logs_norm=True, grad_norm=3.3, grad_norm_after_clip=3.0) == []
    named = [
        observed(rule, step, logs_norm=True, grad_norm=2.0 * norm, grad_norm_after_clip=norm)
        for step, norm in enumerate((1.0, 1.001, 1.5, 2.0), 1)
    ]
    assert named == [[], [], [], ["gradient-norm-off"]]


def test_gradients_above_the_configured_norm_are_named_unless_something_scaled_them() -> None:
    assert observed(values(max_norm=1.0), 0, grad_norm=3.0) == ["clipping-without-effect"]
    assert observed(values(max_norm=1.0), 0, grad_norm=1.2) == [], "near the norm it may be a group's own"
    assert observed(values(max_norm=1.0), 0, logs_norm=True, grad_norm=9.0, grad_norm_after_clip=1.5) == []
    assert observed(values(max_norm=1.0), 0, grad_norm=0.9) == []


def test_a_start_above_the_limit_is_named_only_if_the_loss_rises() -> None:
    rising, calm = values(), values()
    for rule in (rising, calm):
        assert observed(rule, 0, loss=1.0, stability_ratio=2.0, lambda_max=9.0) == []
    assert observed(rising, 20, loss=3.5) == ["learning-rate-above-limit"]
    assert observed(rising, 21, loss=9.0) == []
    assert observed(calm, 20, loss=0.5) == []


def test_eps_above_all_gradients_from_the_start_is_named_and_later_is_not() -> None:
    assert histories(range(1, 80), eps_fraction=(1.0, 1.0)) == ["eps-swallows"]
    history = layer_history()
    for step in range(1, 200):
        share = (1.0, 1.0) if step > 30 else (0.0, 0.0)
        assert [fault.check for fault in history.observe(step, block(eps_fraction=share), 0.1)] == []


def test_a_bias_without_a_gradient_is_no_dead_layer() -> None:
    history = layer_history(matrices=("w",))
    assert not [fault for step in range(1, 80) for fault in history.observe(step, block(grad_norm=(1.0, 0.0)), 0.1)]
    assert "dead-layer" in histories(range(1, 80), grad_norm=(0.0, 1.0))
    assert histories(range(1, 80), grad_norm=(0.0, 0.0)) == [], "without any gradient no layer stands out"


def test_sparse_measurements_count_the_steps_between_them() -> None:
    assert histories(range(1, 100, 7), grad_norm=(0.0, 1.0)), "fifteen measurements in a hundred steps"
    assert histories(range(1, 100, 20), grad_norm=(0.0, 1.0)) == [], "five are too few"


def test_updates_that_are_lost_at_the_end_of_a_schedule_are_not_named() -> None:
    history = layer_history()
    for step in range(1, 200):
        lost, lr = ((1.0, 1.0), 0.005) if step > 50 else ((0.0, 0.0), 0.1)
        assert list(history.observe(step, block(swallowed=lost), lr)) == []


def test_a_rate_that_is_logged_before_the_step_or_in_other_units_is_not_named() -> None:
    rule = RateOfLog()
    rule.note_step((0.1,))
    assert rule.note_log({"lr": 0.1}, (0.1,)) is None
    assert rule.note_log({"lr": 100.0}, (0.1,)) is not None, "it was 0.1 before"
    constant = RateOfLog()
    constant.note_step((0.1,))
    assert [constant.note_log({"lr": 100.0}, (0.1,)) for _ in range(5)] == [None] * 5, "in thousandths, and constant"
    scheduled = RateOfLog()
    scheduled.note_step((0.1,))
    assert scheduled.note_log({"lr": 0.1}, (0.1,)) is None
    scheduled.note_step((0.05,))
    assert scheduled.note_log({"lr": 0.2}, (0.05,)) is None, "the groups follow a schedule"


def test_the_ledger_keeps_the_first_finding_of_a_check_and_bounds_its_layers() -> None:
    ledger = Ledger(lambda: 0.0)
    ledger.found(Fault("dead-layer", "first", tuple(map(str, range(20)))))
    ledger.found(Fault("dead-layer", "second"))
    said = ledger.report()
    assert said is not None
    assert [(finding.message, len(finding.layers)) for finding in said.findings] == [("first", MAX_LAYERS)]
    assert ledger.report() is None
    assert ledger.has_found("dead-layer")


def test_the_ledger_reports_counts_rarely_and_findings_at_once() -> None:
    ledger = Ledger(lambda: 0.0)
    at = []
    for record in range(1, 5 * REPORTED_EVERY + 1):
        ledger.ran("dead-layer")
        if ledger.report() is not None:
            at.append(record)
    assert at == [1, 2, 4, 8, 16, 32, 48, 64, 80]
    ledger.ran("dead-layer")
    ledger.found(Fault("tied-weights", "apart"))
    said = ledger.report()
    assert said is not None
    assert said.runs == {"dead-layer": 81}


def test_the_ledger_reports_counts_of_slow_trainings_by_the_clock() -> None:
    now = 0.0
    ledger = Ledger(lambda: now)
    for _ in range(2 * REPORTED_EVERY + 1):
        ledger.ran("dead-layer")
        ledger.report()
    ledger.ran("dead-layer")
    assert ledger.report() is None
    now = REPORTED_AFTER + 1.0
    assert ledger.report() is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_norms_that_are_not_finite_name_nothing(bad: float) -> None:
    assert (
        observed(values(max_norm=1.0, micro_batches=2.0), 0, logs_norm=True, grad_norm=bad, grad_norm_after_clip=bad)
        == []
    )
