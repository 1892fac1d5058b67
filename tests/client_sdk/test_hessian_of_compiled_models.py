"""Products with the Hessian of compiled models are right, and nothing is compiled for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.hessian_cases import like, tanh_net

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def products_of_compiled_models() -> Any:
    """Errors of products with compiled models by backend, from a process in which nothing else was compiled."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.client_sdk.compiled_products"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_are_measured_without_a_compilation(products_of_compiled_models: Any, backend: str) -> None:
    found = products_of_compiled_models[backend]
    assert found["difference"] < 0.02
    assert found["exact"] < 1e-4


def test_a_model_that_was_not_compiled_yet_is_not_compiled_by_a_probe() -> None:
    case = tanh_net()
    compilations = []

    def count(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(case.model, backend=count)
    vector = case.direction()
    x = torch.randn(64, 8)
    case.loss_of = lambda m: (compiled if m is case.model else m)(like(x, m)).square().mean()
    assert case.error(case.difference(vector), vector) < 0.02
    assert compilations == []
