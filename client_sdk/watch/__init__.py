"""`watch`: attaches to a model and its optimizer, decides when to measure, and passes measurements to the run.

Owns the hooks and the order of operations in a training step; `stats` and `curvature` do the measuring. Bad arguments
raise at once; afterwards nothing raises into training, and nothing that training computes is changed. Only the
optimizer has hooks: model and optimizer can be copied, pickled and compiled as if they were not watched.
"""

from client_sdk.watch.handle import Handle, watch

__all__ = ["Handle", "watch"]
