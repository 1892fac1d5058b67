"""A full-batch regression that Adam makes spike by itself (docs/explanation/science.md).

50-64-64-1 tanh network on 200 points, Adam lr 0.01, β2 0.999. The loss sinks to 1e-14, the second moment goes stale,
λ_max passes 2/η, and around step 720 the loss jumps by eleven orders of magnitude. Nothing is injected.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import client_sdk
from server.demo.cases import TANH_NET, TANH_NET_STEPS
from server.demo.pace import Pace


def main() -> None:
    """Train and log to the server that the environment names."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    inputs = torch.randn(200, 50)
    direction = torch.randn(50, 1) / 50**0.5
    targets = torch.sin(3 * inputs @ direction) + inputs @ direction
    model = nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.999))

    def batch_loss() -> Tensor:
        return F.mse_loss(model(inputs), targets)

    client_sdk.init(
        project="demo", name=TANH_NET, config={"model": "50-64-64-1 tanh", "data": "200 points, full batch"}
    )
    client_sdk.watch(model, optimizer, every=1, budget=1.0)  # its steps are short, and mostly waiting
    pace = Pace(steps_per_second=14)
    for step in range(1, TANH_NET_STEPS + 1):
        optimizer.zero_grad()
        loss = batch_loss()
        loss.backward()
        optimizer.step()
        client_sdk.log({"loss": loss}, step=step, closure=batch_loss)
        pace.wait()
    client_sdk.finish()


if __name__ == "__main__":
    main()
