"""Small trainings with DeepSpeed on every rank of a process group."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client_sdk.errors import ConfigurationError
from client_sdk.watch import watch
from tests.client_sdk.distributed.trainings import Net, Outcome, batch, part_of, recorded

CLIP: Final = 0.25
"""Norm to which gradients are clipped in a training that clips, below that of every step."""


def deepspeed() -> Any:
    """Return the module, for the CPU and without the operators that it would compile."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": os.environ["RANK"]}
    import deepspeed as module

    module.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return module


def adamw_in_groups(parameters: Any) -> torch.optim.Optimizer:
    """Return AdamW with a group of matrices and one of vectors, as most trainings of transformers have."""
    parameters = list(parameters)
    matrices, vectors = ([each for each in parameters if (each.dim() > 1) == is_matrix] for is_matrix in (True, False))
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0, "lr": 0.003}], lr=0.01
    )


def initialize(model: nn.Module, stage: int, **configuration: Any) -> tuple[Any, Any]:
    """Return engine and optimizer of DeepSpeed for ZeRO of ``stage``."""
    zero = {"stage": stage, **configuration.pop("zero", {})}
    engine, optimizer, _, _ = deepspeed().initialize(
        model=model,
        optimizer=adamw_in_groups(model.parameters()),
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            **({"bf16": {"enabled": True}} if next(model.parameters()).dtype == torch.bfloat16 else {}),
            **configuration,
        },
    )
    return engine, optimizer


def train_zero(
    rank: int,
    size: int,
    stage: int,
    *,
    steps: int = 4,
    given: Literal["optimizer", "engine", "module", "inner"] = "optimizer",
    dtype: torch.dtype = torch.float32,
    accumulate: int = 1,
    watchers: Sequence[int] | None = None,
    has_closure: bool = False,
    configuration: dict[str, Any] | None = None,
    **options: Any,
) -> Outcome:
    """Train `Net` with ZeRO of ``stage``, and return what this rank recorded and its part of the weights.

    ``given`` says what `watch` is given: engine and optimizer; the engine in place of the optimizer; the model within
    the engine; or the optimizer that DeepSpeed was given.
    """
    outcome = Outcome()
    with recorded(rank, outcome) as run:
        engine, optimizer = initialize(
            Net().to(dtype), stage, gradient_accumulation_steps=accumulate, **(configuration or {})
        )
        model = engine.module if given == "module" else engine
        watched = {"engine": engine, "inner": optimizer.optimizer}.get(given, optimizer)
        is_watched = watchers is None or rank in watchers
        handle = watch(run, model, watched, precision="exact", **{"every": 1, **options}) if is_watched else None
        for step in range(steps):
            whole = (part_of(each.to(dtype), rank, size) for each in batch(step))
            for x, y in zip(*(each.chunk(accumulate) for each in whole), strict=True):
                loss = nn.functional.mse_loss(engine(x), y)
                engine.backward(loss)
                engine.step()
            if rank == 0:
                run.log({"loss": float(loss.detach())}, step=step, closure=_zero_loss if has_closure else None)
        outcome.weights = {name: _as_numpy(value) for name, value in _full(engine).items()}
        if handle is not None:
            handle.remove()
        engine.destroy()
    return outcome


def gathered(rank: int, size: int, stage: int, *, steps: int = 4) -> tuple[Outcome, list[dict[str, list[float]]]]:
    """Train `Net` in bfloat16, and return also what DeepSpeed itself says of each parameter at each step.

    These are the norms of its float32 weights and of their change.
    """
    outcome, truths = Outcome(), []
    with recorded(rank, outcome) as run:
        engine, optimizer = initialize(Net().bfloat16(), stage)
        watch(run, engine, optimizer, every=1, precision="exact")
        before = _full(engine)
        for step in range(steps):
            x, y = (part_of(each.bfloat16(), rank, size) for each in batch(step))
            loss = nn.functional.mse_loss(engine(x), y)
            engine.backward(loss)
            engine.step()
            after = _full(engine)
            truths.append(
                {name: [float(value.norm()), float((value - before[name]).norm())] for name, value in after.items()}
            )
            before = after
            if rank == 0:
                run.log({"loss": float(loss.detach())}, step=step)
        engine.destroy()
    return outcome, truths


def refused(rank: int, size: int, stage: int) -> str:
    """Change the weights behind DeepSpeed's back, and return what `watch` says."""
    outcome = Outcome()
    with recorded(rank, outcome) as run:
        engine, optimizer = initialize(Net().float(), stage)
        with torch.no_grad():
            for parameter in engine.module.parameters():
                (parameter.ds_tensor if stage == 3 else parameter).add_(1.0)
        try:
            watch(run, engine, optimizer)
        except ConfigurationError as error:
            return str(error)
        finally:
            engine.destroy()
    return ""


def _full(engine: Any) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param

    return {
        name: safe_get_full_fp32_param(parameter).double().clone()
        for name, parameter in engine.module.named_parameters()
    }


def _as_numpy(value: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = value.numpy()
    return found


def _zero_loss() -> Tensor:
    return torch.zeros((), requires_grad=True)
