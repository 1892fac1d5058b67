"""The scalar that is read as the loss: the chosen one, else the one named loss, else one with a usual name."""

from __future__ import annotations

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
    """Name that the user chose; None leaves it to the names of the scalars."""

    def choose(self, chosen: str | None) -> None:
        """Read this scalar as the loss from the next sample on; None chooses by name."""
        if chosen != self.chosen:
            self.chosen, self.found = chosen, None

    def read(self, sample: Sample) -> Sample:
        """Return the sample with its loss under the name loss."""
        scalars = sample.scalars
        if self.chosen is None:
            if LOSS in scalars:
                self.found = LOSS
                return sample
            if self.found is None and scalars:
                self.found = _guessed(tuple(scalars))
        elif self.chosen in scalars:
            self.found = self.chosen
        return renamed(sample, self.found if self.chosen is None else self.chosen)


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
