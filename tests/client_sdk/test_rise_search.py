"""The search brackets the shortest length at which a function rises, in few trials."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sdk.curvature.rise_search import Change, RiseSearch, Trial

Rise = Callable[[float], float]


def quadratic(root: float, scale: float = 1.0) -> Rise:
    return lambda length: scale * length * (length / root - 1)


def wall(length: float) -> float:
    """A core that falls slowly, and a wall that rises as the sixth power, through zero at 3."""
    return -length + length**6 / 243


def trials(search: RiseSearch, rise: Rise, *, start: float = 1.0, most: int = 30) -> int:
    """Make trials until the search is done, and return their number."""
    for made in range(1, most + 1):
        length = search.propose(start)
        value = rise(length)
        change: Change = "rose" if value > 0 else "fell" if value < 0 else "even"
        search.observe(Trial(length, change, value / length if math.isfinite(value) else math.inf))
        if search.is_done:
            return made
    return most


@pytest.mark.parametrize(("root", "most"), [(1.0, 5), (0.3, 5), (3.0, 5), (40.0, 6), (0.02, 6)])
def test_the_root_of_a_quadratic_is_exact_after_few_trials(root: float, most: int) -> None:
    search = RiseSearch(tolerance=0.05)
    assert trials(search, quadratic(root)) <= most
    assert search.value == pytest.approx(root, rel=1e-9)
    assert search.lower <= root < search.upper
    assert 0 < search.error <= 0.05


@pytest.mark.parametrize("drift", [0.99, 1.0, 1.01])
def test_a_good_guess_takes_two_trials(drift: float) -> None:
    search = RiseSearch(tolerance=0.05, guess=7.0)
    assert trials(search, quadratic(7.0 * drift)) == 2


@pytest.mark.parametrize("drift", [0.3, 0.7, 1.4, 3.0])
def test_a_bad_guess_takes_at_most_five_trials(drift: float) -> None:
    search = RiseSearch(tolerance=0.05, guess=7.0)
    assert trials(search, quadratic(7.0 * drift)) <= 5
    assert search.value == pytest.approx(7.0 * drift, rel=1e-9)


@pytest.mark.parametrize("start", [1e-4, 0.1, 1.0, 10.0, 1e4])
def test_a_steep_wall_is_found_from_both_sides(start: float) -> None:
    search = RiseSearch(tolerance=0.05)
    assert trials(search, wall, start=start) < 20
    assert search.lower < 3.0 < search.upper


def test_an_infinite_loss_is_a_rise() -> None:
    search = RiseSearch(tolerance=0.05)
    assert trials(search, lambda length: -1.0 if length < 5.0 else math.inf) < 20
    assert search.lower < 5.0 <= search.upper


def test_a_rise_everywhere_is_an_ascent() -> None:
    search = RiseSearch(tolerance=0.05)
    trials(search, lambda length: length + length**2, most=2)
    assert search.is_ascent
    assert search.propose(1.0) < 0.01, "a much shorter length is tried next"
    assert search.value is None
    assert math.isinf(search.error)


def test_a_descent_that_was_overshot_is_no_ascent() -> None:
    search = RiseSearch(tolerance=0.05)
    trials(search, quadratic(0.001), most=2)
    assert not search.is_ascent


def test_no_value_without_a_length_at_which_the_loss_falls() -> None:
    search = RiseSearch(tolerance=0.05)
    trials(search, lambda length: 0.0 if length < 3.0 else 1.0)
    assert search.is_shallow
    assert not search.has_fallen
    assert not search.is_done


@pytest.mark.parametrize("root", [4.0, 0.2])
def test_ends_that_another_batch_contradicts_are_given_up(root: float) -> None:
    search = RiseSearch(tolerance=0.05)
    trials(search, quadratic(1.0))
    search.forget_slopes()
    end = search.upper if root > 1.0 else search.lower
    for length in (0.99 * end, 1.01 * end):  # the end is tried again, on the new batch
        value = quadratic(root)(length)
        search.observe(Trial(length, "rose" if value > 0 else "fell", value / length))
    assert not search.is_done
    assert trials(search, quadratic(root)) < 12
    assert search.lower < root < search.upper


@given(
    root=st.floats(1e-6, 1e6),
    power=st.sampled_from([1.0, 1.5, 2.0, 5.0]),
    guess=st.one_of(st.none(), st.floats(1e-6, 1e6)),
)
def test_every_convex_rise_is_bracketed(root: float, power: float, guess: float | None) -> None:
    search = RiseSearch(tolerance=0.05, guess=guess)
    made = trials(search, lambda length: length * (length / root) ** power - length, most=60)
    assert search.is_done
    assert made < 60
    assert search.lower <= root <= search.upper
    assert search.value == pytest.approx(root, rel=0.05)
