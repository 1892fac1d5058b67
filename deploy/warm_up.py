"""Writes the bytecode of the modules that the program imports, and of no others, into the image.

The Dockerfile runs this after it has installed the libraries without bytecode and removed what is not needed, so it
also proves that what is left suffices. Of some thousand modules a server imports a fifth.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

PACKAGES = ("client_sdk.protocol", "server", "dashboard")
FIGURES = ("Figure", "Layout", "Scatter", "Scattergl", "Heatmap", "Bar", "Histogram")
NEEDS_TORCH = "server.demo"


def modules(name: str) -> Iterator[str]:
    """Yield a module and all modules below it that can be imported without torch."""
    yield name
    package = importlib.import_module(name)
    for found in pkgutil.iter_modules(getattr(package, "__path__", ()), f"{name}."):
        if found.name != NEEDS_TORCH:
            yield from modules(found.name)


def main() -> None:
    """Import everything that a server or a dashboard imports while it runs."""
    for package in PACKAGES:
        for name in modules(package):
            importlib.import_module(name)
    graph_objects = importlib.import_module("plotly.graph_objects")
    for name in FIGURES:
        getattr(graph_objects, name)()
    apprise = importlib.import_module("apprise")
    apprise.Apprise.instantiate("json://localhost")  # imports every service


if __name__ == "__main__":
    main()
