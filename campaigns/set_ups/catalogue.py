"""All set-ups, in the order of the table."""

from __future__ import annotations

from campaigns.set_ups import (
    curvature_set_ups,
    distributed_set_ups,
    framework_set_ups,
    loop_set_ups,
    optimizer_set_ups,
    precision_set_ups,
)
from campaigns.set_ups.set_up import Catalogue


def catalogue() -> Catalogue:
    """Return every set-up."""
    found = Catalogue()
    for section in (
        optimizer_set_ups,
        precision_set_ups,
        loop_set_ups,
        distributed_set_ups,
        curvature_set_ups,
        framework_set_ups,
    ):
        section.add(found)
    return found
