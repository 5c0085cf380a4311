"""The client over a real port, against a server that has no model: events, retries, cancellation, errors."""

import asyncio
import re
import struct
import textwrap
from contextlib import aclosing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import grpc
import grpc.aio
import pytest
from fake_server import Failure, FakeServer, invalid, reply
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from telltale.v1 import alert_pb2, feature_pb2, generation_pb2, guard_pb2, types_pb2

from service import (
    client_alerts,
    client_catalog,
    client_events,
    client_features,
    client_guards,
    client_monitors,
    client_reply,
    client_request,
    client_twin,
    client_wire,
    errors,
    rpc,
)
from service.client import TelltaleClient
from service.client_calls import RetryPolicy
from service.client_channel import open_channel
from service.client_events import Alert, Finished, Started, Token
from service.client_request import AlertCondition, AllOf, AnyOf, Hold, Message, Policy, Steering
from service.client_status import ALERT_NOT_KEPT, SLOW_CONSUMER, to_error

CLIENT_PAGE = Path(__file__).parents[1] / "docs" / "client.md"
AT_ONCE = RetryPolicy(base_delay_seconds=0.0)
UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE, "draining")


def queue_full(seconds: float = 0.001) -> Failure:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMicroseconds(int(seconds * 1e6))
    return Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", [info])


@pytest.fixture(scope="module")
async def server():
    async with FakeServer() as server:
        yield server


@pytest.fixture
async def fake(server):
    await server.reset()
    return server


@pytest.fixture
async def client(fake):
    async with TelltaleClient(fake.target, retry=AT_ONCE) as client:
        yield client


# Generating


async def test_events_come_in_order_one_token_each(client):
    events = [event async for event in client.generate("x")]
    assert [type(event) for event in events] == [Started, Token, Token, Alert, Token, Finished]


async def test_the_examples_of_the_page_run_as_they_stand(fake, capsys):
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", CLIENT_PAGE.read_text(encoding="utf-8"), re.M)
    programs = [textwrap.dedent(block) for block in blocks if "    import asyncio" in block]
    assert len(programs) == 2
    for program in programs:
        assert "127.0.0.1:50051" in program
        await asyncio.to_thread(exec, program.replace("127.0.0.1:50051", fake.target), {})
    assert "alert: lying 0.75" in capsys.readouterr().out
    (steering,) = fake.requests[-1].steering
    assert (steering.name, steering.unit, steering.scope, fake.requests[-1].baseline) == (
        "lying", types_pb2.STRENGTH_UNIT_RELATIVE, types_pb2.POSITION_SCOPE_GENERATED, True,
    )  # fmt: skip


def test_the_page_says_where_parts_of_requests_are():
    page = CLIENT_PAGE.read_text(encoding="utf-8")
    (named,) = re.findall(r"made of - (.*?) - is in\s+`service.client_request`", page, re.S)
    assert set(re.findall(r"`(\w+)`", named)) == {
        name
        for name, kind in vars(client_request).items()
        if is_dataclass(kind) and kind.__module__ == client_request.__name__
    }


async def test_readings_are_known_by_name_and_by_latent(client):
    tokens = [event async for event in client.generate("x") if isinstance(event, Token)]
    assert [token.reading("lying") for token in tokens] == [0.0, 3.0, 1.0]
    assert tokens[1].reading(7) == 3.0
    assert tokens[1].reading(30) == 0.5
    with pytest.raises(KeyError, match="'hedging' is not watched: \\['lying', '30'\\]"):
        tokens[1].reading("hedging")


async def test_massive_activations_are_known_by_their_flag(client, fake):
    responses = reply()
    responses[1].tokens.tokens[1].off_scale = True
    fake.reply = lambda: responses
    assert [token.off_scale for token in (await client.complete("x")).tokens] == [False, True, False]


async def test_complete_gathers_the_reply(client):
    reply = await client.complete("x")
    assert reply.text == "Hello\x1b[2J ✓\n"
    assert reply.readings("lying") == [0.0, 3.0, 1.0]
    assert reply.started.seed == 2**63
    assert reply.started.last_prompt_token.reading("lying") == 1.0
    assert [alert.monitor for alert in reply.alerts] == ["lying"]
    assert (reply.finished.reason, reply.finished.usage.completion_tokens) == ("length", 3)
    assert reply.finished.timings.decode_seconds == pytest.approx(0.1)
    assert reply.finished.timings.queue_seconds is None
    assert reply.finished.monitors[0].mean_score is None
    assert reply.prompt == ()


async def test_the_request_says_what_was_asked(client, fake):
    steering = Steering(direction="lying", op="set", strength=2.5, unit="relative", scope="generated", window=(1, 9))
    await client.complete(
        [Message("system", "s"), {"role": "user", "content": "u"}],
        temperature=0.0,
        seed=5,
        stop=["END"],
        watch=["hedging", 3],
        monitors=["lying"],
        top_features=4,
        include_prompt=True,
        steering=[steering, Steering(direction=[1.0, -2.0], op="project_out"), Steering(direction=9, strength=1)],
        policies=[Policy(monitor="lying", action="steer", steering=[Steering(direction=b"\0" * 4)])],
        label="job",
    )
    request = fake.requests[-1]
    assert [message.role for message in request.chat.messages] == ["system", "user"]
    assert request.sampling.HasField("temperature") and not request.sampling.HasField("top_p")
    assert (request.sampling.seed, list(request.sampling.stop)) == (5, ["END"])
    assert list(request.watch.features) == [9, 3]
    assert (list(request.watch.monitors), request.watch.top_features, request.watch.include_prompt) == (["lying"], 4, 1)
    first, second, third = request.steering
    assert (first.name, first.op, first.strength) == ("lying", types_pb2.STEERING_OP_SET, 2.5)
    assert (first.unit, first.scope) == (types_pb2.STRENGTH_UNIT_RELATIVE, types_pb2.POSITION_SCOPE_GENERATED)
    assert (first.window.start, first.window.end) == (1, 9)
    assert second.vector == struct.pack("<2f", 1.0, -2.0)
    assert (third.feature, third.op) == (9, types_pb2.STEERING_OP_ADD)
    assert request.policies[0].action == types_pb2.POLICY_ACTION_STEER
    assert request.policies[0].steering[0].vector == b"\0" * 4
    assert request.label == "job"


async def test_an_unset_option_stays_unset_on_the_wire(client, fake):
    await client.complete([1, 2, 3])
    assert fake.requests == [
        generation_pb2.GenerateRequest(token_ids=types_pb2.TokenIds(ids=[1, 2, 3]), watch=types_pb2.Watch())
    ]


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ([], {}, "prompt"),
        ("x", {"max_tokens": -1}, "sampling.max_tokens"),
        ("x", {"temperature": "hot"}, "sampling.temperature"),
        ("x", {"stop": "END"}, "sampling.stop"),
        ("x", {"watch": "lying"}, "watch"),
        ("x", {"watch": [-1]}, "watch.features"),
        ([1, "2"], {}, "token_ids.ids"),
        ([{"role": "user"}], {}, "chat.messages[0]"),
        ([Message("user", "x"), 3], {}, "chat.messages[1]"),
        ("x", {"steering": [Steering(direction=1, op="ad")]}, "steering[0].op"),
        ("x", {"steering": [Steering(direction=1), Steering(direction=[1e99])]}, "steering[1].vector"),
        ("x", {"steering": [Steering(direction=1, window=(-1, 2))]}, "steering[0].window.start"),
        ("x", {"policies": [Policy(monitor="m", action="halt")]}, "policies[0].action"),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_field(client, fake, prompt, options, field):
    with pytest.raises(errors.InvalidRequest) as caught:
        await client.complete(prompt, **options)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert fake.requests == []


@pytest.mark.parametrize("field", ["monitors", "severities", "states"])
async def test_a_text_where_a_list_belongs_is_refused(client, field):
    """To Python it is a list of one-letter names, of which no alert has any."""
    with pytest.raises(errors.InvalidRequest) as caught:
        await client.journal.list_alerts(**{field: "deception"})
    (violation,) = caught.value.violations
    assert (violation.field, violation.description) == (field, "must be a list of names. Got 'deception'.")


async def test_a_text_where_monitors_to_watch_belong_is_refused(client, fake):
    with pytest.raises(errors.InvalidRequest, match=r"monitors: must be a list of names\. Got 'deception'\."):
        await anext(client.watch_alerts("deception"))
    assert fake.requests == []


async def test_a_misspelt_option_is_refused(client):
    with pytest.raises(TypeError, match="unknown options temprature"):
        await client.complete("x", temprature=1)


async def test_a_stream_without_an_end_is_an_error(client, fake):
    fake.reply = lambda: reply()[:-1]
    with pytest.raises(errors.RpcFailed, match="without Finished"):
        await client.complete("x")


# Trying again


@pytest.mark.parametrize("failure", [UNAVAILABLE, queue_full()])
async def test_a_call_that_got_no_answer_is_tried_again(client, fake, failure):
    fake.failures = [failure, failure]
    assert (await client.complete("x")).finished.reason == "length"
    assert len(fake.requests) == 3


async def test_attempts_are_bounded(client, fake):
    fake.failures = [UNAVAILABLE] * 9
    with pytest.raises(errors.NotReady, match="draining"):
        await client.complete("x")
    assert len(fake.requests) == AT_ONCE.max_attempts


async def test_nothing_is_tried_again_after_the_first_message(client, fake):
    fake.fail_after = (1, UNAVAILABLE)
    seen = []
    with pytest.raises(errors.NotReady):
        async for event in client.generate("x"):
            seen.append(event)
    assert [type(event) for event in seen] == [Started]
    assert len(fake.requests) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN])
async def test_other_failures_are_not_tried_again(client, fake, code):
    fake.failures = [Failure(code)]
    with pytest.raises(errors.ServiceError):
        await client.complete("x")
    assert len(fake.requests) == 1


async def test_unary_calls_are_tried_again_too(client, fake):
    fake.failures = [UNAVAILABLE]
    assert (await client.server_info()).version == "1.2.3"


def rpc_error(code: grpc.StatusCode, **trailers: str) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*((key.replace("_", "-"), value) for key, value in trailers.items()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata)


def test_waits_grow_and_are_jittered_downwards():
    policy = RetryPolicy(max_attempts=9, base_delay_seconds=1.0, max_delay_seconds=4.0)
    unavailable = rpc_error(grpc.StatusCode.UNAVAILABLE)
    for attempt, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (8, 4.0)):
        assert longest / 2 <= policy.delay_seconds(attempt, unavailable) <= longest
    assert policy.delay_seconds(9, unavailable) is None


def test_the_server_is_never_asked_again_before_the_time_it_named():
    exhausted = rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms="2000")
    assert 2.0 <= RetryPolicy().delay_seconds(1, exhausted) <= 2.5
    assert RetryPolicy(max_delay_seconds=1.0).delay_seconds(1, exhausted) is None
    assert RetryPolicy().delay_seconds(1, rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED)) is None


async def test_a_wait_beyond_the_deadline_is_not_begun(client, fake):
    fake.failures = [queue_full(9.0)]
    with pytest.raises(errors.QueueFull) as caught:
        await client.complete("x", timeout_seconds=5.0)
    assert caught.value.retry_after_seconds == pytest.approx(9.0)


# Cancelling


async def test_closing_the_iterator_cancels_the_call(client, fake):
    fake.hang_after = 2
    async with asyncio.timeout(10):
        async with aclosing(client.generate("x")) as events:
            async for event in events:
                if isinstance(event, Token):
                    break
        assert await fake.cancelled.wait()


async def test_cancelling_a_task_that_waits_for_its_first_message_cancels_the_call(client, fake):
    fake.hang_after = 0
    task = asyncio.ensure_future(client.complete("x"))
    async with asyncio.timeout(10):
        await fake.received.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await fake.cancelled.wait()


async def test_the_timeout_is_the_calls_deadline(client, fake):
    fake.hang_after = 1
    with pytest.raises(errors.DeadlineExceeded):
        await client.complete("x", timeout_seconds=0.2)
    async with asyncio.timeout(10):
        await fake.cancelled.wait()


# Errors


async def test_an_invalid_request_lists_its_fields(client, fake):
    fake.failures = [invalid(("sampling.top_p", "must be in (0, 1]. Got 2."), ("label", "must be printable."))]
    with pytest.raises(errors.InvalidRequest) as caught:
        await client.complete("x")
    assert [str(violation) for violation in caught.value.violations] == [
        "sampling.top_p: must be in (0, 1]. Got 2.",
        "label: must be printable.",
    ]
    assert "sampling.top_p: must be in (0, 1]. Got 2." in str(caught.value)


def error_info(reason: str, **metadata: str) -> list:
    return [error_details_pb2.ErrorInfo(reason=reason, domain="telltale", metadata=metadata)]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure(grpc.StatusCode.NOT_FOUND, "gone"), errors.NotFound),
        (Failure(grpc.StatusCode.UNAUTHENTICATED, "who?"), errors.AccessDenied),
        (Failure(grpc.StatusCode.PERMISSION_DENIED, "no"), errors.AccessDenied),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "late"), errors.DeadlineExceeded),
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large"), errors.RpcFailed),
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow", error_info(SLOW_CONSUMER)), errors.SlowConsumer),
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "disk", error_info(ALERT_NOT_KEPT)), errors.AlertNotKept),
        (Failure(grpc.StatusCode.FAILED_PRECONDITION, "no journal"), errors.NotPossible),
        (Failure(grpc.StatusCode.INTERNAL, "id e1", error_info("ENGINE_FAILED", error_id="e1")), errors.EngineFailed),
        (Failure(grpc.StatusCode.INTERNAL, "what"), errors.RpcFailed),
        (Failure(grpc.StatusCode.UNIMPLEMENTED, "newer"), errors.RpcFailed),
    ],
)
async def test_each_status_becomes_its_exception(client, fake, failure, kind):
    fake.failures = [failure]
    with pytest.raises(kind, match=failure.message) as caught:
        await client.complete("x")
    assert type(caught.value) is kind
    assert getattr(caught.value, "error_id", "e1") == "e1"


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest([errors.FieldViolation("a", "must be b. Got c."), errors.FieldViolation("d", "e")]),
        errors.NotFound("feature 'lyng'", suggestions=["lying"]),
        errors.NoDictionary("no features here"),
        errors.AccessDenied("no key"),
        errors.QueueFull(retry_after_seconds=2.5),
        errors.SlowConsumer("too slow"),
        errors.AlertNotKept(),
        errors.NotPossible("no journal"),
        errors.NotReady("draining"),
        errors.DeadlineExceeded("late"),
        errors.EngineFailed("e1"),
    ],
)
def test_what_the_server_raises_is_what_the_client_raises(error):
    sent = rpc_status.to_status(rpc.to_status(error))
    trailers = grpc.aio.Metadata(*sent.trailing_metadata)
    received = to_error(grpc.aio.AioRpcError(sent.code, grpc.aio.Metadata(), trailers, sent.details))
    assert type(received) is type(error)
    assert str(received) == str(error)
    for attribute in ("violations", "retry_after_seconds", "error_id"):
        assert getattr(received, attribute, None) == getattr(error, attribute, None)


async def test_a_missing_server_is_not_ready():
    async with TelltaleClient("127.0.0.1:1", retry=RetryPolicy(max_attempts=1)) as nobody:
        with pytest.raises(errors.NotReady, match=r"^No server can be reached there: .*127\.0\.0\.1:1: .*\?$"):
            await nobody.server_info()


async def test_the_api_key_is_sent_with_every_call(fake):
    async with TelltaleClient(fake.target, api_key="k1") as client:
        await client.server_info()
        assert fake.metadata["authorization"] == "Bearer k1"
        await client.complete("x")
        assert fake.metadata["authorization"] == "Bearer k1"


async def test_a_missing_certificate_file_is_a_config_error(tmp_path):
    with pytest.raises(errors.ConfigError, match=r"ca\.pem can't be read"):
        open_channel("x:1", tls=tmp_path / "ca.pem")


# What the server has


async def test_score_knows_its_readings(client, fake):
    result = await client.score("text", watch=["lying"])
    assert result.readings("lying") == [99.0, 4.0, 2.0]
    assert result.tokens[0].is_first_position
    assert (result.steering, result.monitors[0].max_score) == (None, None)
    assert list(fake.requests[-1].watch.features) == [7]


async def test_features_are_listed_over_all_pages(client, fake):
    assert [feature.name for feature in await client.list_features()] == ["lying", "hedging", "honesty"]
    assert len(fake.requests) == 2


async def test_a_limit_asks_for_no_more_than_that(client, fake):
    assert [feature.index for feature in await client.list_features(limit=1)] == [7]
    assert [request.page_size for request in fake.requests] == [1]
    assert await client.list_features(limit=0) == [] and len(fake.requests) == 1
    with pytest.raises(errors.InvalidRequest, match=r"limit: must be 0 or more\. Got -1"):
        await client.search_features("lies", limit=-1)
    assert [feature.index for feature in await client.list_features(order="density", include_unnamed=True)] == [
        7,
        9,
        12,
    ]
    assert (fake.requests[-1].include_unnamed, fake.requests[-1].order) == (True, feature_pb2.FEATURE_ORDER_DENSITY)
    with pytest.raises(errors.InvalidRequest, match=r"order: must be one of index, density, .*Got 'size'"):
        await client.list_features(order="size")


async def test_matches_come_with_where_the_words_stand(client, fake):
    matches = await client.search_features("lies doubt", limit=3)
    assert [match.feature.label for match in matches] == ["lying", "hedging", "honesty"]
    assert matches[0].matched == ("name", "active_tokens") and matches[1].matched == ("unspecified",)
    assert matches[0].feature.examples[0].text == "A lie,\n" and matches[0].feature.statistics.num_active == 30
    assert fake.requests[-1].text == "lies doubt"
    await client.search_features(like="hedging")
    assert (fake.requests[-1].WhichOneof("query"), fake.requests[-1].like_feature) == ("like_feature", 9)


@pytest.mark.parametrize(
    ("options", "field"), [({}, "query"), ({"text": "x", "like": 3}, "query"), ({"like": -1}, "query")]
)
async def test_a_search_for_nothing_is_invalid(client, options, field):
    with pytest.raises(errors.InvalidRequest) as refused:
        await client.search_features(**options)
    assert [v.field for v in refused.value.violations] == [field]


async def test_a_feature_has_its_evidence(client):
    assert (await client.get_feature("lying")).evidence == {"auroc": 0.9, "num_positive": 200}
    assert (await client.get_feature(9)).name == "hedging"
    with pytest.raises(errors.NotFound):
        await client.get_feature("nobody")
    with pytest.raises(errors.InvalidRequest, match="must be 0 or more"):
        await client.get_feature(-1)


async def test_an_unknown_name_lists_the_near_ones(client):
    with pytest.raises(errors.NotFound, match=r"No such feature 'honest'\. Did you mean honesty\?"):
        await client.complete("x", watch=["honest"])


async def test_server_info_and_monitors_are_typed(client):
    info = await client.server_info()
    assert (info.model.name, info.limits.slots, info.default_monitors) == ("tiny", 4, ("lying",))
    assert (info.sae.verified, info.sae.mismatches) == (False, ("other weights",))
    assert (info.sampling_defaults.temperature, info.sampling_defaults.seed) == (0.0, None)
    assert [(monitor.name, monitor.severity) for monitor in await client.list_monitors()] == [("lying", "warning")]
    one = await client.get_monitor("lying")
    assert (one.kind, one.version, one.evidence) == ("feature", 2, {"auroc": 0.9})
    with pytest.raises(errors.NotFound):
        await client.get_monitor("nobody")


async def test_the_end_of_the_alerts_is_an_error(client):
    alerts = []
    with pytest.raises(errors.NotReady, match="ended the stream of alerts"):
        async for alert in client.watch_alerts():
            alerts.append(alert)
    assert [(alert.state, alert.contributions[0].feature) for alert in alerts] == [("firing", 7)]


async def test_wait_ready_waits_for_the_health_service(client, fake):
    await fake.set_ready(False)
    waiting = asyncio.ensure_future(client.wait_ready(timeout_seconds=10))
    with pytest.raises(errors.NotReady, match=r"not ready after 0\.05 s: NOT_SERVING"):
        await client.wait_ready(timeout_seconds=0.05)
    await fake.set_ready(True)
    await waiting


# The typed events against the wire contract

PAIRS = [
    (client_events.Token, types_pb2.Token),
    (client_events.FeatureReading, types_pb2.FeatureReading),
    (client_events.MonitorScore, types_pb2.MonitorScore),
    (client_events.Contribution, types_pb2.Contribution),
    (client_events.ComponentPart, types_pb2.ComponentPart),
    (client_events.Alert, types_pb2.Alert),
    (client_events.Started, generation_pb2.Started),
    (client_events.Usage, generation_pb2.Usage),
    (client_events.Timings, generation_pb2.Timings),
    (client_events.SteeringReport, generation_pb2.SteeringReport),
    (client_events.MonitorSummary, generation_pb2.MonitorSummary),
    (client_events.Finished, generation_pb2.Finished),
    (client_reply.ScoreResult, generation_pb2.ScoreResponse),
    (client_events.Twin, generation_pb2.Twin),
    (client_twin.FeatureDifference, generation_pb2.FeatureDifference),
    (client_twin.MonitorDifference, generation_pb2.MonitorDifference),
    (client_guards.ReconstructionGuard, guard_pb2.ReconstructionGuard),
    (client_guards.Fidelity, guard_pb2.Fidelity),
    (client_guards.MonitorInput, guard_pb2.MonitorInput),
    (client_guards.MonitorDrift, guard_pb2.MonitorDrift),
    (client_catalog.WatchedFeature, types_pb2.WatchedFeature),
    (client_monitors.Monitor, types_pb2.Monitor),
    (client_monitors.MonitorComponent, types_pb2.MonitorComponent),
    (client_monitors.MonitorLevel, types_pb2.MonitorLevel),
    (client_monitors.MonitorStratum, types_pb2.MonitorStratum),
    (client_events.Withheld, types_pb2.Withheld),
    (client_catalog.ModelInfo, types_pb2.ModelInfo),
    (client_catalog.SaeInfo, types_pb2.SaeInfo),
    (client_catalog.Limits, generation_pb2.Limits),
    (client_catalog.SamplingParams, types_pb2.SamplingParams),
    (client_catalog.ServerInfo, generation_pb2.GetServerInfoResponse),
    (client_catalog.JournalInfo, generation_pb2.JournalInfo),
    (client_alerts.Acknowledgement, alert_pb2.Acknowledgement),
    (client_alerts.Review, alert_pb2.Review),
    (client_alerts.JournalAlert, alert_pb2.JournalAlert),
    (client_alerts.AlertPage, alert_pb2.ListAlertsResponse),
    (client_alerts.MonitorPrecision, alert_pb2.MonitorPrecision),
    (client_alerts.SeriesComparison, alert_pb2.SeriesComparison),
    (client_alerts.ReplayComparison, alert_pb2.ReplayComparison),
    (client_alerts.AlertReplay, alert_pb2.ReplayAlertResponse),
    (client_features.Feature, feature_pb2.Feature),
    (client_features.LatentStatistics, feature_pb2.LatentStatistics),
    (client_features.SourceShare, feature_pb2.SourceShare),
    (client_features.Histogram, feature_pb2.Histogram),
    (client_features.Explanation, feature_pb2.Explanation),
    (client_features.ExplanationScore, feature_pb2.ExplanationScore),
    (client_features.Example, feature_pb2.Example),
    (client_features.ExampleToken, feature_pb2.ExampleToken),
    (client_features.TokenEffect, feature_pb2.TokenEffect),
    (client_features.FeatureMatch, feature_pb2.FeatureMatch),
]


@pytest.mark.parametrize(("cls", "message"), PAIRS)
def test_every_field_of_the_contract_has_its_attribute(cls, message):
    sources = {field.name: client_wire.wire_field(field.name, message.DESCRIPTOR) for field in fields(cls)}
    ours_alone = {name for name, source in sources.items() if source is None}
    assert ours_alone == ({"watched"} if cls is client_events.Token else set())
    assert {source.name for source in sources.values() if source} == set(message.DESCRIPTOR.fields_by_name)
    assert isinstance(client_wire.decode(cls, message()), cls)


@pytest.mark.parametrize(
    ("literal", "enum", "prefix"),
    [
        (client_events.FinishReason, generation_pb2.FinishReason, "FINISH_REASON_"),
        (client_events.AlertState, types_pb2.AlertState, "ALERT_STATE_"),
        (client_monitors.Severity, types_pb2.Severity, "SEVERITY_"),
        (client_monitors.MonitorKind, types_pb2.MonitorKind, "MONITOR_KIND_"),
        (client_request.SteeringOp, types_pb2.SteeringOp, "STEERING_OP_"),
        (client_request.StrengthUnit, types_pb2.StrengthUnit, "STRENGTH_UNIT_"),
        (client_request.PositionScope, types_pb2.PositionScope, "POSITION_SCOPE_"),
        (client_request.PolicyAction, types_pb2.PolicyAction, "POLICY_ACTION_"),
        (client_alerts.Verdict, alert_pb2.Verdict, "VERDICT_"),
        (client_guards.InputState, guard_pb2.InputState, "INPUT_STATE_"),
        (client_features.FeatureOrder, feature_pb2.FeatureOrder, "FEATURE_ORDER_"),
        (client_features.MatchedField, feature_pb2.MatchedField, "MATCHED_FIELD_"),
    ],
)
def test_choices_are_those_of_the_contract(literal, enum, prefix):
    names = {name.removeprefix(prefix).lower() for name, _ in enum.items()}
    assert set(get_args(literal)) | {"unspecified"} == names


def test_a_policy_is_written_in_full():
    alert = AlertCondition(monitor="a", level="critical", roles=["user"], has_fired=True)
    policy = Policy(
        action="stop", name="p", condition=AllOf([alert, AnyOf([AlertCondition(monitor="b")])]), hold=Hold()
    )
    [written] = client_request.generate_request("x", {"policies": [policy]}, features=[]).policies
    inner = types_pb2.AlertCondition(monitor="a", level=types_pb2.SEVERITY_CRITICAL, roles=["user"], has_fired=True)
    other = types_pb2.Condition(alert=types_pb2.AlertCondition(monitor="b"))
    parts = [types_pb2.Condition(alert=inner), types_pb2.Condition(any_of=types_pb2.Conditions(conditions=[other]))]
    assert written == types_pb2.Policy(
        action=types_pb2.POLICY_ACTION_STOP,
        name="p",
        condition=types_pb2.Condition(all_of=types_pb2.Conditions(conditions=parts)),
        hold=types_pb2.Hold(),
    )
    short = Policy(monitor="a", action="stop", hold=Hold(tokens=3, reveal=True))
    [written] = client_request.generate_request("x", {"policies": [short]}, features=[]).policies
    assert (written.hold.tokens, written.hold.reveal, written.HasField("condition")) == (3, True, False)


def test_every_option_of_a_request_exists_in_the_contract():
    sampling = set(types_pb2.SamplingParams.DESCRIPTOR.fields_by_name)
    watch = set(types_pb2.Watch.DESCRIPTOR.fields_by_name) - {"features"} | {"watch"}
    request = {"steering", "policies", "label", "baseline"}
    assert client_request.GenerateOptions.__optional_keys__ == sampling | watch | request | {"timeout_seconds"}
    assert client_request.ScoreOptions.__optional_keys__ == watch | {"steering", "label", "timeout_seconds"}


def test_an_enum_value_of_a_newer_server_is_unspecified():
    assert client_wire.decode(Finished, generation_pb2.Finished(reason=99)).reason == "unspecified"


def test_an_event_of_a_newer_server_is_skipped():
    assert client_wire.decode_event(generation_pb2.GenerateResponse(), ()) == []
