"""Parts of `make reproduce` that take seconds, and the figures that it draws."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.reproduce import known_limits
from benchmarks.reproduce.figure import Mark, Panel, svg
from benchmarks.reproduce.finding import Check, Finding
from benchmarks.reproduce.frozen_quadratic import RATIOS, expected_rate, search
from benchmarks.reproduce.trainings import CurvatureReader, dense_lambda_max, digits_net, double_lambda_max


def test_adam_diverges_at_the_limit_and_grows_as_the_polynomial_says() -> None:
    limit = search(0.9, seed=7)
    assert limit.found == pytest.approx(limit.stated, rel=0.01)
    assert limit.ratio == pytest.approx(1.0, rel=0.01)
    for ratio, rate in zip(RATIOS, limit.rates, strict=True):
        assert rate == pytest.approx(expected_rate(ratio, 0.9), rel=0.01)


def test_an_optimizer_diverges_from_a_ratio_of_one_on() -> None:
    assert known_limits.search("nadam") == pytest.approx(1.0, rel=0.01)


def test_three_ways_to_the_largest_eigenvalue_agree() -> None:
    training = digits_net(0, lr=1e-2, images=60)
    for _ in range(20):
        training.step()
    lambda_max, lambda_grad = CurvatureReader(training=training).read()
    dense = dense_lambda_max(training)
    assert double_lambda_max(training) == pytest.approx(dense, rel=1e-6)
    assert lambda_max == pytest.approx(dense, rel=1e-3)
    assert lambda_grad <= lambda_max


def test_a_figure_is_xml_with_every_mark() -> None:
    x = np.arange(5_000)
    panels = [
        Panel(title="a < b", x_label="step", logarithmic=True, marks=[
            Mark(x=x, y=np.exp(-x / 500.0), name="loss & more"),
        ]),
        Panel(title="bars", x_label="β", categories=["0.9", "0.99"], limits=[1.0], marks=[
            Mark(x=[0, 1], y=[3, 0], kind="bars"), Mark(x=[0, 1], y=[2, np.nan], kind="dots"),
        ]),
    ]  # fmt: skip
    root = ElementTree.fromstring(svg([panels], "a title"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "loss & more", "bars", "0.99"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 1, "the point that is not a number is left out"


def test_one_failed_check_fails_a_finding_and_is_seen_in_it() -> None:
    def finding(*passed: bool) -> Finding:
        checks = [Check(claim="holds", found="0.5", passed=one) for one in passed]
        return Finding(
            name="x", title="X", paper="p", method="m", header=("a",), rows=[["1"]], checks=checks, figure="",
            caption="c",
        )  # fmt: skip

    assert finding(True, True).passed
    assert not finding(True, False).passed
    assert "| holds | 0.5 | **fail** |" in finding(True, False).markdown()
