"""Errors of the SDK. After `init` nothing raises into training; these come from `init`, `watch` and the tools.

SpikewatchError
├── ConfigurationError   bad arguments or environment: say what to change
└── SpoolError           the spool directory cannot be used
"""


class SpikewatchError(Exception):
    """Base of every error that the SDK raises."""


class ConfigurationError(SpikewatchError, ValueError):
    """An argument of `init` or `watch`, or an environment variable, is wrong."""


class SpoolError(SpikewatchError, OSError):
    """The spool directory cannot be read or written."""
