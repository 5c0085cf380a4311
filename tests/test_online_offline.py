"""What is read of a conversation offline is what the server streams when it writes it, and what it scores later.

One reply, three ways: streamed by `Generate`, read by `Score`, read by the offline pass from a labelled file. All run
in fp32; passes over other shapes add up in another order, so scores agree to 1e-5 of the largest and not to the bit.
"""

from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import serving
import tiny
import tiny_files
import tiny_packs
import torch

from discovery.conversations import Conversation
from discovery.monitor_scores import off_scale_to, reading_plan, score_replies
from discovery.pack_building import bindings_of
from discovery.read_replies import ReadingPlan, ReadProbe, read_replies
from discovery.scored_tokens import encode
from monitors.pack import PACK_SUFFIX, MonitorPack
from monitors.pack_tensors import PackTensor
from sae_runtime.checkpoint import load_sae
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import load_language_model
from service.assembly import assemble
from service.client_request import Message
from service.config import Settings
from service.server import Server

NUM_TOKENS = 60
TEXT = "the quick brown fox jumps over the lazy dog and so on"
PROMPT = [Message("system", "be brief"), Message("user", "what did you do?")]
PLACES = ("layers.1.output", "layers.3.output")
"""The dictionary's, and another."""


def probe_packs(bindings, largest_norms) -> list[MonitorPack]:
    """Two probes under a rule, knowing their largest norms; and one of before probes did."""
    generator = np.random.default_rng(4)
    tensors = {name: PackTensor.of(generator.normal(size=tiny.D_MODEL).tolist()) for name in ("one", "two")}
    names = zip(("one", "two"), PLACES, largest_norms, strict=True)
    components = [
        tiny_packs.probe_component(name, direction=name, hook_point=place, largest_norm=norm, center=0.2, scale=1.5)
        for name, place, norm in names
    ]
    older = [replace(components[1], probe=replace(components[1].probe, largest_norm=None), center=0.0, scale=1.0)]
    return [
        tiny_packs.pack("both", components, bindings=bindings, tensors=tensors, thresholds=tiny_packs.thresholds(1e6)),
        tiny_packs.pack("older", older, bindings=bindings, tensors={"two": tensors["two"]}, window=1, min_tokens=1),
    ]


def feature_packs(bindings, largest_norm) -> list[MonitorPack]:
    """Latents alone, and beside a probe."""
    latents = tiny_packs.feature_component(*range(0, tiny.NUM_LATENTS, 3), name="latents", transform="log1p")
    probe = tiny_packs.probe_component("p", hook_point=PLACES[1], largest_norm=largest_norm)
    alone = tiny_packs.pack("latents", [latents], bindings=bindings, window=1, min_tokens=1)
    return [alone, tiny_packs.pack("mixed", [latents, probe], bindings=bindings, rule="max")]


@pytest.fixture(scope="module", params=sorted(tiny.ARCHITECTURES))
def world(request, tmp_path_factory):
    """A model, its dictionary, and packs that call some of the reply's tokens off scale, each others."""
    folder = tmp_path_factory.mktemp(request.param)
    made = tiny.say_letters(tiny.language_model(architecture=request.param))
    sha256 = tiny_files.write_model(folder / "model", context_length=tiny.NUM_POSITIONS, made=made)
    lm = load_language_model(str(folder / "model"), dtype="float32", device="cpu", cache_dir=folder / "cache")
    norms = usual_norms(lm)
    tiny_files.write_dictionary(folder / "sae", sha256, resid_norm_mean=float(np.quantile(norms[:, 0], 0.8)) / 5)
    sae = load_sae(folder / "sae")
    limits = [float(np.quantile(norms[:, 0], 0.9)), float(np.quantile(norms[:, 1], 0.7))]
    probing, reading = probe_packs(bindings_of(lm, None), limits), feature_packs(bindings_of(lm, sae), limits[1])
    for name, packs in (("probes", probing), ("all", [*probing, *reading])):
        (folder / name).mkdir()
        for pack in packs:
            pack.save(folder / name / f"{pack.name}{PACK_SUFFIX}")
    return SimpleNamespace(folder=folder, lm=lm, sae=sae, packs={p.name: p for p in [*probing, *reading]})


def usual_norms(lm) -> np.ndarray:
    """[N, 2] of letters at both places."""
    nowhere = torch.zeros(tiny.D_MODEL)
    probes = tuple(ReadProbe(HookPoint.parse(place), nowhere, 0.0) for place in PLACES)
    return read_replies(lm, [encode(lm.tokenizer, conversation_of(TEXT))], ReadingPlan(probes=probes)).norms_NP


def conversation_of(text) -> Conversation:
    """As it would stand in a file, all of the reply to be scored."""
    messages = tuple({"role": m.role, "content": m.content} for m in [*PROMPT, Message("assistant", text)])
    return Conversation("0", "said", messages, 0, len(text), 1, "0", {})


@asynccontextmanager
async def served(world, *, with_dictionary):
    asked = Settings(
        model=str(world.folder / "model"),
        sae=str(world.folder / "sae") if with_dictionary else "none",
        monitor_packs=world.folder / ("all" if with_dictionary else "probes"),
        cache_dir=world.folder / "cache",
        dtype="float32",
        device="cpu",
        slots=2,
        grpc_port=0,
        http_port=0,
        prefill_chunk_tokens=16,
    )
    server = Server(asked, assemble(asked))
    await server.start()
    try:
        async with serving.connect(server) as client:
            yield client
    finally:
        await server.close()


def offline(world, text, *, with_dictionary):
    """Tokens with scored positions; every monitor's run over them, and the positions that it left out."""
    reply = encode(world.lm.tokenizer, conversation_of(text))
    sae = world.sae if with_dictionary else None
    runs, left_out = {}, {}
    for name, pack in world.packs.items():
        if with_dictionary or pack.bindings.sae_sha256 is None:
            readings = read_replies(world.lm, [reply], reading_plan(pack, sae))
            runs[name] = score_replies(pack, readings)[0]
            left_out[name] = {p for p, is_so in zip(reply.scored, off_scale_to(pack, readings), strict=True) if is_so}
    return reply, runs, left_out


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def online(tokens, monitor):
    """Position -> (score, components) of the tokens that it scored."""
    return {t.index: (s.value, s.components) for t in tokens for s in t.scores if s.monitor == monitor}


@pytest.mark.parametrize("with_dictionary", [True, False])
async def test_a_reply_has_the_same_scores_when_written_when_scored_and_offline(world, with_dictionary):
    async with served(world, with_dictionary=with_dictionary) as client:
        written = await client.complete(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)
        scored = await client.score([*PROMPT, Message("assistant", written.text)])
    reply, runs, left_out = offline(world, written.text, with_dictionary=with_dictionary)
    # Three times the same tokens: else nothing below would mean anything.
    assert [t.id for t in written.tokens] == [reply.tokens[p] for p in reply.scored]
    assert [t.id for t in scored.tokens] == list(reply.tokens)
    assert [t.index for t in written.tokens] == [t.index for t in scored.tokens if t.role == "assistant"]
    assert set(runs) == {monitor.name for monitor in written.started.monitors}
    for name, run in runs.items():
        counted = [position for position in reply.scored if position not in left_out[name]]
        for tokens, summaries in ((written.tokens, written.finished.monitors), (scored.tokens, scored.monitors)):
            found = online(tokens, name)
            assert list(found) == counted
            assert_close([value for value, _ in found.values()], run.scores)
            for index, wanted in enumerate(run.components):
                assert_close([parts[index] for _, parts in found.values()], wanted)
            (summary,) = [s for s in summaries if s.monitor == name]
            assert_close(summary.max_statistic, run.statistic)
            assert (summary.scored_tokens, summary.alerts) == (len(counted), run.num_fired)
    assert {t.index for t in written.tokens if t.off_scale} == set().union(*left_out.values())


@pytest.mark.parametrize("with_dictionary", [True, False])
def test_the_packs_here_leave_different_tokens_out(world, with_dictionary):
    """So the equality above is one of rules, not of there being nothing to leave out."""
    _, _, left_out = offline(world, TEXT, with_dictionary=with_dictionary)
    assert left_out["both"]
    if not with_dictionary:
        assert left_out["older"] == set()
        return
    assert left_out["older"] == left_out["latents"] != set()
    assert len({frozenset(left_out[name]) for name in ("both", "older", "mixed")}) == 3
    assert set(left_out["latents"]) < set(left_out["mixed"])


def test_a_probe_that_judges_for_itself_is_the_same_with_a_dictionary_and_without(world):
    (_, with_one, _), (_, without, _) = (offline(world, TEXT, with_dictionary=is_there) for is_there in (True, False))
    assert with_one["both"] == without["both"]
    assert with_one["older"] != without["older"]
