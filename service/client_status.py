"""Turns a gRPC status back into the exception that the server raised, with the details that came along.

The server attaches `google.rpc` messages: BadRequest with the fields that are wrong, RetryInfo with the wait it asks
for, ErrorInfo with the reason where one code stands for several.
"""

import re
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from service import errors
from service.errors import FieldViolation, ServiceError

DETAILS_KEY = "grpc-status-details-bin"
RETRY_AFTER_KEY = "retry-after-ms"
NO_DICTIONARY = "NO_DICTIONARY"
"""ErrorInfo.reason of what only a dictionary could answer."""
SLOW_CONSUMER, ALERT_NOT_KEPT = "SLOW_CONSUMER", "ALERT_NOT_KEPT"
"""ErrorInfo.reason that tells these two from a full queue: all are RESOURCE_EXHAUSTED."""
_UNREACHED = re.compile(
    r"(?:connections to all backends failing|failed to connect to all addresses); last error: (?:\w+: )?(.*?)\.?"
)


def to_error(error: grpc.RpcError) -> ServiceError:
    """The exception of `errors` that says what this failed call says."""
    code, message = error.code(), error.details() or ""
    match code:
        case grpc.StatusCode.FAILED_PRECONDITION if _error_info(error).reason == NO_DICTIONARY:
            return errors.NoDictionary(message)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return errors.NotPossible(message or code.name)
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return errors.InvalidRequest(_violations(error), _with_violations(message, _violations(error)))
        case grpc.StatusCode.NOT_FOUND:
            return errors.NotFound(message, message=message)
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return errors.AccessDenied(message or code.name)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _exhausted(error, message)
        case grpc.StatusCode.UNAVAILABLE:
            return errors.NotReady(_in_reach(message), retry_after_seconds=retry_after_seconds(error))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(message)
        case grpc.StatusCode.INTERNAL if error_id := _error_info(error).metadata.get("error_id"):
            return errors.EngineFailed(error_id, message)
        case _:
            return errors.RpcFailed(code.name, message)


def _in_reach(message: str) -> str:
    """What the transport says where nobody answers, in words of ours; a server's own message as it is."""
    found = _UNREACHED.fullmatch(message)
    return f"No server can be reached there: {found[1]}. Is it running, and is that its address?" if found else message


def retry_after_seconds(error: grpc.RpcError) -> float | None:
    """The wait that the server asks for, from RetryInfo or the `retry-after-ms` trailer; None if it asks for none."""
    for info in _details(error, error_details_pb2.RetryInfo):
        return float(info.retry_delay.ToTimedelta().total_seconds())
    text = _trailer(error, RETRY_AFTER_KEY)
    return int(text) / 1000 if isinstance(text, str) and text.isascii() and text.isdigit() else None


def _exhausted(error: grpc.RpcError, message: str) -> ServiceError:
    if _error_info(error).reason == SLOW_CONSUMER:
        return errors.SlowConsumer(message)
    if _error_info(error).reason == ALERT_NOT_KEPT:
        return errors.AlertNotKept(message)
    asked = retry_after_seconds(error)
    if asked is not None:
        return errors.QueueFull(message, retry_after_seconds=asked)
    # Neither: the transport refused an oversize message, say. Trying again would not help.
    return errors.RpcFailed(grpc.StatusCode.RESOURCE_EXHAUSTED.name, message)


def _violations(error: grpc.RpcError) -> list[FieldViolation]:
    return [
        FieldViolation(violation.field, violation.description)
        for bad_request in _details(error, error_details_pb2.BadRequest)
        for violation in bad_request.field_violations
    ]


def _with_violations(message: str, violations: Sequence[FieldViolation]) -> str:
    """The server's message, and what it does not say already."""
    missing = [str(violation) for violation in violations if violation.description not in message]
    return "; ".join([message, *missing] if message else missing)


def _error_info(error: grpc.RpcError) -> Any:
    return next(iter(_details(error, error_details_pb2.ErrorInfo)), error_details_pb2.ErrorInfo())


def _details(error: grpc.RpcError, kind: Any) -> list[Any]:
    """The attached messages of one kind. Damaged ones count as none: the status itself still stands."""
    value = _trailer(error, DETAILS_KEY)
    if not isinstance(value, bytes):
        return []
    try:
        packed = status_pb2.Status.FromString(value).details
        return [_unpack(item, kind) for item in packed if item.Is(kind.DESCRIPTOR)]
    except DecodeError:
        return []


def _unpack(item: Any, kind: Any) -> Any:
    message = kind()
    item.Unpack(message)
    return message


def _trailer(error: grpc.RpcError, key: str) -> str | bytes | None:
    return next((value for name, value in error.trailing_metadata() or () if name == key), None)
