"""Kinds of channels: one module for each kind, in the order of `registry.KINDS`."""
