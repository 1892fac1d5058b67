"""The scalar that is read as the loss.

It is the chosen one, else the preferred one if it is logged, else the one named loss, else one with a usual name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec

from client_sdk.vocabulary import LOSS, loss_among
from server.models import Sample


class LossName(msgspec.Struct):
    """Name of the loss of a writer. It is kept once it is found; the plain name replaces a guessed one.

    >>> name = LossName()
    >>> name.read(Sample(step=1, time=0.0, scalars={"train/loss": 2.0})).scalars
    {'train/loss': 2.0, 'loss': 2.0}
    >>> name.found
    'train/loss'
    """

    found: str | None = None
    """Name under which the loss arrives; None until it has arrived."""
    chosen: str | None = None
    """Name that was chosen for the run; None leaves it to the names of the scalars."""
    preferred: str | None = None
    """Name that is the loss wherever it is logged, unless another one was chosen."""

    def choose(self, chosen: str | None, preferred: str | None = None) -> None:
        """Read this scalar as the loss from the next sample on; None chooses by name."""
        if (chosen, preferred) != (self.chosen, self.preferred):
            self.chosen, self.preferred, self.found = chosen, preferred, None

    def read(self, sample: Sample) -> Sample:
        """Return the sample with its loss under the name loss."""
        if self.found is None or not sample.is_late:  # a late record does not change what the loss is
            self._find(sample.scalars)
        return renamed(sample, self.found if self.chosen is None else self.chosen)

    def _find(self, scalars: Mapping[str, float]) -> None:
        if self.chosen is not None:
            if self.chosen in scalars:
                self.found = self.chosen
        elif self.preferred is not None and (self.found == self.preferred or self.preferred in scalars):
            self.found = self.preferred
        elif LOSS in scalars:
            self.found = LOSS
        elif self.found is None and scalars:
            self.found = _guessed(tuple(scalars))


def renamed(sample: Sample, name: str | None) -> Sample:
    """Return the sample with the value of the scalar ``name`` as its loss, and without a loss if it lacks that scalar.

    ``name`` None means that the loss was not found: the sample stays as it is.
    """
    scalars = sample.scalars
    if name is None or name == LOSS:
        return sample
    value = scalars.get(name)
    if value is None:
        if LOSS not in scalars:
            return sample
        return msgspec.structs.replace(sample, scalars={key: scalars[key] for key in scalars if key != LOSS})
    return msgspec.structs.replace(sample, scalars={**scalars, LOSS: value})


@lru_cache(maxsize=1024)
def _guessed(names: tuple[str, ...]) -> str | None:
    return loss_among(names)
