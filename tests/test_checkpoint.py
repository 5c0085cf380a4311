"""The dictionary on disk: what is saved comes back, and every way a folder can be wrong is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from full_disk import room_for
from safetensors.torch import load_file, save_file

from sae_runtime import checkpoint
from sae_runtime.checkpoint import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    TensorRecord,
    load_manifest,
    load_sae,
    save_sae,
    write_atomically,
)
from sae_runtime.errors import CheckpointError
from sae_runtime.hook_point import HookPoint
from sae_runtime.sae import ACTIVATIONS, SAE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def manifest_of(sae: SAE, **changes: object) -> Manifest:
    return Manifest(
        **{
            "name": "tiny-sae",
            "model_name": "tiny",
            "model_sha256": "0" * 64,
            "quantization": "none",
            "hook_point": "layers.1.output",
            "d_model": sae.d_model,
            "num_latents": sae.num_latents,
            "activation": sae.activation,
            "k": sae.k,
            "scale": sae.scale,
            "apply_b_dec": sae.apply_b_dec,
            "normalization": sae.normalization,
        }
        | changes
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good jumprelu dictionary: it has every kind of tensor."""
    sae = tiny.sae("jumprelu")
    save_sae(sae, manifest_of(sae), tmp_path / "good")
    return tmp_path / "good"


def change_manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps(content | changes))


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Put tensors into the weights file, or take out those that are None; the manifest stays."""
    tensors: dict[str, Any] = load_file(folder / WEIGHTS_FILE) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS_FILE)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_sae(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# --- round trip -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(tmp_path, activation, dtype):
    sae = tiny.sae(activation, scale=0.3, apply_b_dec=False)
    saved = save_sae(sae, manifest_of(sae, dtype=dtype), tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.manifest == saved == load_manifest(tmp_path)
    sae.to_weights_dtype(DTYPES[dtype])
    x_TD = torch.randn(7, tiny.D_MODEL, generator=torch.Generator().manual_seed(5))
    assert torch.equal(loaded.encode(x_TD), sae.encode(x_TD))
    assert torch.equal(loaded.reconstruct(x_TD), sae.reconstruct(x_TD))
    for name, tensor in sae.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
def test_normalization_comes_back(tmp_path, normalization):
    sae = tiny.sae("relu", normalization=normalization)
    save_sae(sae, manifest_of(sae), tmp_path)
    x_TD = torch.randn(3, tiny.D_MODEL, generator=torch.Generator().manual_seed(5))
    assert torch.equal(load_sae(str(tmp_path)).encode(x_TD), sae.encode(x_TD))


@pytest.mark.parametrize("dtype", DTYPES)
def test_thresholds_and_the_mean_are_stored_whole(tmp_path, dtype):
    sae = tiny.sae("jumprelu")
    manifest = save_sae(sae, manifest_of(sae, dtype=dtype), tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    for name, tensor in stored.items():
        wanted = torch.float32 if name in ("threshold", "resid_mean") else DTYPES[dtype]
        assert tensor.dtype == wanted, name
        assert manifest.tensors[name].dtype == str(wanted).removeprefix("torch.")
        assert manifest.tensors[name].shape == list(tensor.shape)
    assert torch.equal(stored["threshold"], sae.threshold)
    assert torch.equal(stored["resid_mean"], sae.resid_mean)


def test_saving_leaves_the_dictionary_in_memory_alone(tmp_path):
    sae = tiny.sae("jumprelu")
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    save_sae(sae, manifest_of(sae, dtype="bfloat16"), tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


def test_saves_a_dictionary_in_training(tmp_path):
    sae = tiny.sae("relu").requires_grad_(True)
    sae.W_enc = torch.nn.Parameter(sae.W_enc.detach().T.contiguous().T)  # trained transposed: not contiguous
    save_sae(sae, manifest_of(sae), tmp_path)
    assert torch.equal(load_sae(tmp_path).W_enc, sae.W_enc)


def test_the_manifest_keeps_free_form_entries(tmp_path):
    sae = tiny.sae()
    training, metrics = {"data": ["«a»"], "tokens": 10}, {"fvu": 0.25}
    save_sae(sae, manifest_of(sae, training=training, metrics=metrics, resid_norm_mean=3.5), tmp_path)
    manifest = load_manifest(tmp_path)
    assert (manifest.training, manifest.metrics, manifest.resid_norm_mean) == (training, metrics, 3.5)
    assert manifest.hook == HookPoint(1, "output")


# --- refusals: tensors ----------------------------------------------------------------------------------------------


def test_missing_tensor(folder):
    change_tensors(folder, W_dec=None)
    assert "missing tensor W_dec [64, 32]" in refusal(folder)


def test_extra_tensor(folder):
    change_tensors(folder, W_skip=torch.zeros(2))
    assert "unexpected tensor W_skip" in refusal(folder)


def test_misshaped_tensor(folder):
    change_tensors(folder, W_enc=torch.zeros(64, 32))
    assert "tensor W_enc must have shape [32, 64], got [64, 32]" in refusal(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["W_enc", "threshold", "resid_mean"])
def test_non_finite_tensor(folder, name, value):
    tensor = load_file(folder / WEIGHTS_FILE)[name]
    tensor.view(-1)[1:3] = value
    change_tensors(folder, **{name: tensor})
    wanted = f"tensor {name} must be finite, got 2 NaN or infinite of {tensor.numel()} values"
    assert wanted in refusal(folder)


def test_altered_tensor(folder):
    tensor = load_file(folder / WEIGHTS_FILE)["b_dec"]
    wanted = load_manifest(folder).tensors["b_dec"].sha256[:12]
    change_tensors(folder, b_dec=tensor + 1e-6)
    message = refusal(folder)
    assert f"tensor b_dec must be float32[32] with sha256 {wanted}, got float32[32] with sha256 " in message
    assert message.count(wanted) == 1


def test_tensor_of_another_dtype(folder):
    change_tensors(folder, threshold=load_file(folder / WEIGHTS_FILE)["threshold"].to(torch.bfloat16))
    assert "tensor threshold must be float32[64] " in (message := refusal(folder))
    assert "got bfloat16[64] " in message


def test_tensor_without_a_record(folder):
    records = json.loads((folder / MANIFEST_FILE).read_text())["tensors"]
    del records["b_enc"]
    change_manifest(folder, tensors=records)
    assert "tensor b_enc has no record in the manifest" in refusal(folder)


def test_reports_all_that_is_wrong_at_once(folder):
    change_tensors(folder, W_dec=None, W_skip=torch.zeros(2), b_dec=torch.zeros(3), b_enc=torch.full((64,), math.nan))
    message = refusal(folder)
    for part in ("missing tensor W_dec", "unexpected tensor W_skip", "tensor b_dec must have", "tensor b_enc must be"):
        assert part in message


# --- refusals: files ------------------------------------------------------------------------------------------------


def test_missing_folder(tmp_path):
    assert f"is no dictionary: it has no {MANIFEST_FILE}" in refusal(tmp_path / "absent")


def test_missing_manifest(folder):
    (folder / MANIFEST_FILE).unlink()
    assert f"is no dictionary: it has no {MANIFEST_FILE}" in refusal(folder)


def test_missing_weights(folder):
    (folder / WEIGHTS_FILE).unlink()
    assert f"has a manifest but no {WEIGHTS_FILE}" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_weights(folder, kept):
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:kept])
    assert f"{WEIGHTS_FILE} is no readable safetensors file" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_damaged_manifest(folder, content):
    (folder / MANIFEST_FILE).write_bytes(content)
    assert f"{MANIFEST_FILE}: file: " in refusal(folder)


def test_a_file_where_the_folder_should_be(folder):
    assert f"{MANIFEST_FILE} can't be read: Not a directory" in refusal(folder / WEIGHTS_FILE)


def test_a_folder_where_a_file_should_be(folder):
    (folder / WEIGHTS_FILE).unlink()
    (folder / WEIGHTS_FILE).mkdir()
    assert f"{WEIGHTS_FILE} is no readable safetensors file" in refusal(folder)


# --- refusals: the manifest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", 2),
        ("name", None),
        ("d_model", 0),
        ("d_model", "wide"),
        ("num_latents", -1),
        ("activation", "tanh"),
        ("normalization", "batch"),
        ("scale", 0),
        ("scale", math.nan),
        ("scale", math.inf),
        ("resid_norm_mean", -1.0),
        ("resid_norm_mean", math.inf),
        ("bos_policy", "sometimes"),
        ("first_position", "maybe"),
        ("dtype", "int4"),
        ("surprise", 1),
    ],
)
def test_refuses_a_field_by_name(folder, field, value):
    change_manifest(folder, **{field: value})
    assert f"{MANIFEST_FILE}: {field}: " in refusal(folder)


def test_names_every_wrong_field(folder):
    change_manifest(folder, d_model=0, scale=-1, surprise=1)
    message = refusal(folder)
    assert all(f"{field}: " in message for field in ("d_model", "scale", "surprise"))


def test_refuses_an_unknown_key_in_a_tensor_record(folder):
    records = json.loads((folder / MANIFEST_FILE).read_text())["tensors"]
    records["W_enc"]["stride"] = 1
    change_manifest(folder, tensors=records)
    assert "tensors.W_enc.stride: " in refusal(folder)


def test_refuses_a_missing_field(folder):
    content = json.loads((folder / MANIFEST_FILE).read_text())
    del content["model_sha256"]
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    assert "model_sha256: Field required" in refusal(folder)


def test_refuses_a_bad_hook_point(folder):
    change_manifest(folder, hook_point="layers.1.mlp")
    assert "hook point must look like 'layers.15.output'" in (message := refusal(folder))
    assert "got 'layers.1.mlp'" in message


@pytest.mark.parametrize("k", [None, 0, 65])
def test_refuses_a_topk_without_a_sensible_k(tmp_path, k):
    sae = tiny.sae("topk")
    save_sae(sae, manifest_of(sae), tmp_path)
    change_manifest(tmp_path, k=k)
    assert f"k must lie in 1..64 for activation topk, got {k}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"activation": "relu"}, "unexpected tensor threshold"),
        ({"activation": "batchtopk"}, "tensor threshold must have shape [], got [64]"),
        ({"activation": "gated"}, "missing tensor b_gate [64]"),
        ({"d_model": 16}, "tensor W_enc must have shape [16, 64], got [32, 64]"),
        ({"num_latents": 128}, "tensor W_dec must have shape [128, 32], got [64, 32]"),
    ],
)
def test_refuses_a_manifest_of_another_dictionary(folder, changes, wanted):
    change_manifest(folder, **changes)
    assert wanted in refusal(folder)


def test_refuses_sizes_beyond_any_memory(folder):
    change_manifest(folder, d_model=2**61, num_latents=2**61)
    assert f"a dictionary of {2**61} x {2**61} does not fit into memory" in refusal(folder)


# --- refusals when saving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 16),
        ("num_latents", 65),
        ("activation", "jumprelu"),
        ("k", 9),
        ("scale", 2.0),
        ("apply_b_dec", False),
        ("normalization", "layer_norm"),
    ],
)
def test_saves_only_under_a_manifest_that_fits(tmp_path, field, value):
    sae = tiny.sae("relu")
    with pytest.raises(CheckpointError) as error:
        save_sae(sae, manifest_of(sae, **{field: value}), tmp_path)
    assert str(error.value) == f"manifest field {field} must be the SAE's {getattr(sae, field)}, got {value}"
    assert not list(tmp_path.iterdir())


def test_does_not_save_what_could_not_be_loaded(tmp_path):
    sae = tiny.sae("relu")
    sae.W_dec[3, 4] = 1e6  # infinite in float16
    with pytest.raises(CheckpointError, match="tensor W_dec must be finite in float16"):
        save_sae(sae, manifest_of(sae, dtype="float16"), tmp_path)
    assert not list(tmp_path.iterdir())
    save_sae(sae, manifest_of(sae, dtype="bfloat16"), tmp_path)
    assert load_sae(tmp_path).W_dec[3, 4] == torch.tensor(1e6, dtype=torch.bfloat16)


# --- whole or not at all --------------------------------------------------------------------------------------------


def test_leaves_two_files_and_no_parts(folder):
    save_sae(tiny.sae("relu", seed=9), manifest_of(tiny.sae("relu")), folder)
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST_FILE, WEIGHTS_FILE]


def test_a_save_cut_off_in_the_weights_leaves_the_old_dictionary(folder, monkeypatch):
    old = load_sae(folder)

    def fail_half_way(_tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail_half_way)
    new = tiny.sae("jumprelu", seed=9)
    with pytest.raises(CheckpointError, match="good can't be written: no space"):
        save_sae(new, manifest_of(new), folder)
    assert torch.equal(load_sae(folder).W_enc, old.W_enc)


def test_a_save_cut_off_between_the_files_is_refused_when_loaded(folder, monkeypatch):
    def fail(_path: Path, _text: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", fail)
    new = tiny.sae("jumprelu", seed=9)
    with pytest.raises(CheckpointError, match="good can't be written: no space"):
        save_sae(new, manifest_of(new), folder)
    assert "tensor W_enc must be float32[32, 64] with sha256" in refusal(folder)


def test_text_that_can_not_be_written_leaves_the_old_text(tmp_path):
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new" * 10_000 + "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, "new «text»")
    assert path.read_text(encoding="utf-8") == "new «text»"


# --- identity -------------------------------------------------------------------------------------------------------

RECORD = TensorRecord(shape=[2], dtype="float32", sha256="a" * 64)
BASE = manifest_of(tiny.sae("jumprelu")).model_copy(update={"tensors": {"W_enc": RECORD}})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hook_point", "layers.2.output"),
        ("d_model", 33),
        ("num_latents", 65),
        ("activation", "relu"),
        ("k", 3),
        ("scale", 0.5),
        ("apply_b_dec", False),
        ("normalization", "layer_norm"),
        ("tensors", {"W_enc": RECORD.model_copy(update={"sha256": "b" * 64})}),
        ("tensors", {"W_dec": RECORD}),
        ("tensors", {"W_enc": RECORD, "W_dec": RECORD}),
    ],
)
def test_identity_follows_the_maths_and_the_tensors(field, value):
    assert BASE.model_copy(update={field: value}).sae_sha256 != BASE.sae_sha256


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "other"),
        ("model_name", "other"),
        ("training", {"tokens": 1}),
        ("metrics", {"fvu": 0.1}),
        ("resid_norm_mean", 4.0),
    ],
)
def test_identity_ignores_names_and_figures(field, value):
    changed = BASE.model_copy(update={field: value})
    assert changed != BASE
    assert changed.sae_sha256 == BASE.sae_sha256


def test_identity_ignores_the_order_of_tensors():
    two = {"W_enc": RECORD, "W_dec": RECORD.model_copy(update={"sha256": "b" * 64})}
    forth, back = ({"tensors": dict(items)} for items in (two.items(), reversed(two.items())))
    assert BASE.model_copy(update=forth).sae_sha256 == BASE.model_copy(update=back).sae_sha256


def test_identity_survives_the_disk_and_tells_dictionaries_apart(tmp_path):
    hashes = []
    for seed, dtype in ((1, "float32"), (1, "bfloat16"), (2, "float32")):
        sae = tiny.sae("relu", seed=seed)
        folder = tmp_path / f"{seed}-{dtype}"
        saved = save_sae(sae, manifest_of(sae, dtype=dtype), folder)
        assert load_sae(folder).manifest.sae_sha256 == saved.sae_sha256
        hashes.append(saved.sae_sha256)
    assert len(set(hashes)) == 3
    assert all(len(sha) == 64 for sha in hashes)


def test_a_full_disk_is_named_and_the_dictionary_before_it_kept(folder):
    old = load_sae(folder)
    new = tiny.sae("jumprelu", seed=9)
    with room_for(1000), pytest.raises(CheckpointError, match=r"dictionary .*good can't be written: .*File too large"):
        save_sae(new, manifest_of(new), folder)
    assert torch.equal(load_sae(folder).W_enc, old.W_enc)
