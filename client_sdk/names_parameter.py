"""Lists of names in the query of a request, as the server reads them. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def names_parameter(names: Sequence[str]) -> str | list[str]:
    """Return names as a parameter of a request: separated by commas, or one by one where a name contains a comma.

    >>> names_parameter(("loss", "lr")), names_parameter(("loss", "grad,norm"))
    ('loss,lr', ['loss', 'grad,norm'])
    """
    return list(names) if any("," in name for name in names) else ",".join(names)
