"""The audit: checks that training does what its author believes, live and without trace in the training.

Each check is a small rule over what `watch` knows anyway: settings of the parameter groups, versions of tensors, the
statistics of a measured step, logged values. `client_sdk.audit_checks` describes them. A rule speaks only where it is
certain: what could also be meant that way is left out, as a false finding is worse than a missed one.
"""

from client_sdk.audit.auditor import Auditor, Surroundings
from client_sdk.audit.ledger import Ledger
from client_sdk.audit.recompute import recompute

__all__ = ["Auditor", "Ledger", "Surroundings", "recompute"]
