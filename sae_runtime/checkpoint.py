"""The dictionary on disk: a folder with `sae.safetensors` and `sae.json`, and the strict way back.

The manifest says what the dictionary *is*: which model, weights and hook point it was trained on, its maths, its
tensors by hash, and the figures it reached. Loading checks all of it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_runtime.errors import CheckpointError, plain_reason
from sae_runtime.hook_point import HookPoint
from sae_runtime.sae import ALWAYS_FLOAT32, SAE, Activation, Normalization
from sae_runtime.whole_files import whole_file

WEIGHTS_FILE = "sae.safetensors"
MANIFEST_FILE = "sae.json"

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class TensorRecord(BaseModel):
    """One tensor of the weights file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    shape: list[int]
    dtype: str
    sha256: str


class Manifest(BaseModel):
    """What a dictionary is. Fields are the keys of `sae.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format_version: Literal[1] = 1
    name: str
    """Short name, shown to clients."""
    model_name: str
    """Model it was trained on, as a person would name it."""
    model_sha256: str
    """Hash of that model's weights as stored (see `language_model.ModelIdentity.weights_sha256`)."""
    quantization: str
    """How those weights were quantised while activations were taken: gguf-q4_1, nf4, int8, none."""
    hook_point: str
    d_model: int = Field(gt=0)
    num_latents: int = Field(gt=0)
    activation: Activation
    k: int | None = None
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """`s` of the maths: residuals are multiplied by it before encoding."""
    apply_b_dec: bool = True
    normalization: Normalization = "scalar"
    bos_policy: Literal["tokenizer", "always", "never", "unknown"] = "tokenizer"
    """Whether training texts began with a BOS token; `tokenizer`: as the tokenizer does by itself."""
    first_position: Literal["excluded", "included", "unknown"] = "excluded"
    """Whether position 0 was part of the training data."""
    decoder_norms_folded: bool = False
    """True if decoder rows were scaled to norm 1 and latents accordingly."""
    resid_norm_mean: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Mean ||x|| of the training residuals, position 0 left out; the yardstick for raw steering strengths."""
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"
    training: dict[str, Any] = {}
    """Data, tokens, recipe."""
    metrics: dict[str, Any] = {}
    """Figures on held-out text."""
    tensors: dict[str, TensorRecord] = {}

    @property
    def sae_sha256(self) -> str:
        """Identity of the dictionary: hash over its maths and its tensors' hashes, not over names and figures."""
        maths = self.model_dump(
            include={"hook_point", "d_model", "num_latents", "activation", "k", "scale", "apply_b_dec", "normalization"}
        )
        maths["tensors"] = {name: record.sha256 for name, record in sorted(self.tensors.items())}
        return hashlib.sha256(json.dumps(maths, sort_keys=True).encode()).hexdigest()

    @property
    def hook(self) -> HookPoint:
        return HookPoint.parse(self.hook_point)


class LoadedSAE(SAE):
    """An SAE together with the manifest it came from."""

    manifest: Manifest


def save_sae(sae: SAE, manifest: Manifest, folder: Path) -> Manifest:
    """Write `sae` to `folder` in the manifest's dtype; returns the manifest with the tensor records filled in.

    Both files appear whole or not at all (written beside and renamed; the manifest last). CheckpointError if the
    manifest is of something else, a value does not fit its dtype, or the disk is full.
    """
    for field in ("d_model", "num_latents", "activation", "k", "scale", "apply_b_dec", "normalization"):
        if getattr(manifest, field) != getattr(sae, field):
            raise CheckpointError(
                f"manifest field {field} must be the SAE's {getattr(sae, field)}, got {getattr(manifest, field)}"
            )
    tensors = stored_tensors(sae, manifest)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"tensor {name} must be finite in {manifest.dtype}, got NaN or infinite values")
    manifest = with_records(manifest, tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / WEIGHTS_FILE) as partial:
            save_file(tensors, partial)
        write_atomically(folder / MANIFEST_FILE, manifest.model_dump_json(indent=1) + "\n")
    except (OSError, SafetensorError) as error:  # a full disk, as the two say it
        raise CheckpointError(f"dictionary {folder} can't be written: {plain_reason(error)}") from error
    return manifest


def stored_tensors(sae: SAE, manifest: Manifest) -> dict[str, Tensor]:
    """What the weights file of `sae` holds: the manifest's dtype, or fp32 for what may not be rounded."""
    tensors = {}
    for name, tensor in sae.state_dict().items():
        dtype = torch.float32 if name in ALWAYS_FLOAT32 else _DTYPES[manifest.dtype]
        tensors[name] = tensor.detach().to("cpu", dtype).contiguous()
    return tensors


def with_records(manifest: Manifest, tensors: dict[str, Tensor]) -> Manifest:
    """The manifest of the dictionary that has these tensors stored."""
    return manifest.model_copy(update={"tensors": {name: _tensor_record(tensor) for name, tensor in tensors.items()}})


def load_manifest(folder: Path) -> Manifest:
    """Read `sae.json`; CheckpointError names every field that is wrong."""
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no dictionary: it has no {MANIFEST_FILE}") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{path}: {problems}") from None


def load_sae(folder: Path | str, *, device: str | torch.device = "cpu") -> LoadedSAE:
    """Load a dictionary, weights in fp32 on `device`, gradients off.

    Raises CheckpointError listing every missing, extra, misshaped, non-finite or altered tensor.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has a manifest but no {WEIGHTS_FILE}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from None
    try:
        sae = LoadedSAE(
            d_model=manifest.d_model,
            num_latents=manifest.num_latents,
            activation=manifest.activation,
            k=manifest.k,
            scale=manifest.scale,
            apply_b_dec=manifest.apply_b_dec,
            normalization=manifest.normalization,
        )
        HookPoint.parse(manifest.hook_point)
    except ValueError as error:
        raise CheckpointError(f"{folder / MANIFEST_FILE}: {error}") from None
    except RuntimeError:
        size = f"{manifest.d_model} x {manifest.num_latents}"
        raise CheckpointError(f"{folder / MANIFEST_FILE}: a dictionary of {size} does not fit into memory") from None
    problems = _tensor_problems(tensors, sae.state_dict(), manifest)
    if problems:
        raise CheckpointError(f"{path}: " + "; ".join(problems))
    sae.load_state_dict({name: tensor.to(torch.float32) for name, tensor in tensors.items()})
    sae.manifest = manifest
    return sae.requires_grad_(False).eval().to(device)


def _tensor_problems(tensors: dict[str, Tensor], wanted: dict[str, Tensor], manifest: Manifest) -> list[str]:
    problems = [f"missing tensor {name} {list(wanted[name].shape)}" for name in wanted if name not in tensors]
    problems += [f"unexpected tensor {name}" for name in tensors if name not in wanted]
    for name, tensor in tensors.items():
        if name not in wanted:
            continue
        if tensor.shape != wanted[name].shape:
            problems.append(f"tensor {name} must have shape {list(wanted[name].shape)}, got {list(tensor.shape)}")
        elif not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            problems.append(f"tensor {name} must be finite, got {bad} NaN or infinite of {tensor.numel()} values")
        elif name not in manifest.tensors:
            problems.append(f"tensor {name} has no record in the manifest")
        elif (record := manifest.tensors[name]) != (found := _tensor_record(tensor)):
            problems.append(f"tensor {name} must be {_in_words(record)}, got {_in_words(found)}")
    return problems


def _tensor_record(tensor: Tensor) -> TensorRecord:
    data = tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)
    return TensorRecord(
        shape=list(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        sha256=hashlib.sha256(data.numpy().tobytes()).hexdigest(),
    )


def _in_words(record: TensorRecord) -> str:
    return f"{record.dtype}{record.shape} with sha256 {record.sha256[:12]}"


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that readers see the old file or the new one, never a part."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
