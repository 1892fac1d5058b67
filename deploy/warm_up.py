"""Writes the bytecode that the image keeps: of what the program imports, and of nothing else.

Run by the Dockerfile once everything is installed, without bytecode and without what is not needed: that what is left
suffices is seen here, too. The libraries are some thousand modules, of which a server imports a fifth.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

ROOMS = ("client_sdk.protocol", "server", "dashboard")
FIGURES = ("Figure", "Layout", "Scatter", "Scattergl", "Heatmap", "Bar", "Histogram")
ONLY_WHERE_THERE_IS_TORCH = "server.demo"


def modules(name: str) -> Iterator[str]:
    yield name
    package = importlib.import_module(name)
    for found in pkgutil.iter_modules(getattr(package, "__path__", ()), f"{name}."):
        if found.name != ONLY_WHERE_THERE_IS_TORCH:
            yield from modules(found.name)


def main() -> None:
    for room in ROOMS:
        for name in modules(room):
            importlib.import_module(name)
    graph_objects = importlib.import_module("plotly.graph_objects")
    for name in FIGURES:
        getattr(graph_objects, name)()
    apprise = importlib.import_module("apprise")
    apprise.Apprise.instantiate("json://localhost")  # which imports every service


if __name__ == "__main__":
    main()
