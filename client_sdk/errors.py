"""Errors of the SDK. After `init` nothing raises into training; these come from `init`, `watch` and the tools.

SpikewatchError
├── ConfigurationError   bad arguments or environment: say what to change
├── SpoolError           the spool directory cannot be used
└── TransportError       the server cannot be reached, refused us, or went away
"""


class SpikewatchError(Exception):
    """Base of every error that the SDK raises."""


class ConfigurationError(SpikewatchError, ValueError):
    """An argument of `init` or `watch`, or an environment variable, is wrong."""


class SpoolError(SpikewatchError, OSError):
    """The spool directory cannot be read or written."""


class TransportError(SpikewatchError):
    """The connection to the server failed.

    ``code`` is one of the protocol's error codes, or "unreachable" when no server answered, or "closed" when it went
    away. ``retryable`` False means that trying the same again at once is pointless.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"
