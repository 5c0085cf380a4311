"""A real server when things go wrong: bad bytes, bursts, cancels, deadlines, an engine that fails, dies or hangs."""

import asyncio
import random
import re
import threading
import time
from contextlib import aclosing

import grpc
import grpc.aio
import pytest
from google.protobuf import text_format
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from serving import (
    ALWAYS,
    GENERATE,
    SCORE,
    Gate,
    connect,
    eventually,
    generate_message,
    healthz,
    outcomes,
    parts,
    raw_channel,
    rpcs_started,
    sample,
    serving,
)
from telltale.v1 import generation_pb2, generation_pb2_grpc
from test_wire_requests import WRONG

from service import server as server_module
from service import wire_requests, wire_responses
from service.client_events import Token
from service.config import Settings
from service.errors import EngineFailed, InvalidRequest, NotReady, QueueFull
from service.grpc_server import GENERATION
from service.journal_keeper import JournalKeeper
from service.model_runner import ModelRunner
from service.server import LIVENESS, Server
from service.servicer import REQUEST_ID_KEY

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LEAK = re.compile(r"secret|Traceback|\w+Error\b|Exception|\.py\b|0x[0-9a-f]+|object at")


@pytest.fixture(scope="module")
async def server():
    async with serving(max_new_tokens_default=4, top_features_cap=8) as server:
        yield server


@pytest.fixture
async def channel(server):
    async with raw_channel(server) as channel:
        yield channel


async def drained(call):
    """A stream's responses and its trailers."""
    return [response async for response in call], await call.trailing_metadata()


async def end(call):
    """The error that a call ends with, or None. Responses are read: a stream that is not has no status."""
    try:
        await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else drained(call))
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def fail(call):
    """The error that a call has to end with."""
    error = await end(call)
    assert error is not None, "the call went well"
    return error


async def status(call):
    error = await end(call)
    return grpc.StatusCode.OK if error is None else error.code()


def details_of(error, kind):
    """The attached messages of one kind."""
    found = []
    for packed in rpc_status.from_call(error).details:
        if packed.Is(kind.DESCRIPTOR):
            found.append(kind())
            packed.Unpack(found[-1])
    return found


def trailer(error_or_metadata, key):
    metadata = (
        error_or_metadata.trailing_metadata() if isinstance(error_or_metadata, grpc.RpcError) else error_or_metadata
    )
    return dict(metadata).get(key)


async def health(channel, name):
    return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))).status


# --- what clients send ---


async def test_every_wrong_field_is_named_through_the_wire(server, channel):
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    before = outcomes(server).get("invalid", 0)
    for text, fields in WRONG:
        error = await fail(stub.Generate(text_format.Parse(text, generation_pb2.GenerateRequest())))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, text
        (bad_request,) = details_of(error, error_details_pb2.BadRequest)
        assert [violation.field for violation in bad_request.field_violations] == fields
        assert error.details().startswith(f"{fields[0]}: must ")
        assert not LEAK.search(error.details()), error.details()
    assert outcomes(server)["invalid"] == before + len(WRONG)


async def test_a_request_that_is_wrong_all_over_still_gets_its_answer(server):
    """The status travels in trailers, and a client refuses more than 8 KiB of them with another status."""
    async with connect(server) as client:
        request = generation_pb2.GenerateRequest(text="x")
        for _ in range(1000):
            request.policies.add(monitor="語" * 300)
            request.watch.monitors.append("\N{GRINNING FACE}" * 300)
        with pytest.raises(InvalidRequest) as refused:
            async for _ in client.stream(request):
                pass
    assert len(refused.value.violations) > 1
    assert refused.value.violations[0].field == "watch.monitors[0]"


def damaged(random_bytes, whole):
    """`whole` with a few bytes changed, cut or put in."""
    data = bytearray(whole)
    for _ in range(random_bytes.randrange(1, 4)):
        at = random_bytes.randrange(len(data) + 1)
        match random_bytes.randrange(3):
            case 0:
                data[at : at + 1] = random_bytes.randbytes(1)
            case 1:
                data[at:] = b""
            case 2:
                data[at:at] = random_bytes.randbytes(random_bytes.randrange(1, 5))
    return bytes(data)


async def test_garbage_never_shows_the_servers_insides(server, channel):
    source = random.Random(7)
    good = generate_message(label="job").SerializeToString()
    requests = [source.randbytes(source.randrange(1, 60)) for _ in range(1500)]
    requests += [damaged(source, good) for _ in range(1000)]
    generate, score = (make(path) for make, path in ((channel.unary_stream, GENERATE), (channel.unary_unary, SCORE)))
    seen = {}
    before = outcomes(server), rpcs_started(server, "Generate", "Score")

    async def send(call):
        code = await status(call)
        details = await call.details()
        seen[code] = seen.get(code, 0) + 1
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), (code, details)
        assert not LEAK.search(details or ""), details

    for at in range(0, len(requests), 40):
        batch = requests[at : at + 40]
        await asyncio.gather(*(send(generate(data)) for data in batch[:30]), *(send(score(d)) for d in batch[30:]))
    assert seen[grpc.StatusCode.INVALID_ARGUMENT] > 1500
    assert seen[grpc.StatusCode.OK] > 0
    # Nobody falls through the counters, undecodable bytes included.
    await eventually(lambda: sum(outcomes(server).values()) - sum(before[0].values()) == len(requests))
    assert rpcs_started(server, "Generate", "Score") - before[1] == len(requests)


async def test_undecodable_bytes_are_told_what_was_wanted(channel):
    error = await fail(channel.unary_stream(GENERATE)(b"\xff\xff\xff"))
    assert error.details() == "The request must be a telltale.v1.GenerateRequest message."


async def test_an_oversize_message_is_refused(channel):
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    error = await fail(stub.Generate(generate_message("a" * 5 * 2**20)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await health(channel, GENERATION.full_name) == SERVING


async def test_an_unknown_method_is_unimplemented(channel):
    error = await fail(channel.unary_unary("/telltale.v1.GenerationService/Nothing")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


# --- too many ---


async def test_a_burst_beyond_the_queue_is_refused_before_any_work(monkeypatch):
    slots, queue, burst = 2, 3, 20
    num_read = []
    read = wire_requests.RequestReader.tokenize
    monkeypatch.setattr(
        wire_requests.RequestReader, "tokenize", lambda *args, **kwargs: num_read.append(1) or read(*args, **kwargs)
    )
    async with serving(slots=slots, max_queued_requests=queue) as server, raw_channel(server) as channel:
        gate = Gate(server)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        tasks = [asyncio.create_task(end(stub.Generate(generate_message()))) for _ in range(burst)]
        await eventually(lambda: sum(task.done() for task in tasks) == burst - slots - queue)
        await eventually(lambda: len(num_read) == slots + queue == server.engine.num_active)
        for error in [task.result() for task in tasks if task.done()]:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            (info,) = details_of(error, error_details_pb2.RetryInfo)
            assert info.retry_delay.ToTimedelta().total_seconds() == 1
            assert trailer(error, "retry-after-ms") == "1000"
        # Nothing was read for those: their turn may never come.
        assert len(num_read) == slots + queue
        gate.open()
        assert (await asyncio.gather(*tasks)).count(None) == slots + queue
        await eventually(lambda: sum(outcomes(server).values()) == burst)
        assert outcomes(server) == {"length": slots + queue, "rejected_queue": burst - slots - queue}


async def test_too_many_waiting_prompt_tokens_are_refused():
    async with serving(slots=1, max_queued_prompt_tokens=100) as server, connect(server) as client:
        gate = Gate(server)
        options = {"max_tokens": 2, "ignore_eos": True}
        running = asyncio.create_task(client.complete("r", **options))
        await eventually(lambda: gate.num_passes)
        waiting = asyncio.create_task(client.complete("w" * 90, **options))
        await eventually(lambda: server.engine.admission._num_tokens == 90)
        with pytest.raises(QueueFull) as refused:
            await client.complete("x" * 11, **options)
        assert refused.value.retry_after_seconds == 1
        gate.open()
        assert len((await running).tokens) == len((await waiting).tokens) == 2


# --- gone clients ---


@pytest.mark.parametrize("waits_in", ["slot", "queue"])
async def test_a_deadline_frees_what_the_request_held(waits_in):
    async with serving(slots=1) as server, raw_channel(server) as channel:
        gate = Gate(server)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        if waits_in == "queue":
            first = stub.Generate(generate_message(max_tokens=2))
            await eventually(lambda: server.engine.num_running == 1)
        call = stub.Generate(generate_message(max_tokens=200), timeout=1.0)
        await eventually(lambda: server.engine.num_active == 1 + (waits_in == "queue"))
        assert await status(call) is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.open()
        await eventually(lambda: server.engine.num_active == 0)
        if waits_in == "queue":
            assert await status(first) is grpc.StatusCode.OK
        # Also if the server hears of it from the client, whose clock is a little ahead.
        await eventually(lambda: outcomes(server).get("deadline") == 1)
        assert server.engine.admission.num_waiting == 0
        assert await status(stub.Generate(generate_message(max_tokens=2))) is grpc.StatusCode.OK


async def test_the_servers_own_limit_ends_requests_without_a_deadline():
    async with serving(slots=1, max_request_seconds=0.2) as server, raw_channel(server) as channel:
        gate = Gate(server)
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(generate_message(max_tokens=200))
        await eventually(lambda: gate.num_passes)
        await eventually(lambda: server.engine.stalled_seconds() > 0.25)
        gate.open()
        error = await fail(call)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert len(trailer(error, REQUEST_ID_KEY)) == 24
        await eventually(lambda: outcomes(server) == {"deadline": 1})


async def test_cancels_in_the_middle_disturb_nobody_and_everything_adds_up():
    texts = [f"{i} green bottles hanging on the wall" for i in range(12)]
    options = {"max_tokens": 24, "ignore_eos": True}
    async with serving(slots=4) as server, connect(server) as client:
        alone = [await client.complete(text, **options) for text in texts]

    async with serving(slots=4, prefill_chunk_tokens=16) as server, connect(server) as client:

        async def leave_early(i):
            generated = 0
            async with aclosing(client.generate(f"leaving {i}", max_tokens=200, ignore_eos=True)) as events:
                async for event in events:
                    generated += isinstance(event, Token)
                    if generated > i % 3:
                        return

        async def never_arrive():
            task = asyncio.create_task(client.complete("never", max_tokens=200, ignore_eos=True))
            await asyncio.sleep(0)  # lets it set out
            task.cancel()
            await asyncio.wait([task])

        *beside, _ = await asyncio.gather(
            *(client.complete(text, **options) for text in texts),
            asyncio.gather(*map(leave_early, range(24)), *(never_arrive() for _ in range(6))),
        )
        for got, wanted in zip(beside, alone, strict=True):
            assert [token.id for token in got.tokens] == [token.id for token in wanted.tokens]
        await eventually(lambda: server.engine.num_active == 0)
        await eventually(lambda: sum(outcomes(server).values()) == rpcs_started(server, "Generate"))
        counted = outcomes(server)
        assert counted["length"] >= len(texts)
        assert counted["cancelled"] >= 24 - (counted["length"] - len(texts))
        assert set(counted) == {"length", "cancelled"}
        assert server.delivery._wakers == {}
        assert server.engine.admission.num_waiting == 0
        assert not any(tensor.any() for tensor in server.engine.runner.cache.keys)  # every slot was left clean
        tokens = {name: sample(server, f"telltale_{name}_tokens_total") for name in ("prompt", "generation")}
        forward, tapped = (sample(server, f"telltale_{name}_tokens_total") for name in ("forward", "tapped"))
        assert forward == tapped == sum(tokens.values())
        assert tokens["generation"] >= sum(len(reply.tokens) for reply in beside)


async def test_a_cancel_wins_over_a_pass_that_is_under_way():
    async with serving(slots=1) as server, raw_channel(server) as channel:
        gate = Gate(server)
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(generate_message())
        await eventually(lambda: gate.num_passes)
        call.cancel()
        await eventually(lambda: server.engine._roster.rows[0].submission.is_cancelled)
        gate.open()
        await eventually(lambda: outcomes(server) == {"cancelled": 1})
        assert gate.num_passes == 1


async def test_a_client_that_does_not_read_loses_its_slot(monkeypatch):
    """The handler is held up, as flow control does in the end to one whose client does not read."""
    async with serving(slow_consumer_seconds=0.05) as server, raw_channel(server) as channel:
        release = asyncio.Event()
        inner = server.delivery.events

        async def events(mailbox):
            await release.wait()
            async with aclosing(inner(mailbox)) as batches:
                async for batch in batches:
                    yield batch

        monkeypatch.setattr(server.delivery, "events", events)
        gate = Gate(server, free_passes=2)
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(generate_message(max_tokens=200))
        await eventually(lambda: gate.num_passes == 3)
        mailbox = server.engine._roster.rows[0].submission.mailbox
        await eventually(lambda: mailbox.unread_seconds(time.monotonic()) > 0.05)
        gate.open()
        await eventually(lambda: outcomes(server) == {"slow_consumer": 1})
        release.set()
        error = await fail(call)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [info.reason for info in details_of(error, error_details_pb2.ErrorInfo)] == ["SLOW_CONSUMER"]
        assert trailer(error, REQUEST_ID_KEY)


# --- exceptions ---


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (wire_requests.RequestReader, "read_generate"),
        (wire_responses.ResponseWriter, "started"),
        (wire_responses.ResponseWriter, "token"),
    ],
)
async def test_an_exception_of_our_own_tells_an_id_and_nothing_else(monkeypatch, caplog, cls, name):
    async with serving() as server, raw_channel(server) as channel:

        def broken(*_args, **_kwargs):
            raise RuntimeError("secret /etc/passwd")

        monkeypatch.setattr(cls, name, broken)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        error = await fail(stub.Generate(generate_message(max_tokens=200)))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert not LEAK.search(error.details())
        (info,) = details_of(error, error_details_pb2.ErrorInfo)
        assert info.metadata["error_id"] in error.details()
        # The id finds the cause in the log.
        (logged,) = [record for record in caplog.records if info.metadata["error_id"] in record.getMessage()]
        assert "secret /etc/passwd" in str(logged.exc_info[1])
        await eventually(lambda: outcomes(server) == {"engine_error": 1})
        await eventually(lambda: server.engine.num_active == 0)
        monkeypatch.undo()
        assert await status(stub.Generate(generate_message())) is grpc.StatusCode.OK


async def test_an_exception_in_other_services_is_no_different(monkeypatch, channel):
    def broken(*_args, **_kwargs):
        raise KeyError("secret")

    monkeypatch.setattr(wire_responses.ResponseWriter, "feature", broken)
    error = await fail(channel.unary_unary("/telltale.v1.FeatureService/ListFeatures")(b""))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert not LEAK.search(error.details())


async def test_a_failed_pass_fails_its_own_request_with_the_requests_id(caplog):
    async with serving() as server, raw_channel(server) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        inner = server.engine.runner.forward

        def forward(rows, *args, **kwargs):
            if any(9 in row.ids for row in rows):
                raise RuntimeError("secret")
            return inner(rows, *args, **kwargs)

        server.engine.runner.forward = forward
        bad = generation_pb2.GenerateRequest(token_ids={"ids": [5, 9]})
        good, error = await asyncio.gather(drained(stub.Generate(generate_message("a"))), fail(stub.Generate(bad)))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert not LEAK.search(error.details())
        (info,) = details_of(error, error_details_pb2.ErrorInfo)
        assert info.reason == "ENGINE_FAILED"
        assert any(info.metadata["error_id"] in record.getMessage() for record in caplog.records)
        responses, trailing = good
        assert trailer(trailing, REQUEST_ID_KEY) == responses[0].started.request_id
        assert len(trailer(error, REQUEST_ID_KEY)) == 24
        assert trailer(error, REQUEST_ID_KEY) != responses[0].started.request_id


async def test_score_tells_its_id_in_a_trailer_too(channel):
    call = generation_pb2_grpc.GenerationServiceStub(channel).Score(generation_pb2.ScoreRequest(text="x"))
    response = await call
    assert trailer(await call.trailing_metadata(), REQUEST_ID_KEY) == response.request_id


# --- an engine that dies, and one that hangs ---


async def test_a_dead_engine_ends_streams_health_and_the_process():
    async with serving(slots=1) as server, connect(server) as client, raw_channel(server) as channel:
        running = asyncio.create_task(server.run(asyncio.Event(), asyncio.Event()))
        gate = Gate(server)
        streams = [asyncio.create_task(client.complete("x", max_tokens=99, ignore_eos=True)) for _ in range(3)]
        await eventually(lambda: server.engine.admission._num_tokens == 2)  # one runs, two wait behind it

        def crash():
            raise KeyError("secret")

        server.engine._decode = crash
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=LIVENESS))
        assert (await watch.read()).status == SERVING
        gate.open()
        failures = await asyncio.gather(*streams, return_exceptions=True)
        assert [type(failure) for failure in failures] == [EngineFailed] * 3
        assert not any(LEAK.search(str(failure)) for failure in failures)
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        assert await running == 1
        assert outcomes(server)["engine_error"] == 3
        assert sample(server, "telltale_engine_up") == 0


async def test_a_request_that_comes_while_the_engine_dies_is_not_forgotten(monkeypatch):
    """It has a place, and is being tokenised, when the engine goes."""
    async with serving() as server, raw_channel(server) as channel:
        read = wire_requests.RequestReader.read_generate

        def die_first(*args, **kwargs):
            def crash():
                raise KeyError("secret")

            server.engine.step = crash
            server.engine.finish_all()  # wakes it up
            server.engine._thread.join(10)
            return read(*args, **kwargs)

        monkeypatch.setattr(wire_requests.RequestReader, "read_generate", die_first)
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(generate_message())
        async with asyncio.timeout(10):
            error = await fail(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert server.engine.num_active == 0
        assert outcomes(server) == {"unavailable": 1}


async def test_a_server_whose_model_cannot_run_does_not_start(monkeypatch):
    def broken(_runner):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(ModelRunner, "warm_up", broken)
    server = Server(Settings(grpc_port=0, http_port=0), parts())
    with pytest.raises(NotReady, match="model failed"):
        await server.start()
    await server.close()


async def test_a_step_that_hangs_fails_liveness_until_it_comes_back():
    async with serving(stall_seconds=0.05) as server, raw_channel(server) as channel:
        gate = Gate(server)
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(generate_message(max_tokens=2))
        await eventually(lambda: server.engine.stalled_seconds() > 0.05)
        await server.update_health()
        assert await health(channel, LIVENESS) == await health(channel, GENERATION.full_name) == NOT_SERVING
        code, facts = await healthz(server)
        assert (code, facts["engine_up"]) == (503, True)
        assert facts["stalled_seconds"] >= 0.05
        gate.open()
        assert await status(call) is grpc.StatusCode.OK
        await eventually(lambda: server.engine.stalled_seconds() == 0)
        await server.update_health()
        assert await health(channel, LIVENESS) == await health(channel, GENERATION.full_name) == SERVING


async def test_a_busy_server_is_alive():
    async with serving(slots=1, stall_seconds=30) as server, raw_channel(server) as channel:
        gate = Gate(server)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        calls = [stub.Generate(generate_message(max_tokens=2)) for _ in range(20)]
        await eventually(lambda: server.engine.num_active == 20)
        await server.update_health()
        assert await health(channel, LIVENESS) == await health(channel, GENERATION.full_name) == SERVING
        gate.open()
        assert set(await asyncio.gather(*map(status, calls))) == {grpc.StatusCode.OK}


# --- a disk that is slow ---


async def test_a_drain_waits_for_the_alerts_of_the_last_step(tmp_path, monkeypatch):
    """Their requests have left their slots by then, and neither they nor watchers have been told."""
    is_appending, may_end = threading.Event(), threading.Event()
    append = JournalKeeper.append

    def append_slowly(keeper, records):
        append(keeper, records)
        is_appending.set()
        assert may_end.wait(20), "the disk never came back"

    monkeypatch.setattr(JournalKeeper, "append", append_slowly)
    path = str(tmp_path / "alerts.sqlite")
    settings = Settings(grpc_port=0, http_port=0, journal=path, drain_delay_seconds=0.0)
    server = Server(settings, parts(), JournalKeeper.open(settings))
    await server.start()
    stop, hurry = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(server.run(stop, hurry))
    try:
        async with connect(server) as client:
            watching = asyncio.create_task(told_to_watchers(client))
            await eventually(lambda: server.delivery._watchers)
            asked = asyncio.create_task(client.complete("The sea", max_tokens=3, ignore_eos=True, monitors=[ALWAYS]))
            await eventually(is_appending.is_set)
            with monkeypatch.context() as patch:
                patch.setattr(server_module, "_STOP_GRACE_SECONDS", 0.0)  # of a server that does not wait
                stop.set()
                await eventually(lambda: server.engine.admission.is_draining)
            may_end.set()
            reply, watched = await asyncio.gather(asked, watching)
    finally:
        may_end.set()
        stop.set()
        assert await running == 0
    assert reply.finished.reason == "length"
    assert watched == [alert.alert_id for alert in reply.alerts] != []


async def told_to_watchers(client):
    """Ids of all alerts, until the server ends the stream."""
    told = []
    with pytest.raises(NotReady, match="ended the stream"):
        async for alert in client.watch_alerts():
            told.append(alert.alert_id)
    return told
