"""Distance of a run from its stability limit: λ_grad, λ_max and λ_step, measured with the closure of `log`."""

from client_sdk.curvature.probe import CurvatureCopy, Probe

__all__ = ["CurvatureCopy", "Probe"]
