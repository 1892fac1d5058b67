from __future__ import annotations

import math

import pytest

from dashboard.numbers import compact, duration, ellipsis, exact, rate, ratio, steps, unix_time


@pytest.mark.parametrize(
    ("value", "written"),
    [(2.1e-14, "2.1e-14"), (0.044, "0.0440"), (3.1184, "3.12"), (48210.0, "48,210"), (0.0, "0"), (-2.5, "-2.50"),
     (3.2e9, "3.2e9"), (None, "–"), (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "−∞")],
)  # fmt: skip
def test_numbers_are_written_for_people(value: float | None, written: str) -> None:
    assert compact(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(1.118, "1.12"), (0.004, "< 0.01"), (0.0, "0.00"), (431.0, "431"), (None, "–"), (math.inf, "∞")],
)
def test_ratios_have_two_decimals_and_never_pretend_to_be_zero(value: float | None, written: str) -> None:
    assert ratio(value) == written


def test_settings_lose_no_digit_and_gain_none() -> None:
    assert [exact(value) for value in (200.0, 5263.2, 0.01, 3e-4)] == ["200", "5,263", "0.01", "3.0e-4"]


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.21, "0.2 s"), (42, "42 s"), (250, "4 min"), (3 * 3600, "3 h"), (50 * 3600, "2 d"), (-5, "0.0 s")],
)
def test_durations_use_the_largest_fitting_unit(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_steps_and_rates_read_as_a_sentence() -> None:
    assert [steps(value) for value in (None, 1, 48210)] == ["no steps yet", "1 step", "48,210 steps"]
    assert [rate(value) for value in (None, 0.0, 0.21, 18.42, 512.3)] == ["", "", "0.21", "18.4", "512"]


def test_the_end_of_a_long_name_survives() -> None:
    assert ellipsis("blocks.10.mlp.down.weight", 12) == "…down.weight"
    assert ellipsis("short", 12) == "short"


def test_timestamps_are_read_as_seconds_or_iso() -> None:
    assert unix_time(1.5) == 1.5
    assert unix_time("1970-01-01T00:01:00+00:00") == 60.0
    assert unix_time("1970-01-01T00:01:00") == 60.0
    assert unix_time("yesterday") is None
