"""Exports: equal to what the other libraries have read and computed, and back again."""

import json

import pytest
import tiny
import torch
from format_files import FIXTURES, oracle
from safetensors.torch import load_file
from serving import manifest

from sae_runtime.checkpoint import LoadedSAE, load_sae, save_sae
from sae_runtime.errors import CheckpointError
from sae_runtime.exports import EXPORTERS, export_sae
from sae_runtime.formats import import_sae
from sae_runtime.sae import ACTIVATIONS

EXPORTED = sorted(path.name for path in (FIXTURES / "exported").iterdir())
MODULE = "layers.1"


def read_weights(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def format_of(case: str) -> str:
    return next(name for name in EXPORTERS if case.startswith(name))


def own(folder, activation="topk", *, hook_point="layers.1.output", training=None, **settings) -> LoadedSAE:
    """The tiny dictionary, saved and loaded."""
    sae = tiny.sae(activation, **settings)
    changes = {name: getattr(sae, name) for name in ("activation", "k", "scale", "apply_b_dec", "normalization")}
    made = manifest(hook_point=hook_point, training=training or {"recipe": {"k": 8}}, **changes)
    save_sae(sae, made, folder)
    return load_sae(folder)


def residuals() -> torch.Tensor:
    return torch.randn(9, tiny.D_MODEL, generator=torch.Generator().manual_seed(5)) * 2


# --- what the other libraries read ------------------------------------------------------------------------------------


def test_every_format_was_read_by_its_library():
    assert {format_of(case) for case in EXPORTED} == set(EXPORTERS)


@pytest.mark.parametrize("case", EXPORTED)
def test_writes_what_the_library_has_read(case, tmp_path):
    """The committed export is what the library computed its oracle from: so the export made here has to be the same."""
    folder = FIXTURES / "exported" / case
    written = export_sae(load_sae(folder / "own"), tmp_path / "export", format_of(case))
    committed = sorted(
        path.relative_to(folder / "export") for path in (folder / "export").rglob("*.*") if path.is_file()
    )
    assert sorted(path.relative_to(tmp_path / "export") for path in written) == committed
    for relative in committed:
        made, wanted = tmp_path / "export" / relative, folder / "export" / relative
        if relative.suffix == ".json":
            assert json.loads(made.read_text()) == json.loads(wanted.read_text())
            continue
        one, other = read_weights(made), read_weights(wanted)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", EXPORTED)
def test_the_library_computes_the_same(case):
    sae, wanted = load_sae(FIXTURES / "exported" / case / "own"), oracle(FIXTURES / "exported" / case)
    f_TF = sae.encode(wanted.x_TD)
    torch.testing.assert_close(f_TF, wanted.f_TF, rtol=1e-5, atol=1e-5)
    assert torch.equal(f_TF > 0, wanted.f_TF > 0)
    torch.testing.assert_close(sae.reconstruct(wanted.x_TD), wanted.x_hat_TD, rtol=1e-5, atol=2e-5)


# --- and back ---------------------------------------------------------------------------------------------------------


def assert_same(one, other) -> None:
    x_TD = residuals()
    assert torch.equal(one.encode(x_TD) > 0, other.encode(x_TD) > 0)
    torch.testing.assert_close(one.encode(x_TD), other.encode(x_TD), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.reconstruct(x_TD), other.reconstruct(x_TD), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("format_name", ["saelens", "dictionary_learning"])
def test_there_and_back(tmp_path, activation, apply_b_dec, format_name):
    sae = own(tmp_path / "own", activation, scale=0.4, apply_b_dec=apply_b_dec)
    export_sae(sae, tmp_path / "export", format_name)
    back = import_sae(tmp_path / "export")
    assert_same(sae, back)
    assert back.manifest.hook_point == "layers.1.output"
    assert back.manifest.model_name == "tiny"


@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_there_and_back_with_sparsify(tmp_path, apply_b_dec):
    sae = own(tmp_path / "own", scale=0.4, apply_b_dec=apply_b_dec)
    export_sae(sae, tmp_path / "export", "sparsify")
    back = import_sae(tmp_path / "export" / MODULE)
    assert_same(sae, back)
    assert (back.manifest.hook_point, back.manifest.model_name) == ("layers.1.output", "tiny")


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
def test_per_token_normalisation_goes_to_saelens_alone(tmp_path, normalization):
    sae = own(tmp_path / "own", "jumprelu", normalization=normalization)
    export_sae(sae, tmp_path / "export", "saelens")
    assert_same(sae, import_sae(tmp_path / "export"))
    for format_name in ("sparsify", "dictionary_learning"):
        with pytest.raises(CheckpointError, match=f"{format_name} has no normalization {normalization}"):
            export_sae(sae, tmp_path / format_name, format_name)


@pytest.mark.parametrize("policy", ["always", "never", "tokenizer", "unknown"])
def test_what_is_known_of_bos_goes_with_it(tmp_path, policy):
    sae = own(tmp_path / "own")
    sae.manifest = sae.manifest.model_copy(update={"bos_policy": policy})
    export_sae(sae, tmp_path / "export", "saelens")
    back = import_sae(tmp_path / "export").manifest.bos_policy
    assert back == (policy if policy in ("always", "never") else "unknown")


@pytest.mark.parametrize(
    ("hook_point", "names"),
    [
        ("layers.3.output", ("blocks.3.hook_resid_post", "model.layers.3")),
        ("layers.3.input", ("blocks.3.hook_resid_pre", "model.layers.2")),
        ("layers.0.input", ("blocks.0.hook_resid_pre", "model.embed_tokens")),
    ],
)
def test_hook_points_in_other_words(tmp_path, hook_point, names):
    sae = own(tmp_path / "own", hook_point=hook_point)
    export_sae(sae, tmp_path / "saelens", "saelens")
    metadata = json.loads((tmp_path / "saelens/cfg.json").read_text())["metadata"]
    assert (metadata["hook_name"], metadata["hf_hook_name"]) == names
    export_sae(sae, tmp_path / "sparsify", "sparsify")
    assert (tmp_path / "sparsify" / names[1].removeprefix("model.") / "cfg.json").exists()


def test_thresholds_are_not_rounded(tmp_path):
    sae = own(tmp_path / "own", "batchtopk")
    export_sae(sae, tmp_path / "export", "saelens")
    threshold_F = load_file(tmp_path / "export/sae_weights.safetensors")["threshold"]
    assert threshold_F.dtype == torch.float32
    assert torch.equal(threshold_F, sae.threshold.expand(tiny.NUM_LATENTS))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "topk"])
def test_sparsify_has_topk_only(tmp_path, activation):
    with pytest.raises(CheckpointError, match=f"sparsify has topk only: {activation}"):
        export_sae(own(tmp_path / "own", activation), tmp_path / "export", "sparsify")
    assert not (tmp_path / "export").exists()


def test_an_unknown_format(tmp_path):
    with pytest.raises(
        CheckpointError, match="format must be one of saelens, sparsify, dictionary_learning, got 'onnx'"
    ):
        export_sae(own(tmp_path / "own"), tmp_path / "export", "onnx")


def test_an_unknown_hook_point(tmp_path):
    sae = own(tmp_path / "own")
    sae.manifest = sae.manifest.model_copy(update={"hook_point": "unknown"})
    with pytest.raises(CheckpointError, match="hook point of tiny-sae must be known"):
        export_sae(sae, tmp_path / "export", "saelens")


def test_the_input_of_the_first_layer_has_no_name_in_dictionary_learning(tmp_path):
    with pytest.raises(CheckpointError, match="the first layer's input has no name"):
        export_sae(own(tmp_path / "own", hook_point="layers.0.input"), tmp_path / "export", "dictionary_learning")


def test_batchtopk_of_an_unknown_k_has_to_be_told(tmp_path):
    sae = own(tmp_path / "own", "batchtopk", training={"note": "none"})
    sae.manifest = sae.manifest.model_copy(update={"k": None})
    with pytest.raises(CheckpointError, match="k of tiny-sae must be stated"):
        export_sae(sae, tmp_path / "export", "dictionary_learning")
    export_sae(sae, tmp_path / "export", "dictionary_learning", k=6)
    assert int(read_weights(tmp_path / "export/ae.pt")["k"]) == 6


@pytest.mark.parametrize("format_name", EXPORTERS)
def test_nothing_is_overwritten(tmp_path, format_name):
    sae = own(tmp_path / "own")
    written = export_sae(sae, tmp_path / "export", format_name)
    before = {path: path.read_bytes() for path in written}
    with pytest.raises(CheckpointError, match="is there already"):
        export_sae(sae, tmp_path / "export", format_name)
    assert {path: path.read_bytes() for path in written} == before
    assert not list((tmp_path / "export").rglob("*.partial"))


def test_a_place_that_can_not_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="can't be written"):
        export_sae(own(tmp_path / "own"), tmp_path / "file" / "export", "saelens")


@pytest.mark.parametrize("format_name", EXPORTERS)
def test_a_full_disk_leaves_nothing_behind(tmp_path, format_name, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_runtime.exports.save_file", fail)
    monkeypatch.setattr("sae_runtime.exports.torch.save", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export_sae(own(tmp_path / "own"), tmp_path / "export", format_name)
    assert not [path for path in (tmp_path / "export").rglob("*") if path.is_file()]
