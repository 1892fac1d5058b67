"""The error of the fused kernels, which the meter answers by measuring with torch operations."""


class KernelError(Exception):
    """A fused kernel cannot be imported, compiled or started here."""
