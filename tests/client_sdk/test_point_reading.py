"""Readings at one point find the leading eigenpairs of a symmetric matrix with few products, and say how well."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from client_sdk.curvature.point_reading import Vectors, read_at_point

SIZE = 400


class Matrix:
    """A symmetric matrix with given leading eigenvalues above a bulk, which counts its products."""

    def __init__(self, seed: int, leading: list[float], bulk: float = 10.0) -> None:
        rng = np.random.default_rng(seed)
        values = np.concatenate([leading, rng.uniform(-bulk, bulk, SIZE - len(leading))])
        turn, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
        self.full: NDArray[np.float64] = (turn * values) @ turn.T
        self.leading: NDArray[np.float64] = turn[:, 0]
        self.count = 0

    def product(self, vector: Vectors) -> Vectors:
        self.count += 1
        return (self.full @ vector).astype(np.float32)


def start(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_an_unknown_matrix_is_read_within_its_error(seed: int) -> None:
    matrix = Matrix(seed, [200.0, 120.0])
    reading = read_at_point(matrix.product, [], [start(seed)], good=0.01, most=20)
    assert reading is not None
    assert reading.error <= 0.01
    assert 200.0 * (1.0 - reading.error) <= reading.values[0] <= 200.0 * (1 + 1e-5)
    assert abs(reading.vectors[0] @ matrix.leading) > 0.95
    assert matrix.count <= 12


def test_a_good_vector_takes_one_product_where_the_second_eigenvalue_is_known() -> None:
    matrix = Matrix(1, [200.0, 120.0])
    near = (matrix.leading + 0.03 * start(2) / np.sqrt(SIZE)).astype(np.float32)
    reading = read_at_point(matrix.product, [], [near], good=0.01, most=4, second_share=0.6)
    assert reading is not None
    assert matrix.count == 1
    assert reading.values[0] == pytest.approx(200.0, rel=0.01)
    assert reading.error <= 0.01


def test_a_reading_that_takes_too_long_ends_with_the_error_that_it_has() -> None:
    matrix = Matrix(0, [200.0, 120.0])
    reading = read_at_point(matrix.product, [], [start(0)], good=0.01, most=20, may_go_on=lambda: matrix.count < 3)
    assert matrix.count == 3
    assert reading is not None
    assert reading.error > 0.01


def test_a_vector_whose_image_is_known_costs_no_product() -> None:
    matrix = Matrix(2, [200.0])
    known = (3.0 * matrix.leading).astype(np.float32)
    image = matrix.product(known)
    matrix.count = 0
    reading = read_at_point(matrix.product, [(known, image)], [start(3)], good=0.01, most=1)
    assert reading is not None
    assert matrix.count == 1
    assert reading.values[0] == pytest.approx(200.0, rel=1e-3)


def test_products_end_at_the_most_that_are_allowed() -> None:
    matrix = Matrix(3, [11.0, 10.9, 10.8])
    reading = read_at_point(matrix.product, [], [start(4)], good=1e-6, most=4)
    assert reading is not None
    assert matrix.count == 4
    assert reading.error > 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_images_and_vectors_belong_together(seed: int) -> None:
    matrix = Matrix(seed, [200.0, 150.0])
    reading = read_at_point(matrix.product, [], [start(seed), start(seed + 10)], good=0.01, most=8)
    assert reading is not None
    assert reading.images == pytest.approx(reading.vectors @ matrix.full, abs=0.05)
    assert reading.vectors @ reading.vectors.T == pytest.approx(np.eye(len(reading.values)), abs=1e-4)


def test_nothing_follows_from_zeros_or_images_that_are_not_finite() -> None:
    zero = np.zeros(SIZE, np.float32)
    assert read_at_point(lambda x: x, [(zero, zero)], [zero], good=0.01, most=4) is None
    assert read_at_point(lambda x: x * np.float32(np.nan), [], [start(0)], good=0.01, most=4) is None


def test_a_start_that_is_known_already_is_left_out() -> None:
    matrix = Matrix(4, [200.0])
    known = start(5)
    reading = read_at_point(matrix.product, [(known, matrix.product(known))], [2.0 * known], good=0.01, most=1)
    assert reading is None or len(reading.values) <= 2
