"""The guards of a server: counts against obvious ones, and what clients and metrics are told."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import serving
import tiny
import tiny_packs
from serving import ALWAYS, NEVER

from monitors.drift import MIN_REPLIES, FinishedReply, Reference
from monitors.pack_parts import PackCalibration
from monitors.silence import MAX_SAME, InputState
from monitors.stability import bin_counts, stability_index
from service.guards import Guarded, Guards
from service.monitor_packs import ServedMonitor
from service.published import Published
from service.records import Outcome, Phase, RequestRecord, StepRecord
from service.server import Server


def step(inputs, probes=None) -> StepRecord:
    of_probes = None if probes is None else np.array(probes, np.float32).reshape(-1, 1)
    read_NG = np.array(inputs, np.float32)
    return StepRecord(
        Phase.DECODE, 1, len(inputs), len(inputs), 0, 0, 0, read_NG[:, :0], inputs_NG=read_NG, probes_NP=of_probes
    )


def guards(*packs) -> Guards:
    catalog = replace(serving.catalog(tiny.language_model()), monitors=tuple(map(ServedMonitor, packs)))
    guarded = Guarded.of(catalog)
    return Guards(guarded, catalog, [probe.name for pack in packs for probe in pack.probes()])


def test_inputs_are_those_of_monitors_and_the_watch_list():
    latents = tiny_packs.pack(components=[tiny_packs.feature_component(5, 3)])
    probe = tiny_packs.pack("other", [tiny_packs.probe_component()])
    made = guards(latents, probe)
    assert made.guarded.latents == (3, 5, 17)
    assert [one.name for one in made.inputs] == ["f3_lying", "f5", "f17_hedging", "other.probe"]
    assert [one.name for one in made.inputs_of(ServedMonitor(latents))] == ["f3_lying", "f5"]
    assert [one.name for one in made.inputs_of(ServedMonitor(probe))] == ["other.probe"]


def test_a_watched_feature_has_the_label_of_its_readings_however_long_its_name_is():
    feature = serving.named_feature(17, "what_is_said_of_somebody_else_and_not_of_oneself", default_watched=True)
    catalog = serving.catalog(tiny.language_model())
    catalog = replace(catalog, watchlist=replace(catalog.watchlist, features=(feature,)), monitors=())
    (one,) = Guards(Guarded.of(catalog), catalog, []).inputs
    assert one.name == feature.slug == f"f17_{feature.name}"


def test_silence_is_counted_token_by_token():
    made, generator = guards(tiny_packs.pack()), np.random.default_rng(0)
    seen = []
    for _ in range(40):
        read_NG = generator.random((int(generator.integers(0, 6)), 2)) * (generator.random(2) < 0.3)
        made.observe_step(step(read_NG))
        seen.extend((read_NG > 0).tolist())
        for i, one in enumerate(made.inputs):
            fired = [token[i] for token in seen]
            since = next((n for n, is_active in enumerate(reversed(fired)) if is_active), len(fired))
            assert (one.num_tokens, one.num_active, one.num_silent) == (len(fired), sum(fired), since)


def test_a_probe_is_active_where_its_value_is_not_that_of_the_pass_before():
    made = guards(tiny_packs.pack(components=[tiny_packs.probe_component()]))
    probe = made.inputs[-1]
    made.observe_step(step(np.zeros((3, 2)), [1.0, 1.0, 2.0]))
    made.observe_step(step(np.zeros((3, 2)), [3.0, 2.0, 2.0]))
    made.observe_step(step(np.zeros((4, 2))))  # a pass without probes
    assert (probe.num_tokens, probe.num_active, probe.num_silent) == (6, 4, 2)
    made.observe_step(step(np.zeros((MAX_SAME, 2)), [2.0] * MAX_SAME))
    assert probe.state is InputState.SILENT


def test_requests_that_are_alike_and_go_in_step_make_no_probe_silent():
    made = guards(tiny_packs.pack(components=[tiny_packs.probe_component()]))
    for value in (1.0, 2.0, 3.0):
        made.observe_step(step(np.zeros((MAX_SAME + 1, 2)), [value] * (MAX_SAME + 1)))
        assert made.inputs[-1].state is InputState.ALIVE


def drifting_pack(num_replies=400):
    generator = random.Random(0)
    replies = [
        (max(scores), scores) for scores in ([generator.gauss(0, 1) for _ in range(9)] for _ in range(num_replies))
    ]
    reference = Reference.of(replies)
    figures = {"reference": reference.as_json()}
    return reference, tiny_packs.pack(calibration=PackCalibration(method="by_hand", source="A test.", figures=figures))


def record(*replies: FinishedReply) -> RequestRecord:
    return RequestRecord(Outcome.EOS, 1, 1, 1, 0, None, None, None, [], monitored=list(replies))


def test_drift_is_of_monitors_that_have_a_reference():
    reference, pack = drifting_pack()
    made = guards(pack, tiny_packs.pack("other"))
    values = [3.0 + i / 100 for i in range(MIN_REPLIES)]
    for value in values:
        both = [FinishedReply(name, value, [value]) for name in ("watcher", "other")]
        assert made.observe_request(record(*both)) == both[:1]
    moved = stability_index(reference.statistic.counts, bin_counts(reference.statistic.edges, values))
    assert made.drift("watcher").statistic == moved > 0.2
    assert made.drift("other") is None


async def test_what_clients_and_metrics_are_told():
    parts = serving.parts()
    reference, pack = drifting_pack()
    pack = replace(pack, name="drifting", thresholds=tiny_packs.thresholds(1e9))
    monitors = (*parts.catalog.monitors, ServedMonitor(pack))
    server = Server(
        serving.Settings(grpc_port=0, http_port=0), replace(parts, catalog=replace(parts.catalog, monitors=monitors))
    )
    await server.start()
    try:
        async with serving.connect(server) as client:
            before = {monitor.name: monitor.drift for monitor in await client.list_monitors()}
            assert before["drifting"].has_reference and before["drifting"].statistic_psi is None
            assert before["drifting"].min_replies == MIN_REPLIES and not before[NEVER].has_reference
            assert math.isnan(serving.sample(server, "telltale_monitor_psi", monitor="drifting", of="statistic"))
            reply = await client.complete("The sea", max_tokens=8, ignore_eos=True)
            await serving.eventually(lambda: serving.outcomes(server) == {"length": 1})
            assert serving.sample(server, "telltale_monitor_psi_replies", monitor="drifting") == 1
            for _ in range(MIN_REPLIES):
                scores = [
                    score.value for token in reply.tokens for score in token.scores if score.monitor == "drifting"
                ][1:]
                summary = next(one for one in reply.finished.monitors if one.monitor == "drifting")
                ended = record(FinishedReply("drifting", summary.max_statistic, scores))
                server.books.observe(Published(requests=[ended]))
            drift = (await client.get_monitor("drifting")).drift
            counts = bin_counts(reference.statistic.edges, [summary.max_statistic] * (MIN_REPLIES + 1))
            assert drift.replies == MIN_REPLIES + 1
            assert drift.statistic_psi == pytest.approx(stability_index(reference.statistic.counts, counts))
            psi = serving.sample(server, "telltale_monitor_psi", monitor="drifting", of="token_score")
            assert psi == pytest.approx(drift.token_score_psi)
            inputs = {one.feature: one for one in (await client.server_info()).inputs}
            assert set(inputs) == set(range(tiny.NUM_LATENTS))  # one of the monitors reads them all
            tokens = len("The sea") - 1 + 8
            fired = [token.reading(3) > 0 for token in reply.tokens]
            assert {one.tokens for one in inputs.values()} == {tokens}
            assert inputs[3].active_tokens >= sum(fired)
            assert inputs[3].state == ("alive" if inputs[3].active_tokens else "unknown")
            assert inputs[3].density_ratio is inputs[3].silence_probability is None  # no catalogue
            assert serving.sample(server, "telltale_input_silent_tokens", input="f3_lying") == inputs[3].silent_tokens
            assert serving.sample(server, "telltale_input_silent", input="f3_lying") == 0
            assert {one.feature for one in (await client.get_monitor(NEVER)).inputs} == set(serving.DEFAULT_WATCHED)
    finally:
        await server.close()


async def test_steered_scored_and_cancelled_requests_are_not_compared():
    async with serving.serving() as server, serving.connect(server) as client:
        steering = serving.types_pb2.Steering(feature=3, op="STEERING_OP_ADD", strength=1)
        request = serving.generate_message(steering=[steering])
        seen = []
        observe = server.guards.observe_request
        server.guards.observe_request = lambda done: seen.append(done) or observe(done)
        async for _ in client.stream(request):
            pass
        await client.score("The sea was calm.")
        await client.complete("The sea", max_tokens=5, ignore_eos=True)
        await serving.eventually(lambda: len(seen) == 3)
        assert [sorted(reply.monitor for reply in one.monitored) for one in seen] == [[], [], [ALWAYS, NEVER]]


async def test_fidelity_is_told_where_it_was_measured():
    told = {
        "first": "tiny none bfloat16", "against": "tiny nf4 bfloat16", "tokens": 1000, "residual_relative_error": 0.2,
        "median_correlation": 0.97, "flip_ratio": 0.2, "l0": [60.0, 58.0], "variance_explained": [0.9, 0.89],
        "may_be_served": True,
    }  # fmt: skip
    async with serving.serving(metrics={"fidelity": [told]}) as server, serving.connect(server) as client:
        [fidelity] = (await client.server_info()).fidelity
        assert (fidelity.first, fidelity.against, fidelity.may_be_served) == (told["first"], told["against"], True)
        assert (fidelity.first_l0, fidelity.against_variance_explained) == (60.0, 0.89)
