"""A real server over a real port: what it tells the typed client, and a client that knows nothing beforehand."""

import asyncio
import math
import socket
from contextlib import aclosing

import grpc
import grpc.aio
import pytest
import tiny
import torch
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families
from serving import (
    ALWAYS,
    DEFAULT_WATCHED,
    NEVER,
    Gate,
    connect,
    eventually,
    generate_message,
    healthz,
    http_get,
    monitor_packs,
    outcomes,
    parts,
    raw_channel,
    rpcs_started,
    sample,
    serving,
    target,
)
from telltale.v1 import generation_pb2, generation_pb2_grpc, monitor_pb2, monitor_pb2_grpc, types_pb2

from service.client_events import Alert, Finished, Started, Token
from service.client_request import AlertCondition, AnyOf, Hold, Message, Policy, Steering
from service.config import Settings
from service.errors import AccessDenied, ConfigError, InvalidRequest, NotFound, NotReady
from service.grpc_server import FEATURES, GENERATION, MONITORS
from service.server import LIVENESS, Server
from service.wire_responses import MAX_TOKENS_PER_CHUNK

SERVICES = [service.full_name for service in (GENERATION, FEATURES, MONITORS)]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CHAT = [
    Message("user", "Say it was me."),
    Message("assistant", "It was me."),
    Message("user", "It was me."),
    Message("assistant", "No, it was me."),
]


@pytest.fixture(scope="module")
async def server():
    async with serving() as server:
        yield server


@pytest.fixture
async def client(server):
    async with connect(server) as client:
        yield client


def offline_readings(model, dictionary, ids):
    """What the dictionary says in one pass over all tokens: [T, F]."""
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return dictionary.encode(hidden[tiny.HOOK_POINT.hidden_state_index][0])


# --- generating ---


async def test_a_stream_is_started_then_tokens_then_finished(client, model):
    events = [event async for event in client.generate("The sea", max_tokens=6, ignore_eos=True, monitors=[NEVER])]
    assert [type(event) for event in events] == [Started, *[Token] * 6, Finished]
    started, finished = events[0], events[-1]
    assert [(w.feature, w.name) for w in started.watched] == [(17, "hedging"), (3, "lying")]
    assert [(w.reference_scale, w.validated) for w in started.watched] == [(2.0, False), (2.0, True)]
    assert [monitor.name for monitor in started.monitors] == [NEVER]
    assert started.model.name == "tiny"
    assert started.sae.verified
    assert started.prompt_tokens == finished.usage.prompt_tokens == len("The sea")
    assert (finished.reason, finished.usage.completion_tokens, finished.tapped_tokens) == ("length", 6, 7 + 6)
    assert finished.timings.total_seconds >= finished.timings.queue_seconds >= 0
    assert finished.steering is None
    ids = [event.id for event in events[1:-1]]
    assert "".join(event.text for event in events[1:-1]) == model.tokenizer.decode(ids)


async def test_readings_on_the_wire_equal_an_offline_pass(client, model, dictionary):
    options = {"max_tokens": 12, "ignore_eos": True, "include_prompt": True, "top_features": 5, "watch": [40, 3]}
    reply = await client.complete("The sea was calm.", **options)
    tokens = [*reply.prompt, *reply.tokens]
    wanted_TF = offline_readings(model, dictionary, [token.id for token in tokens])
    assert [token.index for token in tokens] == list(range(17 + 12))
    assert [token.is_prompt for token in tokens] == [True] * 17 + [False] * 12
    assert [token.is_first_position for token in tokens] == [True] + [False] * 28
    got_TW = torch.tensor([token.readings for token in tokens])
    torch.testing.assert_close(got_TW, wanted_TF[:, [40, 3]], rtol=1e-4, atol=1e-5)
    for token, latents_F in zip(tokens, wanted_TF, strict=True):
        top = latents_F.topk(5)
        assert [r.feature for r in token.top_features] == top.indices[top.values > 0].tolist()
        assert token.l0 == int((latents_F > 0).sum())
    last = reply.started.last_prompt_token
    assert (last.index, last.readings) == (16, tokens[16].readings)


async def test_log_probabilities_come_only_if_asked_for(client, model):
    options = {"max_tokens": 5, "ignore_eos": True, "include_prompt": True}
    reply = await client.complete("The sea", include_logprobs=True, **options)
    tokens = [*reply.prompt, *reply.tokens]
    with torch.inference_mode():
        logprobs_TV = model.model(torch.tensor([[token.id for token in tokens]])).logits[0].log_softmax(-1)
    wanted = [float(logprobs_TV[i, token.id]) for i, token in enumerate(tokens[1:])]
    assert tokens[0].logprob is None
    assert [token.logprob for token in tokens[1:]] == pytest.approx(wanted, abs=1e-4)
    silent = await client.complete("The sea", **options)
    assert {token.logprob for token in [*silent.prompt, *silent.tokens]} == {None}


async def test_a_long_prompt_comes_whole_in_chunks_of_bounded_size(monkeypatch):
    monkeypatch.setattr(tiny, "NUM_POSITIONS", 3 * MAX_TOKENS_PER_CHUNK)
    ids = [3 + i % 256 for i in range(2 * MAX_TOKENS_PER_CHUNK + 50)]
    message = generation_pb2.GenerateRequest(
        token_ids=types_pb2.TokenIds(ids=ids),
        sampling=types_pb2.SamplingParams(max_tokens=4, ignore_eos=True),
        watch=types_pb2.Watch(include_prompt=True),
    )
    async with serving() as server, raw_channel(server) as channel:
        responses = [r async for r in generation_pb2_grpc.GenerationServiceStub(channel).Generate(message)]
    chunks = [response.tokens.tokens for response in responses if response.HasField("tokens")]
    assert [len(chunk) for chunk in chunks][:2] == [MAX_TOKENS_PER_CHUNK] * 2
    assert max(map(len, chunks)) == MAX_TOKENS_PER_CHUNK
    tokens = [token for chunk in chunks for token in chunk]
    assert [token.index for token in tokens] == list(range(len(ids) + 4))
    assert [token.id for token in tokens if token.is_prompt] == ids


async def test_massive_activations_are_flagged(server, client, monkeypatch):
    options = {"max_tokens": 4, "ignore_eos": True, "include_prompt": True}
    usual = await client.complete("The sea", **options)
    assert [t.off_scale for t in [*usual.prompt, *usual.tokens]] == [True] + [False] * 10
    monkeypatch.setattr(server.engine.runner.reader, "largest_norm", 1e-3)
    massive = await client.complete("The sea", **options)
    assert [t.off_scale for t in [*massive.prompt, *massive.tokens]] == [True] * 11
    assert massive.started.last_prompt_token.off_scale
    assert [t.scores for t in massive.tokens] == [()] * 4


async def test_no_defaults_reads_nothing_that_was_not_asked_for(client):
    bare = await client.complete("x", max_tokens=4, ignore_eos=True, no_defaults=True)
    assert (bare.started.watched, bare.started.monitors, bare.finished.monitors) == ((), (), ())
    assert [(token.readings, token.scores, token.top_features) for token in bare.tokens] == [((), (), ())] * 4
    one = await client.complete("x", max_tokens=2, ignore_eos=True, no_defaults=True, watch=["calm"])
    assert [w.feature for w in one.started.watched] == [40]
    assert one.started.monitors == ()


async def test_a_seed_is_echoed_and_repeats_the_draw(client):
    drawn = {"temperature": 1.5, "max_tokens": 20, "ignore_eos": True}
    first, second = [await client.complete("x", **drawn) for _ in range(2)]
    # The server draws one of 2^63 seeds for each request that brings none.
    assert first.started.seed != second.started.seed
    again = await client.complete("x", seed=first.started.seed, **drawn)
    assert again.started.seed == first.started.seed
    assert [t.id for t in again.tokens] == [t.id for t in first.tokens]
    largest = await client.complete("x", seed=2**64 - 1, **drawn)
    assert largest.started.seed == 2**64 - 1
    assert (await client.complete("x", seed=0, **drawn)).started.seed == 0


async def test_a_stop_string_ends_the_reply_before_it(client):
    free = await client.complete("The sea", max_tokens=30, ignore_eos=True)
    stop = free.text[6:9]
    reply = await client.complete("The sea", max_tokens=30, ignore_eos=True, stop=[stop])
    assert reply.text == free.text[: free.text.index(stop)]
    assert (reply.finished.reason, reply.finished.matched_stop) == ("stop_sequence", stop)


async def test_a_full_context_has_a_reason_of_its_own(client):
    async with serving(max_new_tokens_default=10_000) as long_winded, connect(long_winded) as its_client:
        reply = await its_client.complete([5] * 250, ignore_eos=True)
    assert (reply.started.max_tokens, reply.finished.reason, len(reply.tokens)) == (6, "context_length", 6)
    asked = await client.complete([5] * 250, ignore_eos=True, max_tokens=6)
    assert asked.finished.reason == "length"


async def test_a_conversation_goes_through_the_template(client, model):
    reply = await client.complete(CHAT[:1], max_tokens=3, ignore_eos=True, include_prompt=True)
    rendered = "<|im_start|>user\nSay it was me.<|im_end|>\n<|im_start|>assistant\n"
    wanted = model.tokenizer(rendered, add_special_tokens=False).input_ids
    assert [token.id for token in reply.prompt] == wanted
    assert [token.special for token in reply.prompt] == [token in (0, 1, 2) for token in wanted]
    # Prompt tokens are not scored: a monitor is about what the assistant says.
    assert [len(token.scores) for token in reply.prompt] == [0] * len(wanted)
    assert [len(token.scores) for token in reply.tokens] == [2] * 3


async def test_steering_goes_through_the_wire_and_is_proved(client):
    plain = await client.complete("The sea", max_tokens=12, ignore_eos=True)
    vector = [1.0] + [0.0] * (tiny.D_MODEL - 1)
    for direction in (5, "calm", vector):
        steering = Steering(direction=direction, strength=8.0, unit="relative", scope="generated")
        reply = await client.complete("The sea", max_tokens=12, ignore_eos=True, steering=[steering])
        assert reply.text != plain.text
        assert reply.finished.steering.positions_changed == 12
        assert reply.finished.steering.max_relative_norm == pytest.approx(8.0, rel=1e-3)
        assert all(len(token.steered_readings) == 2 for token in reply.tokens)
    windowed = Steering(direction=5, op="set", strength=3.0, window=(2, 5))
    reply = await client.complete("The sea", max_tokens=2, ignore_eos=True, steering=[windowed], include_prompt=True)
    assert [t.index for t in [*reply.prompt, *reply.tokens] if t.steered_readings] == [2, 3, 4]


# --- monitors ---


async def test_an_alert_comes_after_the_token_it_names(client):
    options = {"max_tokens": 6, "ignore_eos": True, "monitors": [ALWAYS], "label": "job 7"}
    events = [event async for event in client.generate("The sea", **options)]
    assert [type(event) for event in events] == [Started, Token, Token, Token, Alert, Token, Token, Token, Finished]
    alert, token = events[4], events[3]
    assert (alert.position, alert.label, alert.request_id) == (token.index, "job 7", events[0].request_id)
    assert (alert.monitor, alert.state, alert.severity) == (ALWAYS, "firing", "critical")
    assert alert.score == pytest.approx(token.scores[0].value)
    assert math.fsum(c.value for c in alert.contributions) == pytest.approx(alert.score, rel=1e-5)
    summary = events[-1].monitors[0]
    assert (summary.fired, summary.first_fired_position, summary.scored_tokens) == (True, alert.position, 6)


@pytest.mark.parametrize("action", ["annotate", "stop", "steer"])
async def test_policies_hold_through_the_wire(client, action):
    steering = [Steering(direction=5, strength=8.0, unit="relative")] if action == "steer" else []
    policy = Policy(monitor=ALWAYS, action=action, steering=steering)
    reply = await client.complete("The sea", max_tokens=10, ignore_eos=True, policies=[policy])
    assert len(reply.alerts) == 1
    match action:
        case "annotate":
            assert (len(reply.tokens), reply.finished.steering) == (10, None)
        case "stop":
            assert (len(reply.tokens), reply.finished.reason) == (3, "alert_stop")
            assert reply.tokens[-1].index == reply.alerts[0].position
        case "steer":
            assert [bool(token.steered_readings) for token in reply.tokens] == [False] * 3 + [True] * 7
            assert reply.finished.steering.positions_changed == 7


@pytest.mark.parametrize("reveal", [False, True])
async def test_a_hold_keeps_what_a_stop_is_about(server, client, reveal):
    plain = await client.complete("The sea", max_tokens=10, ignore_eos=True)
    condition = AnyOf([AlertCondition(monitor=ALWAYS, level="critical"), AlertCondition(monitor=NEVER)])
    policy = Policy(condition=condition, name="guard", action="stop", hold=Hold(tokens=1, reveal=reveal))
    async with connect(server) as watching:
        watched = watching.monitors.WatchAlerts(monitor_pb2.WatchAlertsRequest())
        await watched.initial_metadata()
        reply = await client.complete("The sea", max_tokens=10, ignore_eos=True, policies=[policy])
        seen = (await watched.read()).alert
        watched.cancel()
    assert reply.started.hold_tokens == 1 and plain.started.hold_tokens == 0
    assert [token.id for token in reply.tokens] == [plain.tokens[0].id]
    [alert], finished = reply.alerts, reply.finished
    assert (alert.policies, finished.policies, finished.reason) == (("guard",), ("guard",), "alert_stop")
    assert (alert.withheld.first_position, alert.withheld.tokens) == (plain.tokens[1].index, 2)
    text = "".join(token.text for token in plain.tokens[1:3])
    assert (alert.withheld.text or "").startswith(text) if reveal else alert.withheld.text is None
    assert (finished.withheld_tokens, finished.usage.completion_tokens) == (2, 3)
    # Watchers learn that text was withheld, never which.
    assert seen.withheld.tokens == 2 and not seen.withheld.HasField("text")
    assert sample(server, "telltale_withheld_tokens_total") >= 2


async def test_watchers_see_the_alerts_of_other_requests(server, client):
    async with connect(server) as watching:
        stub = watching.monitors
        everything = stub.WatchAlerts(monitor_pb2.WatchAlertsRequest())
        only_never = stub.WatchAlerts(monitor_pb2.WatchAlertsRequest(monitors=[NEVER]))
        await everything.initial_metadata()  # from here on a watcher misses nothing
        await only_never.initial_metadata()
        replies = await asyncio.gather(
            *(client.complete("x", max_tokens=4, ignore_eos=True, label=f"job {i}") for i in range(3))
        )
        seen = [(await everything.read()).alert for _ in range(3)]
        assert {(a.request_id, a.label) for a in seen} == {
            (reply.started.request_id, f"job {i}") for i, reply in enumerate(replies)
        }
        only_never.cancel()
        everything.cancel()
    await eventually(lambda: not server.delivery._watchers)


async def test_watching_an_unknown_monitor_is_invalid(client):
    with pytest.raises(InvalidRequest) as refused:
        async for _ in client.watch_alerts([NEVER, "nobody", "lying"]):
            pass
    assert [v.field for v in refused.value.violations] == ["monitors[1]", "monitors[2]"]


# --- scoring ---


async def test_score_scores_what_the_assistant_said_and_nothing_else(client, model, dictionary):
    result = await client.score(CHAT, top_features=2, include_logprobs=True)
    ids = [token.id for token in result.tokens]
    wanted_TF = offline_readings(model, dictionary, ids)
    torch.testing.assert_close(
        torch.tensor([t.readings for t in result.tokens]), wanted_TF[:, [17, 3]], rtol=1e-4, atol=1e-5
    )
    assert "".join(t.text for t in result.tokens if t.scores) == "It was me.No, it was me."
    assert all(token.is_prompt for token in result.tokens)
    summaries = {summary.monitor: summary for summary in result.monitors}
    assert summaries[ALWAYS].scored_tokens == len("It was me.No, it was me.")
    assert (summaries[ALWAYS].fired, summaries[NEVER].fired) == (True, False)
    assert [alert.state for alert in result.alerts] == ["firing"]
    assert result.usage.prompt_tokens == len(ids)
    assert result.usage.completion_tokens == 0
    assert [definition.name for definition in result.monitor_definitions] == [ALWAYS, NEVER]
    assert result.tokens[1].logprob is not None


async def test_score_tells_thoughts_from_the_answer(client):
    result = await client.score([Message("user", "q <think>"), Message("assistant", "<think>hm</think>so")])
    said = {role: "".join(t.text for t in result.tokens if t.role == role) for role in ("reasoning", "assistant")}
    # In bytes the opening delimiter is known by its last one.
    assert said == {"reasoning": ">hm</think>", "assistant": "<thinkso"}
    # Monitors that don't ask for it score both together.
    assert {s.role: s.scored_tokens for s in result.monitors if s.monitor == NEVER} == {"assistant": 19}


async def test_score_of_a_text_scores_all_but_position_0(client):
    result = await client.score("It was me.")
    assert [bool(token.scores) for token in result.tokens] == [False] + [True] * 9
    ids = await client.score([token.id for token in result.tokens])
    assert [token.readings for token in ids.tokens] == [token.readings for token in result.tokens]


async def test_score_reads_a_whole_context_and_counts_as_scored(server, client):
    before = outcomes(server).get("scored", 0)
    result = await client.score([5] * tiny.NUM_POSITIONS)
    assert len(result.tokens) == tiny.NUM_POSITIONS
    await eventually(lambda: outcomes(server)["scored"] == before + 1)


# --- the catalogue ---


async def test_server_info_says_what_is_served(server, client):
    info = await client.server_info()
    assert info.version == server.version
    assert (info.model.name, info.model.d_model, info.model.vocab_size) == ("tiny", tiny.D_MODEL, 259)
    assert (info.sae.name, info.sae.num_latents, info.sae.activation) == ("tiny-sae", tiny.NUM_LATENTS, "topk")
    assert (info.limits.slots, info.limits.context_length) == (4, tiny.NUM_POSITIONS)
    assert (info.limits.max_queued_requests, info.limits.max_steering_relative_norm) == (64, 20.0)
    assert info.planned_memory_bytes == 123
    assert info.passes == "transformers"
    assert sorted(w.feature for w in info.default_watched) == list(DEFAULT_WATCHED)
    assert info.default_monitors == (ALWAYS, NEVER)
    default = info.sampling_defaults
    assert (default.temperature, default.top_p, default.top_k, default.max_tokens) == (0, 1, 0, 256)
    assert (info.requests_running, info.requests_waiting) == (0, 0)
    assert info.uptime_seconds > 0


async def test_features_are_listed_by_pages(client):
    features = await client.list_features()
    assert [(f.index, f.name) for f in features] == [(3, "lying"), (17, "hedging"), (40, "calm")]
    assert [f.default_watched for f in features] == [True, True, False]
    assert all(f.evidence == {} and f.decoder_norm > 0 for f in features)
    pages, token = [], ""
    while True:
        request = client.features.ListFeatures
        page = await client.call(request, feature_page(size=2, token=token))
        pages.append([f.index for f in page.features])
        token = page.next_page_token
        if not token:
            break
    assert pages == [[3, 17], [40]]


def feature_page(*, size: int = 0, token: str = ""):
    return message_factory.GetMessageClass(FEATURES.methods_by_name["ListFeatures"].input_type)(
        page_size=size, page_token=token
    )


@pytest.mark.parametrize(("page", "field"), [({"size": 1001}, "page_size"), ({"token": "²"}, "page_token")])
async def test_a_page_that_cannot_be_is_invalid(client, page, field):
    with pytest.raises(InvalidRequest) as refused:
        await client.call(client.features.ListFeatures, feature_page(**page))
    assert [v.field for v in refused.value.violations] == [field]


async def test_a_feature_is_found_by_name_and_by_latent(client):
    named = await client.get_feature("lying")
    assert named.evidence == {"auroc": 0.75, "examples": ["one", "two"]}
    assert named == await client.get_feature(3)
    unnamed = await client.get_feature(63)
    assert (unnamed.index, unnamed.name, unnamed.evidence) == (63, "", {})
    with pytest.raises(NotFound):
        await client.get_feature("nobody")
    with pytest.raises(InvalidRequest) as refused:
        await client.get_feature(64)
    assert refused.value.violations[0].field == "index"


async def test_monitors_are_listed_by_name(client):
    monitors = await client.list_monitors()
    assert [monitor.name for monitor in monitors] == [ALWAYS, NEVER]
    assert (monitors[0].min_tokens, monitors[0].window, monitors[0].severity) == (3, 1, "critical")
    assert monitors[1].features == DEFAULT_WATCHED
    assert (monitors[1].kind, monitors[1].roles, monitors[1].evidence) == ("features", ("assistant",), {})
    assert [(s.max_tokens, s.warning, s.critical) for s in monitors[1].strata] == [
        (bound, 1e9, 2e9) for bound in (64, 256, 1024)
    ]


async def test_one_monitor_comes_with_its_evidence(client):
    monitor = await client.get_monitor(ALWAYS)
    assert (monitor.name, monitor.evidence) == (ALWAYS, {"auroc": 0.5})
    assert monitor.pack_sha256 == monitor_packs()[0].content_sha256
    with pytest.raises(NotFound):
        await client.get_monitor("nobody")


async def test_a_stream_says_what_its_thresholds_were_not_set_on(client):
    """Two tokens of up to 1,024, not steered: nothing is to be said."""
    reply = await client.complete("The sea", max_tokens=2, ignore_eos=True)
    assert [monitor.cautions for monitor in reply.started.monitors] == [(), ()]
    steer = Steering(direction=3, strength=0.1)
    steered = await client.complete("The sea", max_tokens=2, ignore_eos=True, steering=[steer], monitors=[NEVER])
    assert steered.started.monitors[0].cautions == ("thresholds were set on replies that were not steered",)


# --- a client that knows nothing but gRPC ---


async def test_reflection_is_all_that_a_client_needs(server):
    """Names, methods and messages come from the server; our generated stubs are not used."""

    def work() -> None:
        with grpc.insecure_channel(target(server)) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert set(SERVICES) < set(database.get_services())
            pool = descriptor_pool.DescriptorPool(database)

            def call(service: str, method: str, **fields: object):
                found = pool.FindServiceByName(service).methods_by_name[method]
                request, response = map(message_factory.GetMessageClass, (found.input_type, found.output_type))
                make = channel.unary_stream if found.server_streaming else channel.unary_unary
                stub = make(f"/{service}/{method}", request.SerializeToString, response.FromString)
                return stub(request(**fields), timeout=30)

            listed = call("telltale.v1.FeatureService", "ListFeatures", page_size=10)
            assert [feature.name for feature in listed.features] == ["lying", "hedging", "calm"]
            assert len(call("telltale.v1.MonitorService", "ListMonitors").monitors) == 2
            watch = call("telltale.v1.MonitorService", "WatchAlerts", monitors=[ALWAYS])
            watch.initial_metadata()
            sampling = {"max_tokens": 4, "ignore_eos": True}
            events = list(call("telltale.v1.GenerationService", "Generate", text="x", sampling=sampling))
            assert events[0].WhichOneof("event") == "started"
            assert events[-1].finished.usage.completion_tokens == 4
            assert next(watch).alert.request_id == events[0].started.request_id
            watch.cancel()
            chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
            scored = call("telltale.v1.GenerationService", "Score", chat=chat)
            assert sum(len(token.scores) > 0 for token in scored.tokens) == 1

    await asyncio.to_thread(work)


async def test_reflection_can_be_turned_off():
    async with serving(reflection=False) as server, connect(server) as client:
        call = client._channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.write(b"")
            await call.read()
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- health ---


async def check_health(channel, service):
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def test_liveness_and_readiness_have_names(server):
    async with raw_channel(server) as channel:
        for name in (LIVENESS, *SERVICES):
            assert await check_health(channel, name) == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check_health(channel, "telltale.v1.NobodyService")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_health_watch_sees_a_server_come_and_go():
    async with serving() as server, raw_channel(server) as channel:
        request = health_pb2.HealthCheckRequest(service=GENERATION.full_name)
        watch = health_pb2_grpc.HealthStub(channel).Watch(request)
        assert (await watch.read()).status == SERVING
        server.engine.admission.is_draining = True
        await server.update_health()
        assert (await watch.read()).status == NOT_SERVING
        # Draining is no reason to kill the process.
        assert await check_health(channel, LIVENESS) == SERVING
        server.engine.admission.is_draining = False
        await server.update_health()
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_a_server_is_alive_but_not_ready_before_it_is_warm():
    server = Server(Settings(grpc_port=0, http_port=0), parts())
    gate = Gate(server)
    starting = asyncio.create_task(server.start())
    await eventually(lambda: gate.num_passes)
    async with raw_channel(server) as channel:
        assert await check_health(channel, LIVENESS) == SERVING
        assert await check_health(channel, GENERATION.full_name) == NOT_SERVING
        gate.open()
        await starting
        assert await check_health(channel, GENERATION.full_name) == SERVING
    await server.close()


# --- HTTP ---


async def test_metrics_are_served_in_the_format_of_prometheus(server, client):
    await client.complete("x", max_tokens=2)
    status, content_type, body = await http_get(server, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    families = {family.name for family in text_string_to_metric_families(body)}
    assert {"telltale_requests", "telltale_tapped_tokens", "grpc_server_handled", "process_open_fds"} <= families


async def test_healthz_says_how_things_are(server):
    status, facts = await healthz(server)
    assert status == 200
    assert facts["serving"] is facts["engine_up"] is True
    assert facts["draining"] is False
    assert (facts["requests_running"], facts["requests_waiting"]) == (0, 0)
    server.engine.admission.is_draining = True
    try:
        status, facts = await healthz(server)
    finally:
        server.engine.admission.is_draining = False
    assert (status, facts["serving"], facts["draining"]) == (503, False, True)
    assert (await http_get(server, "/"))[0] == 404


# --- who may talk ---


@pytest.fixture(scope="module")
async def locked(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("first-key\n\n  second-key  \n")
    async with serving(api_keys_file=keys) as server:
        yield server


@pytest.mark.parametrize("key", ["first-key", "second-key"])
async def test_every_key_of_the_file_is_accepted(locked, key):
    async with connect(locked, api_key=key) as client:
        assert (await client.server_info()).model.name == "tiny"
        assert len((await client.complete("x", max_tokens=2, ignore_eos=True)).tokens) == 2


WRONG_KEYS = [
    (),
    (("authorization", "Bearer wrong"),),
    (("authorization", "Bearer "),),
    (("authorization", "Basic first-key"),),
    (("authorization", "first-key"),),
    (("authorization", "Bearer first-key second-key"),),
    (("api-key", "first-key"),),
]


@pytest.mark.parametrize("metadata", WRONG_KEYS, ids=str)
async def test_no_rpc_works_without_a_key(locked, metadata):
    async with raw_channel(locked) as channel:
        generation, monitors = (
            stub(channel) for stub in (generation_pb2_grpc.GenerationServiceStub, monitor_pb2_grpc.MonitorServiceStub)
        )
        calls = [
            generation.GetServerInfo(generation_pb2.GetServerInfoRequest(), metadata=metadata),
            generation.Score(generation_pb2.ScoreRequest(text="x"), metadata=metadata),
            generation.Generate(generate_message(), metadata=metadata),
            monitors.WatchAlerts(monitor_pb2.WatchAlertsRequest(), metadata=metadata),
        ]
        before = outcomes(locked).get("unauthenticated", 0)
        for call in calls:
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "first-key" not in await call.details()
        # Of these, two are requests to read or to generate.
        await eventually(lambda: outcomes(locked).get("unauthenticated", 0) == before + 2)
        assert await check_health(channel, GENERATION.full_name) == SERVING


async def test_a_refused_key_is_told_as_such_by_the_client(locked):
    async with connect(locked, api_key="wrong") as client:
        with pytest.raises(AccessDenied, match="API key"):
            await client.complete("x")


async def test_a_file_without_keys_would_lock_everybody_out(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("\n \n")
    with pytest.raises(ConfigError, match="at least one key"):
        async with serving(api_keys_file=keys):
            pass


# --- ports and the end ---


async def test_a_taken_port_is_refused(server):
    for taken in ({"grpc_port": server.grpc_port}, {"http_port": server.http_port}):
        with pytest.raises(ConfigError, match="must be free"):
            async with serving(**taken):
                pass


async def test_ipv6_is_served_on_both_ports():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    async with serving(host="::1") as server:
        async with grpc.aio.insecure_channel(f"[::1]:{server.grpc_port}") as channel:
            assert await check_health(channel, LIVENESS) == SERVING
        reader, writer = await asyncio.open_connection("::1", server.http_port)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()
        await writer.wait_closed()


async def start_reading(client, **options):
    """A stream that has begun: its iterator, and its first event."""
    stream = client.generate("The sea", ignore_eos=True, monitors=[NEVER], **options)
    return stream, await anext(stream)


async def test_a_drain_lets_running_streams_finish():
    async with serving() as server, connect(server) as client, connect(server) as late:
        stop, hurry = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(server.run(stop, hurry))
        stream, _ = await start_reading(client, max_tokens=200)
        async with aclosing(stream):
            watch = client.monitors.WatchAlerts(monitor_pb2.WatchAlertsRequest())
            await watch.initial_metadata()
            stop.set()
            await eventually(lambda: server.engine.admission.is_draining)
            with pytest.raises(NotReady):
                await late.complete("x")
            events = [event async for event in stream]
            assert (events[-1].reason, events[-1].usage.completion_tokens) == ("length", 200)
            assert await watch.read() is grpc.aio.EOF
        assert await running == 0


async def test_a_second_signal_finishes_streams_at_once():
    async with serving() as server, connect(server) as client:
        stop, hurry = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(server.run(stop, hurry))
        stream, _ = await start_reading(client, max_tokens=200)
        async with aclosing(stream):
            hurry.set()
            stop.set()
            events = [event async for event in stream]
        assert events[-1].reason == "shutdown"
        assert events[-1].usage.completion_tokens == len(events) - 1
        assert await running == 0
        assert outcomes(server) == {"shutdown": 1}
        assert rpcs_started(server, "Generate") == 1
