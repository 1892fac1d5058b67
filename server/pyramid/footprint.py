"""Memory overhead of cached values, in addition to their numbers. Measured on CPython with NumPy."""

from __future__ import annotations

ENTRY_BYTES = 512
"""Overhead of a cache entry in bytes: its key, its slot in the table and the objects that group its arrays."""
ARRAY_BYTES = 208
"""Overhead of an array in bytes: the object, the object of the array that it is a view of, and the allocator's
rounding."""
