"""Products with the Hessian of compiled models, while torch refuses to compile; started by the tests of these.

    python -m tests.client_sdk.compiled_products

Prints a JSON object: for each backend the relative errors of products by finite differences and by double backward. It
fails where a product would make torch compile the model again. A process of its own, because what other tests have
compiled decides what torch calls a recompilation.
"""

from __future__ import annotations

import json

import torch

from tests.support.hessian_cases import like, tanh_net

BACKENDS = ("eager", "aot_eager")


def errors(backend: str) -> dict[str, float]:
    """Return the relative errors of both methods for a model that training has compiled."""
    torch.compiler.reset()
    case = tanh_net()
    compiled = torch.compile(case.model, backend=backend, fullgraph=True)
    vector = case.direction()
    x = torch.randn(64, 8)
    case.loss_of = lambda m: (compiled if m is case.model else m)(like(x, m)).square().mean()
    case.closure().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        case.closure()
        found = {
            "difference": case.error(case.difference(vector), vector),
            "exact": case.error(case.exact(vector), vector),
        }
        case.closure().backward()
    return found


if __name__ == "__main__":
    print(json.dumps({backend: errors(backend) for backend in BACKENDS}))  # noqa: T201
