"""Distance of a run from its stability limit: λ_grad, λ_max and λ_step, measured with the closure of `log`."""

from client_sdk.curvature.method import METHODS, Method
from client_sdk.curvature.probe import Probe
from client_sdk.curvature.reading import CurvatureCopy
from client_sdk.curvature.shared_modes import SharedModeCopy
from client_sdk.curvature.shared_probe import SharedProbe
from client_sdk.curvature.unstable_directions import ModeCopy

__all__ = ["METHODS", "CurvatureCopy", "Method", "ModeCopy", "Probe", "SharedModeCopy", "SharedProbe"]
