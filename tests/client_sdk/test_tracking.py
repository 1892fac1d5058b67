"""A search space finds the leading eigenpairs of known matrices, and its error covers the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from client_sdk.curvature.spectrum import Estimate, SearchSpace, by_squaring
from client_sdk.curvature.tracking import GOOD_ERROR, Tracking

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks


def search(matrix: Tensor, products: int) -> tuple[SearchSpace, Estimate]:
    """Spend ``products`` products on extending a space, and one more on a reading."""
    space = SearchSpace()
    space.move(torch.ones(len(matrix), dtype=matrix.dtype))
    vector = space.beginning(torch.zeros(len(matrix), dtype=matrix.dtype))
    for _ in range(products):
        space.extend(vector, matrix @ vector)
        vector = space.residual()
    vector = space.improved()
    return space, space.renew(0, vector, matrix @ vector)


@pytest.mark.parametrize("spectrum", [(3.0, 1.0, -8.0), (-1.0, -2.0, -9.0), (0.0, 0.0, 0.0), (5.0, 5.0, 5.0)])
def test_the_leading_pair_of_known_spectra(spectrum: tuple[float, ...]) -> None:
    space, estimate = search(torch.diag(torch.tensor(spectrum, dtype=torch.float64)), 3)
    (pair,) = space.pairs(1)
    assert float(estimate.value) == pytest.approx(max(spectrum), abs=1e-9)
    assert float(pair.value) == pytest.approx(max(spectrum), abs=1e-9)
    assert estimate.error.isnan() or float(estimate.error) < 1e-6


def test_the_error_covers_the_true_value() -> None:
    covered = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))
        values = torch.linspace(-1.0, 1.0, 60, dtype=torch.float64) ** 3
        values[-2:] = torch.tensor([2.0, 3.0], dtype=torch.float64)  # outliers above a bulk, as Hessians have them
        matrix = basis @ torch.diag(values) @ basis.T
        for products in (6, 8, 12):
            _, estimate = search(matrix, products)
            assert float(estimate.value) <= 3.0 + 1e-9
            covered.append(float(estimate.value * (1 + estimate.error)) >= 3.0 - 1e-9)
    assert sum(covered) >= 0.95 * len(covered)


def test_a_space_that_is_full_goes_on_from_its_leading_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    _, estimate = search(matrix, 60)
    assert float(estimate.value) == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-6)


def test_repeated_squaring_takes_the_place_of_eigh() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        matrix = matrix + matrix.T
        values, vectors = by_squaring(matrix, torch.linalg.vector_norm(matrix))
        expected = torch.linalg.eigvalsh(matrix).flip(0)
        assert torch.allclose(vectors.T @ vectors, torch.eye(6, dtype=torch.float64), atol=1e-9)
        assert values[:2].tolist() == pytest.approx(expected[:2].tolist(), rel=1e-2)
        assert float(values.sum()) == pytest.approx(float(expected.sum()), abs=1e-9)


def test_known_directions_are_taken_in_only_where_they_are_new() -> None:
    matrix = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    tracking = Tracking()
    root = torch.ones(4, dtype=torch.float64)
    start = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    vector = tracking.vector("begin", root, start)
    tracking.take("begin", vector, matrix @ vector)
    best = torch.tensor([7.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    for _ in range(3):
        tracking.take_known(best, matrix @ best, root)
    vector = tracking.vector("read", root, None)
    values = tracking.take("read", vector, matrix @ vector)
    assert float(values["lambda_max"]) == pytest.approx(4.0, rel=1e-3)


def test_scarce_products_read_early_with_an_error_that_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))
    values = torch.linspace(-1.0, 1.0, 60, dtype=torch.float64) ** 3
    values[-2:] = torch.tensor([2.0, 3.0], dtype=torch.float64)  # outliers above a bulk, as Hessians have them
    matrix, root = basis @ torch.diag(values) @ basis.T, torch.ones(60, dtype=torch.float64)
    aims, readings = [], []
    tracking = Tracking()
    for _ in range(12):
        aim = tracking.plan(is_scarce=True)
        vector = tracking.vector(aim, root, basis.sum(1))
        found = {name: float(value) for name, value in tracking.take(aim, vector, matrix @ vector).items()}
        tracking.observe(aim, found)
        aims.append(aim)
        if aim == "read":
            readings.append(found)
    assert aims[:5] == ["begin", "extend", "read", "extend", "read"]
    assert readings[0]["lambda_max_error"] > GOOD_ERROR
    assert all(found["lambda_max"] * (1 + found["lambda_max_error"]) >= 3.0 - 1e-9 for found in readings)
    assert readings[-1]["lambda_max"] == pytest.approx(3.0, rel=GOOD_ERROR)
