"""A server whose model has no dictionary: probe monitors alone, and every question about features told why not."""

import logging
import re
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import serving
import tiny
import tiny_packs
from telltale.v1 import generation_pb2
from tiny_files import write_dictionary, write_model, write_packs

from monitors.errors import PackError
from monitors.pack import PACK_SUFFIX
from sae_runtime.errors import CheckpointError, ModelError
from service import assembly, cli
from service.assembly import assemble
from service.client_request import Policy, Steering
from service.config import Settings
from service.errors import InvalidRequest, NoDictionary
from service.server import Server

VECTOR = [1.0] * tiny.D_MODEL
REPLY = {"max_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and one probe monitor that fires at its second token."""
    folder = tmp_path_factory.mktemp("served")
    sha256 = write_model(folder / "model", context_length=tiny.NUM_POSITIONS)
    bindings = replace(tiny_packs.pack(components=[tiny_packs.probe_component()]).bindings, model_sha256=sha256)
    components = [
        tiny_packs.probe_component("first", direction="first", hook_point="layers.0.output"),
        tiny_packs.probe_component("last", direction="last", hook_point="layers.3.output"),
    ]
    (folder / "packs").mkdir()
    marks = tiny_packs.thresholds(-1e6, 1e6)
    made = tiny_packs.pack("probing", components, bindings=bindings, thresholds=marks)
    made.save(folder / "packs" / f"probing{PACK_SUFFIX}")
    return folder


def settings(folder, **changes):
    fixed = {"model": str(folder / "model"), "sae": "none", "dtype": "float32", "device": "cpu", "slots": 2}
    ports = {"grpc_port": 0, "http_port": 0, "monitor_packs": folder / "packs"}
    return Settings(**(fixed | ports | {"cache_dir": folder / "cache", "context_length": 64} | changes))


@asynccontextmanager
async def started(folder, **changes):
    asked = settings(folder, **changes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(assembly, "process_bytes", lambda: 1000)
        server = Server(asked, assemble(asked))
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture(scope="module")
async def server(folder):
    async with started(folder, hook_point="blocks.1.hook_resid_post") as server:
        yield server


@pytest.fixture
async def client(server):
    async with serving.connect(server) as client:
        yield client


def violations(refused) -> dict[str, str]:
    return {violation.field: violation.description for violation in refused.value.violations}


# --- what it does ---


async def test_a_reply_is_scored_by_probes_and_has_no_readings(client):
    reply = await client.complete("The sea", include_prompt=True, **REPLY)
    assert reply.started.sae is None and reply.started.watched == ()
    assert [monitor.name for monitor in reply.started.monitors] == ["probing"]
    assert [t.off_scale for t in [*reply.prompt, *reply.tokens]] == [True] + [False] * 12
    for token in reply.tokens:
        (score,) = token.scores
        assert len(score.components) == 2 and score.value == pytest.approx(min(score.components))
        assert (token.readings, token.top_features, token.l0, token.fvu) == ((), (), 0, 0.0)
    (alert,) = reply.alerts
    assert (alert.monitor, alert.position) == ("probing", 8)  # its second token
    assert reply.finished.tapped_tokens == 13


async def test_what_is_served_says_that_there_is_no_dictionary(client, server):
    info = await client.server_info()
    assert (info.sae, info.default_watched, info.default_monitors) == (None, (), ("probing",))
    assert (info.steering_hook_point, info.limits.max_top_features) == ("layers.1.output", 0)
    runner = server.engine.runner
    tensors = [*runner.language_model.model.parameters(), *runner.cache.keys, *runner.cache.values]
    assert info.planned_memory_bytes == sum(t.numel() * t.element_size() for t in tensors) + 1000


async def test_scoring_a_text_says_so_too(client):
    scored = await client.score([{"role": "user", "content": "a?"}, {"role": "assistant", "content": "bcd"}])
    assert scored.sae is None and scored.watched == ()
    assert [len(token.scores) for token in scored.tokens if token.role == "assistant"] == [1, 1, 1]


async def test_metrics_have_no_feature_series(client, server):
    await client.complete("x", **REPLY)
    _, _, body = await serving.http_get(server, "/metrics")
    assert 'sae="none"' in body
    assert 'feature="' not in body
    tapped = serving.sample(server, "telltale_tapped_tokens_total")
    assert tapped == serving.sample(server, "telltale_forward_tokens_total") > 0


# --- what it refuses ---


async def test_questions_about_features_fail_and_say_why(client):
    for asked in (client.list_features(), client.get_feature(3), client.get_feature("x"), client.search_features("x")):
        with pytest.raises(NoDictionary, match=r"no dictionary \(--sae none\), and so no features"):
            await asked
    with pytest.raises(NoDictionary):
        await client.complete("x", watch=["lying"])  # a name has to be looked up


async def test_latents_are_refused_by_the_field_that_names_them(client):
    with pytest.raises(InvalidRequest) as refused:
        await client.complete("x", watch=[3], top_features=1, steering=[Steering(direction=3, strength=1.0)])
    assert violations(refused) == {
        "watch.features[0]": "must be unset, since this server has no dictionary. Got 3.",
        "watch.top_features": "must be unset, since this server has no dictionary. Got 1.",
        "steering[0].feature": "must be unset, since there is no dictionary, got 3.",
    }
    named = generation_pb2.GenerateRequest(text="x")
    named.steering.add(name="lying", op="STEERING_OP_ADD", strength=1.0)
    with pytest.raises(InvalidRequest) as refused:
        await client.call(client.generation.Score, generation_pb2.ScoreRequest(text="x", steering=named.steering))
    assert violations(refused) == {"steering[0].name": "must be unset: no dictionary. Got 'lying'."}


async def test_a_pack_that_reads_latents_is_refused_by_name(folder, tmp_path):
    plain = assemble(settings(folder)).catalog.model.identity
    write_packs(tmp_path / "packs", plain.weights_sha256, "5" * 64)
    with pytest.raises(PackError, match=r"bindings\.sae_sha256: wanted null, since there is no dictionary"):
        assemble(settings(folder, monitor_packs=tmp_path / "packs", allow_unverified=True))


# --- steering along vectors ---


async def test_a_vector_steers_at_the_place_given(client):
    plain = await client.complete("The sea", **REPLY)
    push = Steering(direction=VECTOR, strength=5.0, unit="relative", scope="generated")
    steered = await client.complete("The sea", steering=[push], **REPLY)
    assert steered.finished.steering.positions_changed == 6
    assert steered.finished.steering.mean_relative_norm == pytest.approx(5.0, rel=1e-3)
    assert [t.id for t in steered.tokens] != [t.id for t in plain.tokens]
    # Probes before the place see what they saw, and those behind it what steering made of it.
    first, again = plain.tokens[0].scores[0].components, steered.tokens[0].scores[0].components
    assert again[0] == pytest.approx(first[0], abs=1e-4) and abs(again[1] - first[1]) > 1e-3


async def test_an_alert_may_switch_it_on(client):
    push = Steering(direction=VECTOR, strength=5.0, unit="relative")
    policy = Policy(monitor="probing", action="steer", steering=[push])
    reply = await client.complete("The sea", policies=[policy], **REPLY)
    assert reply.finished.steering.positions_changed == 4


async def test_without_a_place_it_is_refused(folder):
    async with started(folder) as server, serving.connect(server) as client:
        assert (await client.server_info()).steering_hook_point == ""
        with pytest.raises(InvalidRequest) as refused:
            await client.complete("x", steering=[Steering(direction=VECTOR, strength=1.0)])
        (description,) = violations(refused).values()
        assert violations(refused).keys() == {"steering"} and "--hook-point" in description
        assert (await client.complete("x", **REPLY)).finished.usage.completion_tokens == 6


def test_a_place_that_the_model_has_not_is_refused(folder):
    with pytest.raises(ModelError, match=r"hook_point must name one of the model's 4 layers, got layers\.4\.output"):
        assemble(settings(folder, hook_point="layers.4.output"))


# --- with a dictionary ---


def test_a_dictionary_has_its_own_place(folder, tmp_path):
    sha256 = assemble(settings(folder)).catalog.model.identity.weights_sha256
    write_dictionary(tmp_path / "sae", sha256)
    served = assemble(settings(folder, sae=str(tmp_path / "sae"), hook_point="layers.2.input"))
    assert served.catalog.steering_point == "layers.1.output"  # the same residual under another name
    with pytest.raises(CheckpointError, match=r"hook_point must be unset or layers\.1\.output, the dictionary's"):
        assemble(settings(folder, sae=str(tmp_path / "sae"), hook_point="layers.2.output"))


@pytest.mark.parametrize("unverified", [False, True])
def test_who_names_no_dictionary_for_another_model_is_told_how_to_serve_it(folder, unverified):
    with pytest.raises(CheckpointError) as refused:
        assemble(settings(folder, sae="embedded", allow_unverified=unverified))
    assert "is for width 576, the model has 32" in str(refused.value)
    assert str(refused.value).endswith("or serve it with probe monitors alone, --sae none")


def test_a_server_that_reads_nothing_says_so(folder, caplog):
    with caplog.at_level(logging.WARNING):
        parts = assemble(settings(folder, monitor_packs=None))
    assert parts.catalog.default_monitors == ()
    assert "there is no dictionary and no monitor" in caplog.text


# --- on the command line ---


async def run(server, capsys, *argv) -> tuple[int, str, str]:
    code = await cli.execute(cli.build_parser().parse_args([*argv, "--target", serving.target(server)]))
    return code, *capsys.readouterr()


async def test_the_command_line_shows_what_there_is(server, capsys):
    code, out, _ = await run(server, capsys, "info")
    assert code == 0
    assert "none: probe monitors alone, no features, vectors steer at layers.1.output" in " ".join(out.split())
    code, out, err = await run(server, capsys, "generate", "The sea", "--max-tokens", "4")
    assert code == 0 and out
    assert "probing" in err and "Readings are unverified" not in err
    assert (await run(server, capsys, "generate", "x", "--max-tokens", "2", "--json"))[0] == 0


async def test_the_command_line_says_why_there_are_no_features(server, capsys):
    for argv in (["list"], ["get", "3"], ["get", "lying"], ["search", "sea"]):
        code, out, err = await run(server, capsys, "features", *argv)
        assert (code, out) == (cli.EXIT_FAILED, "")
        assert err == "telltale: This server has no dictionary (--sae none), and so no features.\n"


async def test_the_ready_line_says_what_reads(folder, capsys):
    from service.run_server import _say_ready

    async with started(folder) as server:
        _say_ready(server, assemble(settings(folder)))
    line = capsys.readouterr().out
    assert "no dictionary; monitors: probing; 2 slots of 64 tokens" in line
    assert re.search(r" GiB planned \(weights 0\.\d\d, keys and values 0\.\d\d, libraries \d\.\d\d\); passes: ", line)
