"""The page docs/reference/audit.md, made from the catalogue of the checks."""

from __future__ import annotations

from collections.abc import Iterator

from client_sdk.audit_checks import AUDIT_CHECKS, AuditCheck

HEAD = """# The audit

While `watch` measures, the SDK also checks that training does what its author believes. A check is a small rule over
what is known anyway: the settings of the optimizer, versions of tensors, the statistics of a measured step, logged
values. It takes no further kernel but one small copy a step, and changes nothing: trainings end bit for bit as
without it.

A check speaks only where it is certain. What could also be meant that way is left out, because a false finding is
worse than a missed one. Each check reports once in a run. Findings are on the run's page under *What was checked*,
which also says how often each check ran and when last, so that silence can be trusted; in `GET
/api/v1/runs/{id}/audit`; and among the events of the run (`audit`). They are no alerts and notify nobody. **Dismiss**
hides the findings of a check in all runs of the project; *Show again* undoes it (`PUT
/api/v1/projects/{project}/audit`).

`make audit-table` puts each fault into a training and prints how soon it is named, and what is found at healthy
set-ups ([results](../../benchmarks/results/audit.md)).

*Steps* are those of the optimizer within which a fault is named, from the first one that it can be seen at; 0 is at
`watch`. Checks that need the layer statistics see the steps that are measured (`every=1` measures all; `every="auto"`
fewer in calm times).
"""

TAIL = """## What is not checked

- **1 − β2 < C(1 − β1)**, the region in which spikes are possible (Tang et al. 2026): torch's defaults lie in it, so
  it would be said of almost every run.
- **A learning rate above the limit** alone: many healthy runs start there, so the loss must rise as well.
- **Warm-up against 1/(1 − β2)** where the moments are corrected, and **clipping that never acts**: both are common
  and harmless.
- **Weights that change between steps from the start**, such as with a constraint or an average that is swapped in:
  they are meant.
- **Subclasses with a step of their own** and optimizers with other hooks are not held against a formula.
- **Trainings of several processes**: of these, faults 3, 4, 6, 7, 9 and 10 of the table are looked for in trainings
  of one process alone.
- **no_grad left on** in a part of the model shows as parameters without a gradient; around the whole it stops in
  `backward()`.

## A hardware error

`handle = client_sdk.watch(…)`, and then `handle.recompute(closure)`: computes loss and gradients of the closure three
times from the same state of the random numbers, buffers and modes, and returns whether they agree. It takes three
forward and backward passes, waits for the device, and leaves no trace. Where it returns False, the finding is
reported with the next record.
"""


def page() -> str:
    """Return the document."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    for group, title in (("settings", "Settings"), ("faults", "Silent faults")):
        yield f"## {title}\n"
        for check in AUDIT_CHECKS.values():
            if check.group == group:
                yield _section(check)
    yield TAIL.rstrip("\n")


def _section(check: AuditCheck) -> str:
    return (
        f"### {check.fault}\n\n"
        f"`{check.name}` · steps: {check.within} · holds where {check.claim}\n\n"
        f"- How it is found: {check.how}\n"
        f"- What to do: {check.advice}\n"
        f"- Source: {check.source}\n"
    )
