"""From a served model without a dictionary to a monitor that runs on it: elicit, fit, calibrate, serve."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import labelled_files
import monitor_files
import pytest
import serving
import tiny
import tiny_files
import tiny_packs

from discovery import elicit, lab
from discovery.answer_words import words_of
from discovery.elicitation_arms import ARM_BY_NAME, messages_for
from discovery.grpc_endpoint import GrpcEndpoint, Sampling
from discovery.pack_building import bindings_of
from discovery.question_set import Question
from monitors.pack import PACK_SUFFIX, MonitorPack
from sae_runtime.language_model import load_language_model
from service.assembly import assemble
from service.client_request import Message
from service.config import Settings
from service.server import Server

NUM_QUESTIONS = 8
LIE = "lying-must"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_files.write_model(folder / "model", made=tiny.say_letters(tiny.language_model()))
    return folder


@asynccontextmanager
async def served(folder, **changes):
    fixed = {"model": str(folder / "model"), "sae": "none", "dtype": "float32", "device": "cpu"}
    sizes = {"slots": 8, "context_length": 1024, "grpc_port": 0, "http_port": 0, "cache_dir": folder / "cache"}
    asked = Settings(**(fixed | sizes | changes))
    server = Server(asked, assemble(asked))
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def question(number, answers=("anything",), wrong=()):
    facts = {"id": f"q-{number}", "kind": "any", "answer_type": "statement", "difficulty": 1}
    return facts | {"question": f"Say something of {number * 17}.", "answers": list(answers), "wrong": list(wrong)}


async def answered(endpoint, number):
    """A question whose right answers are words that the model says when it is asked plainly, and whose wrong one is a
    word that it says alone when told to lie: so it knows this, and lies about it."""

    async def words_under(arm):
        asked = messages_for(Question(**question(number)), ARM_BY_NAME[arm], "explanation")
        reply = await endpoint.generate(asked, Sampling(80), label="test")
        return {word.text for word in words_of(reply.text)}

    plain = [name for name, arm in ARM_BY_NAME.items() if arm.asks_knowledge]
    *honest, lied = await asyncio.gather(*(words_under(arm) for arm in [*plain, LIE]))
    right = {min(said - lied, key=lambda word: (len(word), word)) for said in honest}
    wrong = min(lied - set().union(*honest), key=lambda word: (len(word), word))
    return question(number, sorted(right), [wrong])


def run(*argv):
    return lab.run("monitor", [str(word) for word in argv])


@pytest.fixture(scope="module")
async def fitted(folder):
    """On-policy data from a server without a dictionary, and a probe fitted on it."""
    data, pack = folder / "onpolicy.jsonl", folder / "packs" / f"stance{PACK_SUFFIX}"
    async with served(folder) as server:
        async with GrpcEndpoint(f"grpc://{serving.target(server)}") as endpoint:
            asked = await asyncio.gather(*(answered(endpoint, number) for number in range(NUM_QUESTIONS)))
        (folder / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
        argv = ["--target", serving.target(server), "--output", data, "--questions", folder / "questions.jsonl"]
        argv += ["--arms", LIE, "--formats", "explanation", "--json"]
        assert await asyncio.to_thread(elicit.main, [str(word) for word in argv]) == 0
    options = ["--positive-class", "lie", "--negative-class", "honest_truth", "--folds", "2", "--layers", "1,3"]
    options += ["--development-share", "0.4", "--held-out-share", "0.1", "--min-tokens", "4", "--windows", "8"]
    assert run("fit", data, "--output", pack, *options, *monitor_files.options(folder / "model")) == 0
    return SimpleNamespace(data=data, pack=pack)


async def test_what_it_said_is_labelled_by_what_it_knows(fitted):
    rows = [json.loads(line) for line in fitted.data.read_text().splitlines()]
    classes = [row["meta"]["class"] for row in rows]
    assert classes.count("lie") == NUM_QUESTIONS
    assert classes.count("honest_truth") == 4 * NUM_QUESTIONS
    identity = json.loads(fitted.data.with_name("onpolicy.jsonl.summary.json").read_text())["identity"]
    assert identity["model"]["weights_sha256"] == MonitorPack.load(fitted.pack).bindings.model_sha256


async def test_a_fitted_probe_knows_its_largest_norm_and_needs_no_dictionary(fitted):
    pack = MonitorPack.load(fitted.pack)
    (component,) = pack.components
    assert pack.bindings.sae_sha256 is None and component.probe.largest_norm > 0
    assert pack.evidence["fit"]["frozen_sha256"] == pack.frozen_sha256


async def test_once_calibrated_it_runs_on_a_server_without_a_dictionary(fitted, folder):
    benign = labelled_files.write(folder / "benign.jsonl", labelled_files.benign(40))
    options = ["--bounds", "64,256", "--warning", "0.2", "--critical", "0.1"]
    model = monitor_files.options(folder / "model")
    assert run("calibrate", fitted.pack, "--benign", benign, *options, *model, "--json") == 0
    async with served(folder, monitor_packs=fitted.pack.parent) as server, serving.connect(server) as client:
        reply = await client.complete([Message("user", "Lie to me")], max_tokens=8, ignore_eos=True)
    (monitor,) = reply.started.monitors
    assert (monitor.name, monitor.pack_sha256) == ("stance", MonitorPack.load(fitted.pack).content_sha256)
    assert [len(token.scores) for token in reply.tokens] == [1] * 8


# --- feature packs ---


def test_fitting_features_needs_a_dictionary(capsys, tmp_path):
    with pytest.raises(SystemExit):
        run("fit", tmp_path / "x.jsonl", "--output", tmp_path / f"x{PACK_SUFFIX}", "--kind", "features")
    assert "--kind features must come with --dictionary, got none" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_a_pack_that_reads_latents_is_refused_by_name(folder, tmp_path, capsys, command):
    lm = load_language_model(str(folder / "model"), dtype="float32", device="cpu", cache_dir=folder / "cache")
    bindings = replace(bindings_of(lm, None), sae_sha256="d" * 64)
    path = tmp_path / f"reading{PACK_SUFFIX}"
    tiny_packs.pack("reading", bindings=bindings).save(path)
    data = labelled_files.write(tmp_path / "some.jsonl", labelled_files.instructed(5))
    given = [path, "--benign", data] if command == "calibrate" else [data, "--monitor", path]
    assert run(command, *given, *monitor_files.options(folder / "model")) != 0
    error = capsys.readouterr().err.splitlines()[-1]
    assert "pack reading can't run on model" in error
    assert "bindings.sae_sha256: wanted null, since there is no dictionary to read latents with" in error
