"""The exceptions of the serving side: what the engine and the servicer raise, and what the client raises in turn.

    ServiceError
    ├── ConfigError        an option that can't be used, or two that clash
    ├── InvalidRequest     a request that makes no sense, with every field that is wrong     INVALID_ARGUMENT
    ├── NotFound           a feature or monitor that the server does not have                NOT_FOUND
    ├── NoDictionary       what only a dictionary could answer, of a server that has none     FAILED_PRECONDITION
    ├── NotPossible        what is asked makes sense, and not here or not now                FAILED_PRECONDITION
    ├── AccessDenied       no key, or a key that may not do this       UNAUTHENTICATED, PERMISSION_DENIED
    ├── QueueFull          too many requests wait already                                    RESOURCE_EXHAUSTED
    ├── AlertNotKept       an alert of the request could not be written to the journal       RESOURCE_EXHAUSTED
    ├── SlowConsumer       the client did not read its stream for too long                   RESOURCE_EXHAUSTED
    ├── NotReady           starting, shutting down, or unreachable                           UNAVAILABLE
    ├── DeadlineExceeded   the client's deadline, or the server's own limit, has passed      DEADLINE_EXCEEDED
    ├── EngineFailed       the model failed on this request; the log has the rest            INTERNAL
    └── RpcFailed          any other gRPC status (raised by the client only)

Nothing here knows gRPC: the servicer turns an exception into its status, the client turns the status back into the
same exception. Messages are meant for the caller: no path, no trace, no other request's data.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ServiceError(Exception):
    """Base of everything the serving side raises on purpose. `str()` is a message for the caller."""


class ConfigError(ServiceError):
    """An option of the server can't be used. The message names the option, the value wanted and the value got."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong."""

    field: str
    """Path of the field as the proto spells it, like `sampling.temperature` or `steering[0].vector`."""
    description: str
    """What was wanted and what was got: `must be in [0, 100]. Got -1.`"""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class InvalidRequest(ServiceError):
    """A request that makes no sense. Carries every violation found, not only the first."""

    def __init__(self, violations: Sequence[FieldViolation], message: str = "") -> None:
        """`message` is for requests that are wrong as a whole; by default the violations are the message."""
        super().__init__(message or "; ".join(map(str, violations)) or "The request is invalid.")
        self.violations = tuple(violations)

    @classmethod
    def field(cls, field: str, description: str) -> "InvalidRequest":
        """One violation alone."""
        return cls([FieldViolation(field, description)])


class NotFound(ServiceError):
    """A feature or monitor that the server does not have."""

    def __init__(self, what: str, *, suggestions: Sequence[str] = (), message: str = "") -> None:
        """`what` says the kind and the key: `feature 'lyign'`. `suggestions` are keys that do exist."""
        hint = f" Did you mean {', '.join(suggestions)}?" if suggestions else ""
        super().__init__(message or f"No such {what}.{hint}")
        self.what = what


class NoDictionary(ServiceError):
    """Only a dictionary could answer, and the model is served without one. Asking again is of no use."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or "This server has no dictionary (--sae none), and so no features.")


class NotPossible(ServiceError):
    """What is asked makes sense, and the state of things does not allow it: there is no journal, or no text in it."""


class AccessDenied(ServiceError):
    """The API key is missing or unknown, or does not allow what was asked."""


class QueueFull(ServiceError):
    """The queue is full; nothing was done for the request, and asking again later is fine."""

    def __init__(self, message: str = "The queue is full.", *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class AlertNotKept(ServiceError):
    """A monitor fired in the request, and the alert could not be kept: so nothing more of the reply is sent."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or "An alert of this request could not be written to the server's alert journal.")


class SlowConsumer(ServiceError):
    """The client did not read its stream for so long that the server gave the slot to somebody else."""


class NotReady(ServiceError):
    """The server is starting, shutting down, or can't be reached."""

    def __init__(self, message: str = "The server is not ready.", *, retry_after_seconds: float | None = None) -> None:
        """`retry_after_seconds` is None where nobody can say."""
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(ServiceError):
    """The request's deadline, or the server's longest time for a request, has passed."""


class EngineFailed(ServiceError):
    """The model failed on this request. Others are not affected; `error_id` finds the cause in the server's log."""

    def __init__(self, error_id: str, message: str = "") -> None:
        super().__init__(message or f"The request failed in the engine. Error id {error_id}.")
        self.error_id = error_id


class RpcFailed(ServiceError):
    """A gRPC status that has no exception of its own. Raised by the client."""

    def __init__(self, code: str, message: str) -> None:
        """`code` is the status's name, like `UNKNOWN`."""
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
