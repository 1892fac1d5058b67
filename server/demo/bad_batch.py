"""A healthy classifier of digits that receives one corrupted batch at a known step.

At `BAD_STEP` the bytes of the images are misread (40 times too bright) and the labels shuffled. Loss and gradient jump
in one step without any build-up: a bad batch, not a spike that could have been predicted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import client_sdk
from server.demo.cases import BAD_BATCH, BAD_BATCH_STEPS, BAD_STEP
from server.demo.pace import Pace

BATCH = 128


def main() -> None:
    """Train and log to the server that the environment names."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16 - 0.3, dtype=torch.float32)
    labels = torch.tensor(digits)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    client_sdk.init(project="demo", name=BAD_BATCH, config={"model": "64-96-96-10 ReLU", "data": "scikit-learn digits"})
    client_sdk.watch(model, optimizer, every=1, budget=1.0)  # its steps are short, and mostly waiting
    pace = Pace(steps_per_second=10)
    for step in range(1, BAD_BATCH_STEPS + 1):
        rows = torch.randint(len(images), (BATCH,))
        x, y = images[rows], labels[rows]
        if step == BAD_STEP:
            x, y = x * 40, y[torch.randperm(BATCH)]

        def batch_loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            return F.cross_entropy(model(x), y)

        optimizer.zero_grad()
        loss = batch_loss()
        loss.backward()
        optimizer.step()
        client_sdk.log({"loss": loss}, step=step, closure=batch_loss)
        pace.wait()
    client_sdk.finish()


if __name__ == "__main__":
    main()
