"""Lists in the query of a request. Pure.

A parameter that is repeated adds up: ``keys=loss&keys=lr`` asks for both. A list of names may also be separated by
commas; a value that is a known name as a whole is that name, so that names with commas can be asked for as well.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Annotated

from pydantic import Field

MAX_CHARS = 32_768
MAX_FILTERS = 100
"""Maximum number of values of a parameter that selects."""
Value = Annotated[str, Field(max_length=MAX_CHARS)]
REPEATED = "Repeat the parameter for several."
NAMES = "Names separated by commas, or one in each of several parameters, as a name that contains a comma needs."


def listed(values: Sequence[str], known: Container[str] = ()) -> list[str]:
    """Return the names in the values of a parameter, each once, in their order.

    >>> listed(["loss,lr", "loss", ""])
    ['loss', 'lr']
    >>> listed(["loss", "grad,norm"], known={"loss", "grad,norm"})
    ['loss', 'grad,norm']
    """
    names: dict[str, None] = {}
    for value in values:
        names.update(dict.fromkeys([value] if value in known else value.split(",")))
    names.pop("", None)
    return list(names)
