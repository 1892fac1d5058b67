"""Names of the scalars of one run, as an import gives them, while it is not known yet which ones will come. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from client_sdk.vocabulary import guess_names


class ScalarNames:
    """Replaces names of a log by those that the detectors use.

    The first names that mean a known scalar keep doing so. If the log later has a scalar of the known name itself, the
    guess ends.

    >>> names = ScalarNames({})
    >>> names.note(["train/loss", "learning_rate"])
    >>> names.of({"train/loss": 2.0, "learning_rate": 0.1})
    {'loss': 2.0, 'lr': 0.1}
    >>> names.note(["loss"])
    >>> names.of({"train/loss": 2.0, "loss": 3.0})
    {'train/loss': 2.0, 'loss': 3.0}
    """

    def __init__(self, chosen: Mapping[str, str], guessed: Mapping[str, str] | None = None) -> None:
        """``chosen`` are the new names that the user gave, and ``guessed`` those of an earlier process."""
        self.guessed = dict(guessed or {})
        """Known names, keyed by the names in the log."""
        self._chosen = dict(chosen)
        self._seen: set[str] = set()

    def note(self, names: Collection[str]) -> None:
        """Take notice of names that the log has."""
        if self._seen.issuperset(names):
            return
        self._seen.update(names)
        own = self._seen - set(self._chosen)
        self.guessed = {name: known for name, known in self.guessed.items() if known not in own}
        taken = set(self._chosen.values()) | set(self.guessed.values())
        for name, known in guess_names(own | taken).items():
            if name not in taken:
                self.guessed[name] = known

    def of(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """Return the scalars under their new names."""
        return {self._chosen.get(name) or self.guessed.get(name) or name: value for name, value in scalars.items()}
