"""Checks of the source that no ready-made tool has; `make check` runs them."""
