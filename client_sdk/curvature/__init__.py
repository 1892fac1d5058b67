"""How close a run is to its stability limit: λ_grad, λ_max and λ_step from the closure of `log`."""

from client_sdk.curvature.probe import CurvatureCopy, Probe

__all__ = ["CurvatureCopy", "Probe"]
