"""How much memory a cached value takes beside its numbers, in bytes. Measured on CPython with NumPy."""

from __future__ import annotations

ENTRY_BYTES = 512
"""Memory of a cache entry beside its arrays: its key, its place in the table and the objects that group the arrays."""
ARRAY_BYTES = 208
"""Memory of an array beside its data: the object, that of the array it is a view of, what the allocator rounds up."""
