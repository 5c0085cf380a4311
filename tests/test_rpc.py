"""What every RPC goes through: keys, statuses that fit into trailers, and handlers that are always closed."""

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from serving import eventually

from service import errors, rpc
from service.errors import FieldViolation, InvalidRequest


def bearer(key):
    return (("user-agent", "x"), ("authorization", f"Bearer {key}"))


# --- keys ---


def test_without_keys_nobody_is_asked():
    rpc.ApiKeys([]).check(None)
    rpc.ApiKeys([]).check(bearer("anything"))
    with pytest.raises(errors.AccessDenied):
        rpc.ApiKeys(["a"]).check(None)


@pytest.mark.parametrize("header", ["Bearer a", "bearer b", "BEARER  b ", "Bearer ключ"])
def test_any_of_the_keys_is_accepted(header):
    rpc.ApiKeys(["a", "b", "ключ"]).check((("authorization", header),))
    with pytest.raises(errors.AccessDenied):
        rpc.ApiKeys(["another"]).check((("authorization", header),))


@pytest.mark.parametrize(
    "metadata",
    [None, (), bearer("c"), bearer(""), (("authorization", "Basic a"),), (("authorization", "a"),)],
)
def test_everything_else_is_refused(metadata):
    with pytest.raises(errors.AccessDenied) as refused:
        rpc.ApiKeys(["a", "b"]).check(metadata)
    assert "Bearer KEY" in str(refused.value)


def test_keys_are_compared_with_all_of_them_always(monkeypatch):
    """Stopping at the first match would tell by the clock which key it was."""
    compared = []
    inner = rpc.secrets.compare_digest
    monkeypatch.setattr(rpc.secrets, "compare_digest", lambda a, b: compared.append(len(b)) or inner(a, b))
    rpc.ApiKeys(["first", "x", "a much longer key"]).check(bearer("first"))
    assert compared == [32, 32, 32]


# --- statuses ---


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest.field("a", "must be b."), code_pb2.INVALID_ARGUMENT),
        (errors.NotFound("feature 'x'"), code_pb2.NOT_FOUND),
        (errors.NoDictionary(), code_pb2.FAILED_PRECONDITION),
        (errors.AccessDenied("no"), code_pb2.UNAUTHENTICATED),
        (errors.QueueFull("full", retry_after_seconds=2.5), code_pb2.RESOURCE_EXHAUSTED),
        (errors.SlowConsumer("slow"), code_pb2.RESOURCE_EXHAUSTED),
        (errors.NotReady("draining"), code_pb2.UNAVAILABLE),
        (errors.DeadlineExceeded("late"), code_pb2.DEADLINE_EXCEEDED),
        (errors.EngineFailed("abc"), code_pb2.INTERNAL),
        (errors.ServiceError("anything else"), code_pb2.INTERNAL),
    ],
)
def test_every_exception_has_its_status(error, code):
    status = rpc.to_status(error)
    assert status.code == code
    assert status.message == str(error)


def unpack(status, kind):
    (packed,) = status.details
    message = kind()
    assert packed.Unpack(message)
    return message


def test_details_say_what_a_program_needs():
    full = unpack(rpc.to_status(errors.QueueFull("full", retry_after_seconds=2.5)), error_details_pb2.RetryInfo)
    assert full.retry_delay == duration_pb2.Duration(seconds=2, nanos=500_000_000)
    slow = unpack(rpc.to_status(errors.SlowConsumer("slow")), error_details_pb2.ErrorInfo)
    assert (slow.reason, slow.domain) == ("SLOW_CONSUMER", rpc.DOMAIN)
    failed = unpack(rpc.to_status(errors.EngineFailed("abc")), error_details_pb2.ErrorInfo)
    assert (failed.reason, dict(failed.metadata)) == ("ENGINE_FAILED", {"error_id": "abc"})
    invalid = InvalidRequest([FieldViolation("a", "must be b."), FieldViolation("c[0]", "must be d.")])
    violations = unpack(rpc.to_status(invalid), error_details_pb2.BadRequest).field_violations
    assert [(v.field, v.description) for v in violations] == [("a", "must be b."), ("c[0]", "must be d.")]


@given(st.lists(st.text(max_size=400), min_size=1, max_size=40))
def test_a_status_fits_into_trailers(descriptions):
    """Peers refuse more than 8 KiB of headers; ours are the message, percent-encoded, and the details, in base64."""
    error = InvalidRequest([FieldViolation(f"policies[{i}].monitor", text) for i, text in enumerate(descriptions)])
    status = rpc.to_status(error)
    assert 3 * len(status.message.encode()) + 4 * status.ByteSize() / 3 < 7500
    assert unpack(status, error_details_pb2.BadRequest).field_violations[0].field == "policies[0].monitor"


# --- handlers ---


def echo_service():
    """A service of well-known messages, made here: nothing of ours is behind it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="echo.proto", package="echo", syntax="proto3", dependency=["google/protobuf/duration.proto"]
    )
    service = file.service.add(name="EchoService")
    for name, streams in (("One", False), ("Many", True)):
        kind = ".google.protobuf.Duration"
        service.method.add(name=name, input_type=kind, output_type=kind, server_streaming=streams)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(duration_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("echo.EchoService")


class Counter:
    def __init__(self):
        self.started, self.ended = [], []

    def observe_rpc_started(self, service, method, kind):
        self.started.append((service, method, kind))

    def observe_rpc_ended(self, service, method, kind, *, code, seconds):
        assert seconds >= 0
        self.ended.append((service, method, kind, code))


class Echo:
    """Answers, or raises what the test put there, after setting a trailer."""

    error: Exception | None = None
    closed = 0

    async def One(self, message, context):
        context.set_trailing_metadata((("request-id", "7"),))
        if self.error:
            raise self.error
        return message

    async def Many(self, message, context):
        try:
            yield message
            context.set_trailing_metadata((("request-id", "7"),))
            if self.error:
                raise self.error
            while message.seconds:
                yield message
        finally:
            self.closed += 1


@pytest.fixture
async def served():
    """(servicer, counter, refusals, channel)"""
    servicer, counter, refusals = Echo(), Counter(), []
    server = grpc.aio.server()
    handler = rpc.handlers(
        echo_service(), servicer, counter, rpc.ApiKeys(["key"]), lambda method, error: refusals.append((method, error))
    )
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, counter, refusals, channel
    await server.stop(None)


def one(channel, data=b"\x08\x05", key="key"):
    return channel.unary_unary("/echo.EchoService/One")(data, metadata=bearer(key))


def many(channel, data=b"", key="key"):
    return channel.unary_stream("/echo.EchoService/Many")(data, metadata=bearer(key))


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            [_ async for _ in call]
    return failed.value


async def test_an_answer_goes_through_and_is_counted(served):
    _, counter, refusals, channel = served
    assert await one(channel) == b"\x08\x05"
    assert [response async for response in many(channel)] == [b""]
    names = [("echo.EchoService", "One", "unary"), ("echo.EchoService", "Many", "server_stream")]
    assert counter.started == names
    # The last answer may reach the client before the server has counted its end.
    await eventually(lambda: counter.ended == [(*name, "OK") for name in names])
    assert refusals == []


async def test_an_error_keeps_the_trailers_that_were_set(served):
    servicer, counter, _, channel = served
    servicer.error = errors.QueueFull("full", retry_after_seconds=1.5)
    for method in (one, many):
        error = await failure(method(channel))
        trailers = dict(error.trailing_metadata())
        assert trailers["request-id"] == "7"
        assert trailers["retry-after-ms"] == "1500"
        assert rpc_status.from_call(error).message == "full"
    await eventually(lambda: [code for *_, code in counter.ended] == ["RESOURCE_EXHAUSTED"] * 2)
    assert servicer.closed == 1


async def test_an_exception_that_is_not_ours_shows_its_id_only(served, caplog):
    servicer, _, _, channel = served
    servicer.error = ZeroDivisionError("secret")
    for method in (one, many):
        caplog.clear()
        error = await failure(method(channel))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in repr(error)
        info = unpack(rpc_status.from_call(error), error_details_pb2.ErrorInfo)
        assert info.metadata["error_id"] in caplog.text
        assert "ZeroDivisionError: secret" in caplog.text


async def test_refusals_before_the_handler_are_told(served):
    servicer, counter, refusals, channel = served
    for method in (one, many):
        assert (await failure(method(channel, key="wrong"))).code() is grpc.StatusCode.UNAUTHENTICATED
    for method in (one, many):
        error = await failure(method(channel, b"\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "The request must be a google.protobuf.Duration message."
    # A stranger does not learn whether the bytes were right.
    assert (await failure(one(channel, b"\xff", key="wrong"))).code() is grpc.StatusCode.UNAUTHENTICATED
    kinds = [(method, type(error)) for method, error in refusals]
    denied, invalid = errors.AccessDenied, InvalidRequest
    assert kinds == [("One", denied), ("Many", denied), ("One", invalid), ("Many", invalid), ("One", denied)]
    assert servicer.closed == 0
    codes = ["UNAUTHENTICATED"] * 2 + ["INVALID_ARGUMENT"] * 2 + ["UNAUTHENTICATED"]
    await eventually(lambda: [code for *_, code in counter.ended] == codes)


async def test_a_client_that_leaves_closes_the_handler(served):
    servicer, counter, _, channel = served
    call = many(channel, b"\x08\x01")  # for ever
    assert await call.read() == b"\x08\x01"
    call.cancel()
    await eventually(lambda: servicer.closed == 1)
    await eventually(lambda: [code for *_, code in counter.ended] == ["CANCELLED"])
