"""The checks of the audit: what each one claims, how it is found, its source and what to do about it.

The SDK runs the checks (`client_sdk.audit`), the server stores what they found, and the dashboard and the reports show
it; all of them read the words from here. Imports nothing of the project, so that every room may import this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, kw_only=True)
class AuditCheck:
    """One check: a claim about a training that either holds or is refuted by evidence."""

    name: str
    """Stable name, for example "update-formula"."""
    group: Literal["settings", "faults"]
    """Whether the check is about settings, or about what training does."""
    claim: str
    """Claim that holds in a training that passes."""
    fault: str
    """Headline of a finding."""
    how: str
    """Method by which the fault is found."""
    source: str
    """Publication, documentation or formula that the check rests on."""
    advice: str
    """Action that is recommended."""
    within: int
    """Steps of the optimizer within which the fault is named, from the first one that it can be seen at."""


_FAULTS: Final = (
    AuditCheck(
        name="update-formula", group="faults", within=1,
        claim="the weights move by the optimizer's own formula",
        fault="The weights do not move by the formula of the optimizer",
        how="Sampled weights before and after a step are compared with the update that gradient, moments and settings "
        "give. Only optimizers that are known, have no step of their own and no other hooks are judged.",
        source="Kingma & Ba 2015 and the reference implementations of torch.optim",
        advice="Look for code that replaces the step or changes weights within it, and test the memory and the kernels "
        "of this machine.",
    ),
    AuditCheck(
        name="clipping-without-effect", group="faults", within=1,
        claim="gradients are clipped to the norm that the configuration names",
        fault="The gradients were not clipped",
        how="The configuration of the run names a largest gradient norm (max_grad_norm, grad_clip, …), and the "
        "measured "
        "norm of the gradients that the optimizer was given is larger; or the norm that the training logs before "
        "clipping is that of gradients which are still multiplied by the loss scale.",
        source="torch.nn.utils.clip_grad_norm_; torch.amp, “Working with unscaled gradients”",
        advice="Call clip_grad_norm_ after backward() and before step(), with the parameters that the optimizer has; "
        "with a GradScaler call scaler.unscale_(optimizer) before it.",
    ),
    AuditCheck(
        name="gradients-not-zeroed", group="faults", within=3,
        claim="each step begins with fresh gradients",
        fault="Gradients add up over the steps",
        how="When the first gradients of a step arrive, those of the step before are still there, and none of the "
        "gradients that arrive until the next step finds them zeroed; three steps in a row.",
        source="torch.optim.Optimizer.zero_grad",
        advice="Call optimizer.zero_grad() once for each step, before backward().",
    ),
    AuditCheck(
        name="micro-batches-summed", group="faults", within=1,
        claim="gradients of micro-batches are averaged",
        fault="The gradients of the micro-batches were summed instead of averaged",
        how="The gradient of the closure, whose value is the logged loss, points the same way as the gradient that the "
        "optimizer was given, which is larger by the number of micro-batches that arrived.",
        source="L = 1/k Σ L_i, so that ∇L is the mean of the gradients of k micro-batches",
        advice="Divide the loss of each micro-batch by their number before backward().",
    ),
    AuditCheck(
        name="learning-rate-unused", group="faults", within=1,
        claim="the optimizer uses the learning rate that the schedule sets",
        fault="The optimizer does not use the scheduled learning rate",
        how="The learning rate that the training logs changes while that of every parameter group stays as it is and "
        "differs from it; or the weights move by the optimizer's formula, but with another learning rate.",
        source="torch.optim.lr_scheduler: a scheduler changes the groups of the optimizer that it was created with",
        advice="Create the scheduler with the optimizer whose step() is called, after the optimizer was created for "
        "the "
        "last time; keep the learning rate in a tensor where the step is compiled or captured.",
    ),
    AuditCheck(
        name="dead-parameters", group="faults", within=1,
        claim="the optimizer has the parameters of the model",
        fault="The optimizer moves tensors that are no longer part of the model",
        how="Parameters of the optimizer without a gradient are not in the model, and the model has trainable "
        "parameters "
        "of the same shapes with a gradient that the optimizer does not have.",
        source="torch.optim: construct the optimizer after the model was moved, wrapped or changed",
        advice="Create the optimizer from model.parameters() after the last change of the model.",
    ),
    AuditCheck(
        name="unowned-parameters", group="faults", within=20,
        claim="an optimizer moves every parameter that gets a gradient",
        fault="Parameters get a gradient but no optimizer moves them",
        how="A trainable parameter of the model that no watched optimizer has gets gradients for twenty steps, and its "
        "values stay the same all the while.",
        source="torch.optim.Optimizer.add_param_group",
        advice="Give the parameters to an optimizer. If they are meant to be frozen, requires_grad_(False) saves the "
        "time "
        "and the memory of their gradients.",
    ),
    AuditCheck(
        name="unused-parameters", group="faults", within=20,
        claim="every parameter of the optimizer gets a gradient",
        fault="Parameters of the optimizer never get a gradient",
        how="A trainable parameter of the optimizer has had no gradient at any of the first twenty steps, at which "
        "others "
        "had one.",
        source="torch.autograd: a parameter outside of the graph of the loss has no gradient",
        advice="Check that forward() uses the module, and that nothing detaches its output or runs it under no_grad.",
    ),
    AuditCheck(
        name="moments-lost", group="faults", within=1,
        claim="the optimizer's state goes on where training goes on",
        fault="The moments of the optimizer began anew",
        how="The step counter of the optimizer's state falls back to its first step while the steps of the run go "
        "on; or "
        "a run continues at a late step with an optimizer whose state is empty.",
        source="Kingma & Ba 2015: m̂ and v̂ are averages over the gradients so far; with t = 1 the update is "
        "lr·sign(g)",
        advice="Save and load optimizer.state_dict() with the model, after the optimizer got its parameter groups.",
    ),
    AuditCheck(
        name="weights-changed", group="faults", within=1,
        claim="only the optimizer changes the weights",
        fault="Something else than the optimizer changed the weights",
        how="Between two steps the version counters of parameters and their sampled values changed, after at least "
        "eight "
        "steps between which they did not.",
        source="torch.Tensor._version, which every change in place advances",
        advice="If a checkpoint was loaded, load the optimizer's state too. Otherwise look for code that writes into "
        "parameters.",
    ),
    AuditCheck(
        name="tied-weights", group="faults", within=1,
        claim="tied weights stay one tensor",
        fault="Tied weights came apart",
        how="Two names of the model that were one parameter when it was watched are two by now; or the configuration "
        "of a "
        "Transformers model ties its embeddings and they are two parameters.",
        source="Press & Wolf 2017 (arXiv 1608.05859); transformers, tie_word_embeddings",
        advice="Tie the weights again (model.tie_weights() in Transformers) and create the optimizer afterwards.",
    ),
    AuditCheck(
        name="ranks-differ", group="faults", within=10,
        claim="copies of the weights and gradients are equal on all ranks",
        fault="The ranks train different models",
        how="Checksums of the weights and norms of the gradients are compared over the ranks that hold copies.",
        source="torch.nn.parallel.DistributedDataParallel, “Internal design”",
        advice="Start every rank from the same weights, reduce the gradients on all of them, and test the memory of "
        "the "
        "rank that differs.",
    ),
    AuditCheck(
        name="gradient-norm-off", group="faults", within=1,
        claim="the logged gradient norm is that of the gradients",
        fault="The logged gradient norm is wrong by a constant factor",
        how="The norm that the training logs is the measured one times the square root of the number of ranks, that "
        "number, or the number of micro-batches: at the first record to a relative 1e-5, later at three records.",
        source="‖g‖² over shards is the sum of the squares of their norms, over all ranks",
        advice="Sum the squares of the shards' norms over the ranks before the root, and take the norm after the "
        "gradients were averaged.",
    ),
    AuditCheck(
        name="frozen-by-rounding", group="faults", within=50,
        claim="rounding of the weights leaves the updates",
        fault="Rounding swallows every update of a layer",
        how="At all measured steps of at least fifty steps, every update of a layer with 16-bit weights was smaller "
        "than "
        "half the distance to the next number, and the learning rate is not rising.",
        source="bfloat16 has 8 significant bits: an update below w/512 is lost",
        advice="Keep a float32 copy of the weights, round stochastically, or use an optimizer with Kahan summation.",
    ),
    AuditCheck(
        name="dead-layer", group="faults", within=50,
        claim="every matrix of weights gets a gradient other than zero",
        fault="The gradient of a layer is exactly zero",
        how="The gradient of a layer is exactly zero at all measured steps of at least fifty steps, while other layers "
        "have gradients. Layers that are vectors alone do not count: a bias has no gradient where only differences "
        "count.",
        source="Lu et al. 2019 (arXiv 1903.06733), “Dying ReLU and initialization”",
        advice="Check the activations in front of the layer (dead ReLUs, a gate that is closed, an output that is "
        "multiplied by zero) and its learning rate.",
    ),
    AuditCheck(
        name="loss-constant", group="faults", within=50,
        claim="the loss depends on the weights and the batch",
        fault="The loss is the same number at every step",
        how="Fifty records in a row have exactly the same loss, which is not a rounded number, while the weights moved "
        "and the gradients were not zero.",
        source="L(θ, batch) of float32 arithmetic repeats exactly only where neither enters it",
        advice="Log the loss that backward() was called on, and check that it is computed from the present batch.",
    ),
    AuditCheck(
        name="batch-repeated", group="faults", within=50,
        claim="batches differ from step to step",
        fault="Every step gets the same batch",
        how="The tensors that the closure of log() holds were created anew for each of fifty steps and have the same "
        "values each time, while the training holds a DataLoader with more than one batch.",
        source="iter(loader) begins the data set again at each call",
        advice="Create the iterator once, outside of the loop, and shuffle. To overfit one batch on purpose, dismiss "
        "this.",
    ),
    AuditCheck(
        name="evaluation-mode", group="faults", within=1,
        claim="the model is in training mode when it trains",
        fault="The model trains in evaluation mode",
        how="The model has dropout, and when gradients arrive and at the step, the model and all of its dropout and "
        "batch-normalisation layers are in evaluation mode.",
        source="torch.nn.Module.train, eval",
        advice="Call model.train() before training and after each evaluation. Models of from_pretrained() begin in "
        "evaluation mode.",
    ),
    AuditCheck(
        name="loss-scale", group="faults", within=1,
        claim="the loss scale stays usable",
        fault="The loss scale is collapsing",
        how="The GradScaler that steps the optimizer halved its scale twelve times in a row, or below one.",
        source="Micikevicius et al. 2018 (arXiv 1710.03740); torch.amp.GradScaler",
        advice="Gradients overflow at every scale: look for infinities in the forward pass, or use bfloat16.",
    ),
    AuditCheck(
        name="hardware-error", group="faults", within=1,
        claim="the same batch gives the same result",
        fault="Computing the same batch again gives another result",
        how="On request (handle.recompute): loss and gradients of a closure are computed twice from the same state of "
        "the random numbers, and differ by more than the order of sums can explain.",
        source="Dixit et al. 2021 (arXiv 2102.11245), “Silent data corruptions at scale”",
        advice="Test this machine and take it out of the training if the difference comes back.",
    ),
)  # fmt: skip

_SETTINGS: Final = (
    AuditCheck(
        name="betas-coupled", group="settings", within=0,
        claim="β1² < β2, with a gap",
        fault="β1 is too large for β2",
        how="β1² ≥ β2, where the update can grow without a bound, or β1 above 0.99·√β2.",
        source="“Remark #2: The Adam update”, 2026: an achievable bound of the update by Cauchy–Schwarz",
        advice="Lower β1 or raise β2, such as 0.9 and 0.95.",
    ),
    AuditCheck(
        name="second-moment-too-long", group="settings", within=0,
        claim="the second moment reaches its steady state within the run",
        fault="The second moment averages over more steps than the run has",
        how="1/(1 − β2) is larger than the number of steps that the configuration names, which is at least 1,000.",
        source="v is an average over about 1/(1 − β2) steps (“Remark #2: The Adam update”, 2026)",
        advice="Lower β2.",
    ),
    AuditCheck(
        name="weight-decay-rate", group="settings", within=0,
        claim="weight decay takes a small part of the weights at a step",
        fault="Weight decay takes a tenth of the weights at each step",
        how="Learning rate × decoupled weight decay is at least 0.1.",
        source="Loshchilov & Hutter 2019 (arXiv 1711.05101): w ← (1 − η·λ)·w at each step",
        advice="Lower the weight decay or the learning rate.",
    ),
    AuditCheck(
        name="eps-lost", group="settings", within=1,
        claim="ε can be represented beside the second moment",
        fault="ε is zero in the precision of the optimizer's state",
        how="The second moment is kept in float16, in which ε rounds to zero, so that coordinates without a gradient "
        "are divided by zero.",
        source="the smallest number of float16 is 6·10⁻⁸",
        advice="Keep the state in float32 or bfloat16, or use ε ≥ 1e-6.",
    ),
    AuditCheck(
        name="eps-swallows", group="settings", within=60,
        claim="the second moment sets the size of the updates",
        fault="ε is larger than the gradients",
        how="From step 10 to step 60, √v̂ of at least 99 % of all coordinates is below ε at every measured step, so "
        "that "
        "the optimizer is a slow kind of SGD with momentum.",
        source="Everett et al. 2024 (arXiv 2407.05872); Molybog et al. 2023 (arXiv 2304.09871)",
        advice="Lower ε, such as to 1e-15, or scale the loss.",
    ),
    AuditCheck(
        name="no-bias-correction", group="settings", within=10,
        claim="the first updates are corrected, or warmed up",
        fault="The first updates are too large",
        how="bias_correction is off, and the learning rate of the first ten steps did not rise.",
        source="Kingma & Ba 2015: without correction the first update is lr·(1 − β1)/√(1 − β2), 3.2 times lr by "
        "default",
        advice="Switch the bias correction on, or warm the learning rate up over 1/(1 − β2) steps.",
    ),
    AuditCheck(
        name="clipping-constant", group="settings", within=1000,
        claim="clipping acts on some steps and not on others",
        fault="Clipping acts on every step",
        how="At a thousand measured steps in a row the gradients were smaller after clipping than the logged norm "
        "before "
        "it, so that the learning rate is set by the norm to which they are clipped.",
        source="Pascanu et al. 2013 (arXiv 1211.5063): a threshold above the usual norm",
        advice="If that is not wanted, raise the largest norm to above the usual one.",
    ),
    AuditCheck(
        name="learning-rate-above-limit", group="settings", within=50,
        claim="the learning rate is below the limit at the start",
        fault="The learning rate is above the limit from the start",
        how="The first λ_max of the run is above 2/η, and the loss rose to three times its first value within fifty "
        "steps.",
        source="Cohen et al. 2022 (arXiv 2207.14484): unstable where λ_max of the preconditioned Hessian is above 2/η",
        advice="Lower the learning rate or warm it up.",
    ),
)  # fmt: skip

AUDIT_CHECKS: Final[Mapping[str, AuditCheck]] = {check.name: check for check in (*_SETTINGS, *_FAULTS)}
"""Every check by name, those of settings first."""
