"""What monitoring is measured against: the same words, and nothing read, counted or hooked."""

from dataclasses import replace

import native_models as native
import pytest
import tiny
from serving import manifest
from test_engine import Reply, request, submit
from tiny_files import write_features

from benchmarks.unmonitored import FLAGS, Unmonitored
from sae_runtime.checkpoint import save_sae
from service import assembly, cli
from service.admission import Admission
from service.assembly import assemble
from service.config_layers import load_settings
from service.engine import Engine
from service.guards import Guarded
from service.scheduler import Scheduler


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unmonitored")
    native.save_model(folder / "model")
    sha256 = native.load(folder / "model").identity.weights_sha256
    facts = manifest(model_sha256=sha256, d_model=native.D_MODEL)
    saved = save_sae(tiny.sae(d_model=native.D_MODEL), facts, folder / "sae")
    write_features(folder / "sae", saved.sae_sha256)
    return folder


def assembled(folder, *flags):
    """As `telltale serve` would with these flags."""
    native.library()
    fixed = ["--model", str(folder / "model"), "--sae", str(folder / "sae"), "--dtype", "bfloat16", "--device", "cpu"]
    sizes = ["--slots", "2", "--context-length", "64", "--cache-dir", str(folder / "cache")]
    args = cli.build_parser().parse_args(["serve", *fixed, *sizes, *flags])
    flags = {name: value for name, value in vars(args).items() if name not in ("run", "print_config")}
    return assemble(load_settings(flags, {}))


def served(parts):
    """Replies, and records of steps."""
    published = []
    engine = Engine(
        parts.runner,
        Scheduler(parts.slots, 16),
        Admission(num_slots=parts.slots, max_requests=4, max_prompt_tokens=100),
        steering_limits=parts.steering_limits,
        server_watch=parts.catalog.default_latents,
        guarded=Guarded.of(parts.catalog).latents,
        publish=published.append,
    )
    model = parts.runner.language_model
    asked = [
        replace(request(model, text, request_id=text, max_tokens=9), watched=()) for text in ("The sea", "It rained.")
    ]
    submissions = submit(engine, *asked)
    while engine.num_active:
        engine.step()
    return [Reply(submission) for submission in submissions], [step for each in published for step in each.steps]


def num_hooks(parts):
    layers = parts.runner.language_model.model.model.layers
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers)


def test_the_words_are_the_same_and_nothing_is_read_or_counted_of_them(folder, monkeypatch):
    monitored = assembled(folder)
    replies, steps = served(monitored)
    assert all(step.readings_NW.shape[1] == 2 and step.encode_seconds > 0 for step in steps)
    assert num_hooks(monitored) == 1
    monkeypatch.setattr(assembly, "ModelRunner", Unmonitored)
    bare = assembled(folder, *FLAGS)
    again, unread = served(bare)
    assert num_hooks(bare) == 0
    assert [reply.ids for reply in again] == [reply.ids for reply in replies]
    assert all(len(reply.ids) == 9 for reply in again)
    assert [step.num_tokens for step in unread] == [step.num_tokens for step in steps]
    assert all(step.readings_NW.size == step.inputs_NG.size == step.encode_seconds == 0 for step in unread)
    assert bare.catalog.default_latents == () and bare.catalog.monitors == ()


def test_without_its_flags_it_is_refused(folder, monkeypatch):
    monkeypatch.setattr(assembly, "ModelRunner", Unmonitored)
    with pytest.raises(AssertionError, match="to be served with --sae none"):
        assembled(folder)
