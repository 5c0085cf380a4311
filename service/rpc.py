"""What every RPC goes through before and after its handler: decoding, authorisation, counting, error mapping.

Handlers raise the exceptions of `service.errors`; what they raise besides becomes INTERNAL with an error id, so that no
internals leak. Bytes that are no message never reach a handler and never show in a status text.
"""

import hashlib
import inspect
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol

import grpc
from google.protobuf import any_pb2, descriptor, message_factory
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from service import errors
from service.errors import ServiceError

logger = logging.getLogger(__name__)

DOMAIN = "telltale"

# A status travels in HTTP/2 trailers, and peers refuse more than 8 KiB of them: what is wrong with a request that is
# wrong a thousand times over has to be cut, or the client learns nothing at all.
_MAX_MESSAGE_CHARACTERS = 256
_MAX_DESCRIPTION_CHARACTERS = 256
_MAX_VIOLATIONS_BYTES = 2048

# The client's clock started before the request came here, so its word that the time is up arrives a little early.
_DEADLINE_SLACK_SECONDS = 0.1

Refused = Callable[[str, ServiceError], None]
"""Called with the method's name for an RPC that is refused before its handler sees it."""


class RpcCounter(Protocol):
    """Where RPCs are counted; `service.metrics.Metrics` is one."""

    def observe_rpc_started(self, service: str, method: str, kind: str) -> None: ...

    def observe_rpc_ended(self, service: str, method: str, kind: str, *, code: str, seconds: float) -> None: ...


class ApiKeys:
    """The keys that are accepted; none means that no key is asked for."""

    def __init__(self, keys: Collection[str]) -> None:
        # Hashes have one length, so comparing them takes the same time for every key.
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, metadata: Any) -> None:
        """AccessDenied unless `authorization: Bearer KEY` carries an accepted key."""
        if not self._hashes:
            return
        header = str(next((value for key, value in metadata or () if key == "authorization"), ""))
        scheme, _, key = header.partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        # All of them, always: stopping at the first match would tell which it was.
        matches = [secrets.compare_digest(given, known) for known in self._hashes]
        if scheme.lower() != "bearer" or not any(matches):
            raise errors.AccessDenied("An API key is needed: send metadata `authorization: Bearer KEY`.")


class Undecodable:
    """Stands in for a request whose bytes are no message."""


def handlers(
    service: descriptor.ServiceDescriptor,
    servicer: object,
    counter: RpcCounter,
    keys: ApiKeys,
    refused: Refused = lambda _method, _error: None,
) -> grpc.GenericRpcHandler:
    """Handlers for all methods of `service`, which `servicer` implements under the same names."""
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            method.name: _handler(method, getattr(servicer, method.name), counter, keys, refused)
            for method in service.methods
        },
    )


def _handler(
    method: descriptor.MethodDescriptor, behaviour: Any, counter: RpcCounter, keys: ApiKeys, refused: Refused
) -> Any:
    request_type = message_factory.GetMessageClass(method.input_type)
    kind = "server_stream" if method.server_streaming else "unary"

    def decode(data: bytes) -> Any:
        try:
            return request_type.FromString(data)
        except (DecodeError, UnicodeDecodeError):
            return Undecodable()

    def check(request: Any, context: Any) -> None:
        keys.check(context.invocation_metadata())
        if isinstance(request, Undecodable):
            wanted = f"must be a {request_type.DESCRIPTOR.full_name} message."
            raise errors.InvalidRequest([errors.FieldViolation("", wanted)], f"The request {wanted}")

    @asynccontextmanager
    async def around(request: Any, context: Any) -> AsyncIterator[None]:
        async with _counted(counter, method, kind, context), _mapped(context):
            try:
                check(request, context)
            except ServiceError as error:
                refused(method.name, error)
                raise
            yield

    async def unary(request: Any, context: Any) -> Any:
        async with around(request, context):
            return await behaviour(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async with around(request, context), aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                yield response

    make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    assert inspect.isasyncgenfunction(behaviour) == method.server_streaming
    return make(stream if method.server_streaming else unary, decode, lambda response: response.SerializeToString())


@asynccontextmanager
async def _counted(
    counter: RpcCounter, method: descriptor.MethodDescriptor, kind: str, context: Any
) -> AsyncIterator[None]:
    service, started = method.containing_service.full_name, time.monotonic()
    counter.observe_rpc_started(service, method.name, kind)
    code = grpc.StatusCode.CANCELLED
    try:
        yield
        code = grpc.StatusCode.OK
    except grpc.aio.AbortError:
        code = _code_of(context)
        raise
    finally:
        if code is grpc.StatusCode.CANCELLED and is_past_deadline(context):
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        seconds = time.monotonic() - started
        counter.observe_rpc_ended(service, method.name, kind, code=code.name, seconds=seconds)


def is_past_deadline(context: Any) -> bool:
    """Whether the client's deadline is why a handler was cancelled."""
    remaining = context.time_remaining()
    return remaining is not None and remaining < _DEADLINE_SLACK_SECONDS


def _code_of(context: Any) -> grpc.StatusCode:
    code = context.code()
    return next((c for c in grpc.StatusCode if code in (c, c.value[0])), grpc.StatusCode.UNKNOWN)


@asynccontextmanager
async def _mapped(context: Any) -> AsyncIterator[None]:
    """Turn exceptions into statuses. `finally` blocks of handlers have run by then."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        if not isinstance(error, ServiceError):
            error_id = uuid.uuid4().hex[:12]
            logger.exception("handler failed, error id %s", error_id)
            error = errors.EngineFailed(error_id, f"The server failed on this request. Error id {error_id}.")
        status = rpc_status.to_status(to_status(error))
        # What the handler set before, its request id say, would be replaced.
        trailers = (*(context.trailing_metadata() or ()), *status.trailing_metadata, *_retry_trailer(error))
        await context.abort(status.code, status.details, trailers)


def to_status(error: ServiceError) -> status_pb2.Status:
    """The status of an exception, with `google.rpc` details, short enough for trailers."""
    code, details = code_pb2.INTERNAL, []
    match error:
        case errors.InvalidRequest():
            code = code_pb2.INVALID_ARGUMENT
            details = [_bad_request(error.violations)]
        case errors.NotFound():
            code = code_pb2.NOT_FOUND
        case errors.NoDictionary():
            code = code_pb2.FAILED_PRECONDITION
            details = [error_details_pb2.ErrorInfo(reason="NO_DICTIONARY", domain=DOMAIN)]
        case errors.NotPossible():
            code = code_pb2.FAILED_PRECONDITION
        case errors.AccessDenied():
            code = code_pb2.UNAUTHENTICATED
        case errors.QueueFull():
            code, details = code_pb2.RESOURCE_EXHAUSTED, [_retry_info(error.retry_after_seconds)]
        case errors.SlowConsumer():
            code = code_pb2.RESOURCE_EXHAUSTED
            details = [error_details_pb2.ErrorInfo(reason="SLOW_CONSUMER", domain=DOMAIN)]
        case errors.AlertNotKept():
            code = code_pb2.RESOURCE_EXHAUSTED
            details = [error_details_pb2.ErrorInfo(reason="ALERT_NOT_KEPT", domain=DOMAIN)]
        case errors.NotReady():
            code = code_pb2.UNAVAILABLE
        case errors.DeadlineExceeded():
            code = code_pb2.DEADLINE_EXCEEDED
        case errors.EngineFailed():
            info = error_details_pb2.ErrorInfo(reason="ENGINE_FAILED", domain=DOMAIN)
            info.metadata["error_id"] = error.error_id
            details = [info]
    status = status_pb2.Status(code=code, message=_shortened(str(error), _MAX_MESSAGE_CHARACTERS))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _bad_request(violations: Sequence[errors.FieldViolation]) -> Any:
    """The first violations, as many as fit."""
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        description = _shortened(violation.description, _MAX_DESCRIPTION_CHARACTERS)
        bad_request.field_violations.add(field=violation.field, description=description)
        if bad_request.ByteSize() > _MAX_VIOLATIONS_BYTES:
            del bad_request.field_violations[-1]
            break
    return bad_request


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _retry_info(seconds: float) -> Any:
    delay = Duration()
    delay.FromMilliseconds(int(seconds * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _retry_trailer(error: Exception) -> tuple[tuple[str, str], ...]:
    if not isinstance(error, errors.QueueFull):
        return ()
    return (("retry-after-ms", str(int(error.retry_after_seconds * 1000))),)
