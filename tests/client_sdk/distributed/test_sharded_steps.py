"""Critical sharpness and gradients of a sharded model are those of one process, and its shards keep their bits."""

from __future__ import annotations

import numpy as np

from tests.client_sdk.distributed.sharded_steps import sharded, whole
from tests.support.rank_pool import RankPool


def test_a_sharded_model_is_measured_as_one(pair: RankPool) -> None:
    expected_readings, expected_squares, _ = whole()
    for readings, squares, are_same in pair.run(sharded):
        np.testing.assert_allclose(readings, expected_readings, rtol=1e-6)
        np.testing.assert_allclose(squares, expected_squares, rtol=1e-9)
        assert are_same
