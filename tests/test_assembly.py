"""Model, dictionary and settings to a server's parts: what fits together, what is refused, how slots are sized."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import tiny_catalogue
import tiny_packs
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving import manifest
from tiny_files import write_dictionary, write_features, write_model, write_packs

from monitors.errors import CatalogueError, PackError, WatchlistError
from monitors.pack import MonitorPack
from sae_runtime.checkpoint import save_sae
from sae_runtime.errors import CheckpointError, ModelError
from sae_runtime.sae import SAE
from service import assembly
from service.assembly import assemble, model_facts
from service.catalog import provenance_mismatches
from service.config import Settings
from service.pass_output import RowInput

MODEL = tiny.language_model()
BYTES_PER_POSITION = 2 * tiny.NUM_LAYERS * 2 * 8 * 4
"""Keys and values, layers, heads, head width, bytes of a float."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a dictionary made for it."""
    folder = tmp_path_factory.mktemp("parts")
    sha256 = write_model(folder / "model", context_length=tiny.NUM_POSITIONS)
    made = write_dictionary(folder / "sae", sha256)
    write_features(folder / "sae", made.sae_sha256)
    return folder


def settings(folder, **changes):
    fixed = {"model": str(folder / "model"), "sae": str(folder / "sae"), "dtype": "float32", "device": "cpu"}
    return Settings(**(fixed | {"cache_dir": folder / "cache"} | changes))


def test_parts_fit_together(folder, monkeypatch):
    monkeypatch.setattr(assembly, "process_bytes", lambda: 1000)
    parts = assemble(settings(folder, slots=3, context_length=64))
    assert (parts.slots, parts.context_length) == (3, 64)
    assert parts.catalog.mismatches == ()
    assert parts.catalog.default_latents == (17, 3)
    assert parts.catalog.default_monitors == ()
    assert parts.runner.probe_names == ()
    assert (parts.catalog.model.identity.name, parts.catalog.model.vocab_size) == ("model", 259)
    assert str(parts.runner.tap.hook_point) == parts.catalog.manifest.hook_point
    assert len(parts.catalog.direction_norms) == tiny.NUM_LATENTS
    assert parts.steering_limits.max_relative_norm == 20.0
    cache = parts.runner.cache
    model, sae = parts.runner.language_model.model, parts.runner.sae
    plan = parts.planned_memory
    assert plan.weights == sum(t.nbytes for t in model.parameters())
    assert plan.dictionary == sum(t.nbytes for t in sae.state_dict().values())
    assert plan.keys_and_values == sum(t.nbytes for t in (*cache.keys, *cache.values))
    assert (plan.kernels, plan.libraries) == (0, 1000)


def test_readings_are_those_of_the_model_in_memory(folder, model, dictionary):
    parts = assemble(settings(folder, slots=1, context_length=16))
    seen = parts.runner.forward([RowInput(0, 0, [5, 6, 7])], list(range(tiny.NUM_LATENTS)))
    with torch.inference_mode():
        hidden = model.model(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    wanted = dictionary.encode(hidden[tiny.HOOK_POINT.hidden_state_index][0])
    torch.testing.assert_close(seen.stats.readings_NU, wanted, rtol=1e-4, atol=1e-5)


def test_threads_are_set_if_asked_for(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assemble(settings(folder, slots=1, context_length=16))
    assemble(settings(folder, slots=1, context_length=16, threads=3))
    assert asked == [3]


# --- the dictionary ---


def test_a_dictionary_that_is_none_is_found_before_the_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "load_language_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(CheckpointError, match=r"has no sae\.json"):
        assemble(settings(folder, sae=str(tmp_path)))


def test_a_dictionary_of_other_weights_is_refused_unless_allowed(folder, tmp_path):
    write_dictionary(tmp_path, "f" * 64, quantization="nf4")
    other = settings(folder, sae=str(tmp_path), slots=1, context_length=16)
    with pytest.raises(CheckpointError, match="allow_unverified") as refused:
        assemble(other)
    allowed = assemble(other.model_copy(update={"allow_unverified": True}))
    weights, quantization = allowed.catalog.mismatches
    assert "f" * 64 in weights
    assert "nf4, the server runs none" in quantization
    assert str(refused.value).startswith(f"{weights}; {quantization}.")


def test_a_dictionary_of_a_layer_that_the_model_lacks_is_refused_whatever_is_allowed(folder, tmp_path):
    write_dictionary(tmp_path, "0" * 64, hook_point="layers.4.output")
    with pytest.raises(CheckpointError, match=r"reads layers\.4\.output, the model has 4 layers"):
        assemble(settings(folder, sae=str(tmp_path), allow_unverified=True))


def test_a_dictionary_of_another_width_is_refused_whatever_is_allowed(folder, tmp_path):
    narrow = SAE(d_model=16, num_latents=8, activation="topk", k=2)
    save_sae(narrow, manifest(d_model=16, num_latents=8, k=2), tmp_path)
    with pytest.raises(CheckpointError, match="for width 16, the model has 32"):
        assemble(settings(folder, sae=str(tmp_path), allow_unverified=True))


@pytest.mark.parametrize("sha256", ["0" * 64, "e" * 64])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_provenance_names_each_mismatch(sha256, quantization):
    found = provenance_mismatches(manifest(model_sha256=sha256, quantization=quantization), model_facts(MODEL))
    assert len(found) == (sha256 != "0" * 64) + (quantization != "none")


def test_the_model_itself_can_be_pinned(folder):
    with pytest.raises(ModelError, match="must have sha256 " + "a" * 64):
        assemble(settings(folder, model_sha256="a" * 64))


# --- named features ---


def test_a_dictionary_without_feature_file_serves_without_names(folder, tmp_path):
    made = assemble(settings(folder, slots=1, context_length=16)).catalog
    write_dictionary(tmp_path, made.model.identity.weights_sha256)
    bare = assemble(settings(folder, sae=str(tmp_path), slots=1, context_length=16)).catalog
    assert (bare.watchlist.features, bare.default_latents, bare.default_monitors) == ((), (), ())
    asked_for = settings(
        folder, sae=str(tmp_path), slots=1, context_length=16, features_file=folder / "sae" / "features.json"
    )
    assert assemble(asked_for).catalog.watchlist == made.watchlist


def test_names_of_another_dictionary_are_refused(folder, tmp_path):
    write_features(tmp_path, "b" * 64)
    with pytest.raises(WatchlistError):
        assemble(settings(folder, features_file=tmp_path / "features.json"))


# --- monitor packs ---


@pytest.fixture
def packs(folder, tmp_path):
    """A folder with the test's packs, made for the model and dictionary in `folder`, and their hashes."""
    made = assemble(settings(folder, slots=1, context_length=16)).catalog
    write_packs(tmp_path / "packs", made.model.identity.weights_sha256, made.manifest.sae_sha256)
    return tmp_path / "packs"


def test_packs_of_a_folder_become_monitors(folder, packs):
    catalog = assemble(settings(folder, slots=1, context_length=16, monitor_packs=packs)).catalog
    assert [spec.name for spec in catalog.default_monitors] == ["always", "never"]
    assert [monitor.mismatches for monitor in catalog.monitors] == [(), ()]
    assert catalog.monitor_by_name("never").pack == MonitorPack.load(packs / "never.pack.yaml")


def test_probes_of_packs_are_computed_where_they_read(folder, packs, model):
    bindings = replace(MonitorPack.load(packs / "never.pack.yaml").bindings, sae_sha256=None)
    components = [tiny_packs.probe_component("p", hook_point="layers.2.output", bias=-0.5)]
    tiny_packs.pack("probing", components, bindings=bindings).save(packs / "probing.pack.yaml")
    runner = assemble(settings(folder, slots=1, context_length=16, monitor_packs=packs)).runner
    assert runner.probe_names == ("probing.p",)
    seen = runner.forward([RowInput(0, 0, [5, 6, 7])], [0], with_probes=True).stats.probes_NP[:, 0]
    with torch.inference_mode():
        hidden = model.model(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states[3][0]
    torch.testing.assert_close(seen, hidden[:, 0] - 0.5, rtol=1e-4, atol=1e-5)


def test_a_pack_for_another_model_is_refused_or_served_as_unverified(folder, packs):
    pack = MonitorPack.load(packs / "never.pack.yaml")
    other = replace(pack, bindings=replace(pack.bindings, model_sha256="e" * 64, quantization="nf4"))
    other.save(packs / "never.pack.yaml")
    with pytest.raises(PackError) as refused:
        assemble(settings(folder, slots=1, context_length=16, monitor_packs=packs))
    fields = [problem.field for problem in refused.value.problems]
    assert fields == ["bindings.model_sha256", "bindings.quantization", "allow_unverified"]
    asked = settings(folder, slots=1, context_length=16, monitor_packs=packs, allow_unverified=True)
    served = assemble(asked).catalog.monitor_by_name("never")
    assert [mismatch.split(":")[0] for mismatch in served.mismatches] == fields[:2]


# --- the latent catalogue ---


def test_a_catalogue_beside_the_dictionary_is_found(folder, tmp_path):
    made = assemble(settings(folder, slots=1, context_length=16)).catalog
    assert made.latents is None
    saved = write_dictionary(tmp_path, made.model.identity.weights_sha256)
    path = tiny_catalogue.write(tmp_path / "catalogue.sqlite", sae_sha256=saved.sae_sha256)
    beside = assemble(settings(folder, sae=str(tmp_path), slots=1, context_length=16)).catalog.latents
    assert beside.path == path and beside.entry(1) == tiny_catalogue.entry(1)
    beside.close()
    elsewhere = path.rename(tmp_path / "elsewhere.sqlite")
    asked_for = settings(folder, sae=str(tmp_path), slots=1, context_length=16, catalogue_file=elsewhere)
    named = assemble(asked_for).catalog.latents
    assert named.path == elsewhere
    named.close()


def test_a_catalogue_of_another_dictionary_or_a_damaged_one_is_refused(folder, tmp_path):
    path = tiny_catalogue.write(tmp_path / "other.sqlite", sae_sha256="b" * 64)
    with pytest.raises(
        CatalogueError, match=f"cannot use latent catalogue {path}:\nsae_sha256: wanted .*got 'b{{64}}'"
    ):
        assemble(settings(folder, catalogue_file=path))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CatalogueError, match=f"cannot use latent catalogue {path}"):
        assemble(settings(folder, catalogue_file=path))


# --- slots ---


def size(monkeypatch, free_positions, **changes):
    """(slots, context) where memory for so many positions is free, half of which may be taken."""
    monkeypatch.setattr(assembly, "available_memory_bytes", lambda _device: 2 * free_positions * BYTES_PER_POSITION)
    slots, context_length, cache_bytes = assembly._size(Settings(**changes), MODEL)
    assert cache_bytes == slots * context_length * BYTES_PER_POSITION
    return slots, context_length


@pytest.mark.parametrize(
    ("free_positions", "changes", "wanted"),
    [
        (10**6, {}, (16, 256)),
        (16 * 256, {}, (16, 256)),
        (16 * 256 - 1, {}, (8, 256)),
        (256, {}, (1, 256)),
        (100, {}, (1, 100)),
        (1000, {"slots": 10}, (10, 100)),
        (1000, {"context_length": 64}, (8, 64)),
        (1000, {"slots": 3, "context_length": 64}, (3, 64)),
    ],
)
def test_slots_are_sized_from_memory(monkeypatch, free_positions, changes, wanted):
    assert size(monkeypatch, free_positions, **changes) == wanted


@pytest.mark.parametrize(
    ("free_positions", "changes", "match"),
    [
        (1, {}, "1 slots of 2 tokens need"),
        (1000, {"slots": 11, "context_length": 100}, r"memory_fraction 0\.5 of the free"),
        (1000, {"slots": 1000}, "need"),
        (10**6, {"context_length": 257}, r"must lie in 2\.\.256, the model's, got 257"),
        (10**6, {"context_length": 1}, "got 1"),
    ],
)
def test_what_does_not_fit_is_refused(monkeypatch, free_positions, changes, match):
    with pytest.raises(ModelError, match=match):
        size(monkeypatch, free_positions, **changes)


@given(free=st.integers(0, 20_000), slots=st.integers(0, 40), context=st.just(0) | st.integers(2, 256))
def test_slots_never_take_more_than_their_share(free, slots, context):
    with pytest.MonkeyPatch.context() as monkeypatch:
        try:
            got_slots, got_context = size(monkeypatch, free, slots=slots, context_length=context)
        except ModelError:
            # Refused only if it does not fit: a single slot of two tokens, or what was asked for.
            assert free < (slots or 1) * (context or 2)
            return
    assert got_slots * got_context <= free
    assert got_slots == slots or slots == 0
    assert got_context == context or context == 0
    assert 2 <= got_context <= MODEL.context_length


def test_head_width_is_taken_from_the_config_or_worked_out():
    for config, wanted in (({"head_dim": 128}, 128), ({"head_dim": None}, 16), ({}, 16)):
        sizes = SimpleNamespace(hidden_size=64, num_attention_heads=4, **config)
        assert assembly._head_dim(SimpleNamespace(model=SimpleNamespace(config=sizes))) == wanted
