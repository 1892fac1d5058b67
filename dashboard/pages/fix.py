"""The code that applies the first remedy for the cause of an alert, to paste into a training loop. Pure."""

from __future__ import annotations

from client_sdk.answers import Alert, RunSummary
from client_sdk.vocabulary import AlertKind, Cause

CLIP = "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # after backward(), before step()"
HALVE = ("for group in optimizer.param_groups:", '    group["lr"] *= 0.5  # doubles the limit 2/η; return to it later')


def fix_code(alert: Alert, run: RunSummary) -> str:
    """Return Python code for the cause of an alert, "" where no code helps.

    The code uses the names ``model``, ``optimizer`` and ``checkpoint`` as in PyTorch's documentation. A prediction is
    preceded by a checkpoint, because nothing is lost by it.
    """
    remedy = _remedy(alert, run)
    if not remedy:
        return ""
    title = " ".join(run.title.split())  # a line break in the name of a run would end the comment and become code
    lines = [f"# Spikewatch, step {alert.step}: {alert.cause.replace('-', ' ')} in {title}"]
    if alert.kind == AlertKind.SPIKE_PREDICTED:
        state = '{"model": model.state_dict(), "optimizer": optimizer.state_dict()}'
        lines.append(f'torch.save({state}, "before-the-spike.pt")')
    return "\n".join([*lines, *remedy]) + "\n"


def _remedy(alert: Alert, run: RunSummary) -> tuple[str, ...]:
    optimizer = run.optimizer
    match alert.cause:
        case Cause.STALE_SECOND_MOMENT:
            beta2 = None if optimizer is None else optimizer.beta2
            shorter = None if beta2 is None else next((b for b in (0.99, 0.95) if beta2 > b + 0.004), None)
            if shorter is None:
                return HALVE
            return (HALVE[0], f'    group["betas"] = (group["betas"][0], {shorter:g})  # v forgets sooner')
        case Cause.VANISHED_GRADIENTS:
            eps = None if optimizer is None else optimizer.eps
            if eps is None or eps <= 1e-15:
                return HALVE
            return (HALVE[0], f'    group["eps"] = {max(1e-15, eps * 1e-4):.0g}  # the gradients have fallen below ε')
        case Cause.BAD_BATCH:
            return (CLIP,)
        case Cause.STATE_LOSS:
            return ('optimizer.load_state_dict(checkpoint["optimizer"])',)
        case Cause.NUMERICAL:
            return ("torch.autograd.set_detect_anomaly(True)  # names the first operation that is not finite",)
        case Cause.LEARNING_RATE | Cause.DIVERGENCE | Cause.UNKNOWN:
            return HALVE
        case _:
            return ()
