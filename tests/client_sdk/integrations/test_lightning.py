"""The Trainer of Lightning, on tiny modules, with what a real server has stored of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from client_sdk.integrations.lightning import SpikewatchCallback, SpikewatchLogger
from client_sdk.read import Run

Read = Callable[[], Run]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning's own calls of torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Regression(pl.LightningModule):  # type: ignore[misc]  # the library is not type-checked
    """A module that keeps each loss that it computes in training, as the truth for the tests."""

    def __init__(self, lr: float = 0.01, fails_at: int = -1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.fails_at = fails_at
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.error = torchmetrics.MeanSquaredError()
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        if index == self.fails_at:
            raise RuntimeError("the data ended early")
        predicted = self.net(batch[0])
        loss: Tensor = ((predicted - batch[1]) ** 2).mean()
        self.losses.append(loss.item())
        self.error(predicted, batch[1])
        self.log("train_error", self.error, on_step=False, on_epoch=True)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", ((self.net(batch[0]) - batch[1]) ** 2).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


class Adversaries(pl.LightningModule):  # type: ignore[misc]  # the library is not type-checked
    """Two networks with an optimizer each, trained by manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(2, 4), nn.Linear(4, 1)
        self.losses: list[tuple[float, float]] = []

    def training_step(self, batch: Any, index: int) -> None:
        first, second = self.optimizers()
        made = self.generator(torch.randn(4, 2))
        critic_loss = self.critic(made.detach()).mean() - self.critic(batch[0]).mean()
        second.zero_grad()
        self.manual_backward(critic_loss)
        second.step()
        generator_loss = -self.critic(made).mean()
        first.zero_grad()
        self.manual_backward(generator_loss)
        first.step()
        self.log_dict({"g_loss": generator_loss, "c_loss": critic_loss})
        self.losses.append((generator_loss.item(), critic_loss.item()))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.generator.parameters(), lr=0.01), torch.optim.SGD(self.critic.parameters(), lr=0.1)


def loader() -> Any:
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=4)


def fit(module: Any = Regression, callbacks: Any = (), logger: Any = False, **given: Any) -> tuple[Any, Any]:
    """Train for two epochs of ten batches, with metrics logged every fifth step; return the trainer and the module."""
    torch.manual_seed(0)
    made = module()
    path = given.pop("ckpt_path", None)
    options = {
        "max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 5, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, **given,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=list(callbacks), logger=logger, **options)
    trainer.fit(made, loader(), loader() if isinstance(made, Regression) else None, ckpt_path=path)
    return trainer, made


def same_weights(one: Any, other: Any) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


def test_callback_stores_every_loss_and_logger_what_the_module_logs(stored: Read, project: str) -> None:
    _, bare = fit()
    _, watched = fit(callbacks=[SpikewatchCallback()], logger=SpikewatchLogger(project=project))
    assert same_weights(bare, watched)
    run = stored()
    loss = run.series("loss")
    assert loss.step.tolist() == list(range(20))
    np.testing.assert_array_equal(loss.value, watched.losses)
    assert run.series("train_loss").step.tolist() == [4, 9, 14, 19]
    np.testing.assert_array_equal(run.series("train_loss").value, np.array(watched.losses)[[4, 9, 14, 19]])
    assert run.series("val_loss").step.tolist() == [9, 19]
    assert run.series("train_error").step.tolist() == [9, 19]
    norms = run.layers("weight_norm")
    assert norms.step[0] == 0
    assert norms.layers == ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")
    assert run.summary.config == {"lr": 0.01, "fails_at": -1}
    assert run.summary.state == "finished"


def test_callback_alone_averages_accumulated_batches(stored: Read, project: str) -> None:
    callback = SpikewatchCallback(project=project)
    _, watched = fit(callbacks=[callback], accumulate_grad_batches=4, val_check_interval=5)
    run = stored()
    loss = run.series("loss")
    assert loss.step.tolist() == [0, 1, 2, 3, 4, 5]
    ends = [4, 8, 10, 14, 18, 20]  # the last step of an epoch has two batches
    means = [np.mean(watched.losses[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    np.testing.assert_allclose(loss.value, means, rtol=1e-6)
    assert run.series("val_loss").step.tolist() == [0, 2, 3, 5]


def test_two_optimizers_of_a_manual_optimization_are_watched(stored: Read, project: str) -> None:
    _, bare = fit(Adversaries)
    _, watched = fit(Adversaries, callbacks=[SpikewatchCallback(project=project, watch={"every": 1})])
    assert same_weights(bare, watched)
    run = stored()
    for name, column in (("g_loss", 0), ("c_loss", 1)):
        series = run.series(name)
        assert series.step.tolist() == list(range(20))
        np.testing.assert_array_equal(series.value, np.array(watched.losses)[:, column])
    norms = run.layers("grad_norm")
    assert norms.layers == ("generator.weight", "generator.bias", "critic.weight", "critic.bias")
    assert norms.step.tolist() == list(range(20))
    assert np.isfinite(norms.values).all()


def test_a_training_that_is_resumed_continues_its_run(stored: Read, project: str) -> None:
    def logger() -> SpikewatchLogger:
        return SpikewatchLogger(project=project)

    saving = pl.callbacks.ModelCheckpoint(save_top_k=-1, every_n_train_steps=5)
    fit(callbacks=[SpikewatchCallback(), saving], logger=logger(), max_epochs=1, enable_checkpointing=True)
    again = pl.callbacks.ModelCheckpoint(save_top_k=-1, every_n_train_steps=5)
    fit(
        callbacks=[SpikewatchCallback(), again],
        logger=logger(),
        ckpt_path=saving.best_model_path,
        enable_checkpointing=True,
    )
    run = stored()
    assert run.series("loss").step.tolist() == list(range(20))
    assert run.series("train_loss").step.tolist() == [4, 9, 14, 19]
    assert run.series("val_loss").step.tolist()[-1] == 19


@pytest.mark.parametrize("with_logger", [True, False])
def test_an_exception_makes_the_run_crashed(with_logger: bool, stored: Read, project: str) -> None:
    logger = SpikewatchLogger(project=project) if with_logger else False
    with pytest.raises(RuntimeError, match="the data ended early"):
        fit(lambda: Regression(fails_at=3), callbacks=[SpikewatchCallback(project=project)], logger=logger)
    run = stored()
    assert run.summary.state == "crashed"
    assert run.series("loss").step.tolist() == [0, 1, 2]


def test_logger_alone_records_and_adds_a_later_validation(stored: Read, project: str) -> None:
    logger = SpikewatchLogger(project=project, name="by name")
    trainer, module = fit(logger=logger)
    trainer.validate(module, loader(), verbose=False)
    run = stored()
    assert (run.name, run.id) == ("by name", logger.version)
    assert run.series("train_loss").step.tolist() == [4, 9, 14, 19]
    assert run.series("val_loss").step.tolist() == [9, 19, 20]
    assert run.summary.state == "finished"


def test_curvature_leaves_no_trace_in_weights_and_metrics(stored: Read, project: str) -> None:
    one, bare = fit()
    callback = SpikewatchCallback(project=project, curvature=True, watch={"curvature_every": 1, "budget": math.inf})
    two, watched = fit(callbacks=[callback])
    assert same_weights(bare, watched)
    assert one.callback_metrics == two.callback_metrics
    run = stored()
    assert len(run.series("lambda_max").step) >= 10
    assert len(run.series("lambda_step").step) >= 10
