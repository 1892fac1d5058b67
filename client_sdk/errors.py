"""Errors of the SDK. After `init` nothing raises into training: `init`, `watch` and the command line raise these.

SpikewatchError
├── ConfigurationError   an argument or an environment variable is invalid
├── SpoolError           the spool directory cannot be used
└── TransportError       the server cannot be reached, refused the client, or closed the connection
"""


class SpikewatchError(Exception):
    """Base of every error that the SDK raises."""


class ConfigurationError(SpikewatchError, ValueError):
    """An argument of `init` or `watch`, or an environment variable, is invalid; the message says what to change."""


class SpoolError(SpikewatchError, OSError):
    """The spool directory cannot be read or written."""


class TransportError(SpikewatchError):
    """The connection to the server failed.

    ``code`` is an error code of the protocol, or one of the client: "unreachable" if no server answered, "closed" if
    the connection ended, "timeout" if the server took too long, "refused" if it answered an HTTP request with an error,
    "exiting" if the interpreter starts no more threads, "internal" for a bug of the client. ``retryable`` is False if
    the same request would fail again.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"
