"""The update rules of optimizers: the update, the moments and the stability factor as numbers.

One module for each family of optimizers has its algebra; `recognition` finds the family. Nothing here measures or
schedules.
"""

from client_sdk.optimizers.moments import FactoredMoment, Moment, QuantisedMoment, dense, first_moment, second_moment
from client_sdk.optimizers.recognition import (
    describe,
    has_limit,
    has_own_step,
    kind_of,
    own_diagonal,
    read_steps,
    read_update_rule,
    term_table,
    what_is_missing,
)
from client_sdk.optimizers.response import gradient_response, response_of_all
from client_sdk.optimizers.stability import (
    GradientResponse,
    averaging_gain,
    oscillation_gain,
    stability_limit,
    stability_ratio,
)
from client_sdk.optimizers.update_rule import ELEMENTWISE_TERMS, TERM, TERMS, Kind, UpdateRule, rate_of
from client_sdk.optimizers.wrappers import Watched, inner_optimizer, watched_optimizer

__all__ = [
    "ELEMENTWISE_TERMS",
    "TERM",
    "TERMS",
    "FactoredMoment",
    "GradientResponse",
    "Kind",
    "Moment",
    "QuantisedMoment",
    "UpdateRule",
    "Watched",
    "averaging_gain",
    "dense",
    "describe",
    "first_moment",
    "gradient_response",
    "has_limit",
    "has_own_step",
    "inner_optimizer",
    "kind_of",
    "oscillation_gain",
    "own_diagonal",
    "rate_of",
    "read_steps",
    "read_update_rule",
    "response_of_all",
    "second_moment",
    "stability_limit",
    "stability_ratio",
    "term_table",
    "watched_optimizer",
    "what_is_missing",
]
