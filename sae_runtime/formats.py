"""Dictionaries in other libraries' formats, as our own: `import_sae(path)`.

The format is told from the files (`format_detection`), read (`format_*`), and built into an SAE with a manifest here. A
dictionary that our maths can't express is refused by name. What no file says is assumed, and every assumption is
recorded in the manifest under `training["import"]`. No file says which weights it was trained on, so an imported
dictionary is served as unverified until somebody binds it to a model.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch

from sae_runtime.checkpoint import LoadedSAE, Manifest, load_sae, stored_tensors, with_records
from sae_runtime.errors import CheckpointError
from sae_runtime.foreign import Foreign, Stated, settle_hook
from sae_runtime.format_detection import detect, own_folder
from sae_runtime.hook_point import HookPoint
from sae_runtime.sae_parts import SAEParts

UNKNOWN = "unknown"
"""In a manifest: nobody has said. Never equal to what a server runs, so such a dictionary is unverified."""

_NORM_TOLERANCE = 0.01
"""Decoder rows this near to 1 count as normed: bf16 rounds a norm by less."""


def import_sae(
    path: Path | str,
    *,
    scale: float | None = None,
    hook_point: HookPoint | str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    fold_decoder_norms: bool = False,
) -> LoadedSAE:
    """The dictionary at `path`, whatever format it is in: weights in fp32, gradients off.

    Args:
        path: a folder or a file.
        scale: residuals are multiplied by it before encoding. Needed where the format does not say; refused where the
            file says otherwise.
        hook_point: where it reads the residual, for files that don't say. Without it the manifest has "unknown", and
            the dictionary can be used but neither saved for serving nor served.
        k, threshold: for BatchTopK files that hold neither.
        fold_decoder_norms: scale decoder rows to norm 1 and latents accordingly, as Neuronpedia shows them.

    Raises:
        CheckpointError: nothing there, an unknown or damaged file, a dictionary our maths can't express, a format that
            leaves open what must be known, or a statement that contradicts the file.
    """
    path, stated = Path(path), _checked(Stated(scale, _parsed(hook_point), k, threshold))
    if (own := own_folder(path)) is not None:
        if any(value is not None for value in stated) or fold_decoder_norms:
            raise CheckpointError(f"{own} is a dictionary in our own format: it says everything itself")
        return load_sae(own)
    read, place = detect(path)
    foreign = read(place, stated)
    if (k, threshold) != (None, None) and not foreign.has_stated_activation:
        raise CheckpointError(f"{path}: k and threshold must be left out: {foreign.format} has its own")
    if fold_decoder_norms:
        foreign.parts = foreign.parts.fold_decoder_norms()
    return _build(foreign, settle_hook(foreign, stated.hook_point), path)


def _checked(stated: Stated) -> Stated:
    for name, value in (("scale", stated.scale), ("threshold", stated.threshold)):
        if value is not None and not 0 < value < math.inf:
            raise CheckpointError(f"{name} must be positive and finite, got {value}")
    return stated


def _parsed(hook_point: HookPoint | str | None) -> HookPoint | None:
    try:
        return HookPoint.parse(hook_point) if isinstance(hook_point, str) else hook_point
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _build(foreign: Foreign, hook: HookPoint | None, path: Path) -> LoadedSAE:
    parts = foreign.parts
    try:
        sae = LoadedSAE(
            d_model=parts.d_model,
            num_latents=parts.num_latents,
            activation=parts.activation,
            k=parts.k,
            scale=parts.scale,
            apply_b_dec=parts.apply_b_dec,
            normalization=parts.normalization,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    sae.load_state_dict(parts.tensors | {"resid_mean": torch.zeros(parts.d_model)})
    if not all(tensor.isfinite().all() for tensor in sae.state_dict().values()):
        raise CheckpointError(f"{path}: a tensor must be finite, got NaN or infinite values once its units are ours")
    manifest = _manifest(foreign, hook, path)
    sae.manifest = with_records(manifest, stored_tensors(sae, manifest))
    return sae.requires_grad_(False).eval()


def _manifest(foreign: Foreign, hook: HookPoint | None, path: Path) -> Manifest:
    parts = foreign.parts
    norms_F = parts.tensors["W_dec"].norm(dim=-1)
    record: dict[str, Any] = {
        "format": foreign.format,
        "files": {str(file.name): _sha256(file) for file in foreign.files if file.is_file()},
        "hook_name": foreign.hook_name,
        "model_name": foreign.model_name,
        "expected_l0": foreign.expected_l0,
        "found": foreign.found,
        "assumed": foreign.assumed,
    }
    return Manifest(
        name=path.absolute().stem if path.is_file() else path.absolute().name,
        model_name=str(foreign.model_name or UNKNOWN),
        model_sha256=UNKNOWN,
        quantization=UNKNOWN,
        hook_point=str(hook) if hook is not None else UNKNOWN,
        d_model=parts.d_model,
        num_latents=parts.num_latents,
        activation=parts.activation,
        k=parts.k,
        scale=parts.scale,
        apply_b_dec=parts.apply_b_dec,
        normalization=parts.normalization,
        bos_policy=foreign.bos_policy,
        first_position="unknown",
        decoder_norms_folded=bool(((norms_F - 1).abs() <= _NORM_TOLERANCE).all()),
        dtype=_lossless_dtype(parts),
        training={"import": record},
    )


def _lossless_dtype(parts: SAEParts) -> Any:
    """The shortest dtype that keeps every weight as it is: that of the file, unless something was folded."""
    weights = [tensor for name, tensor in parts.tensors.items() if name != "threshold"]
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(tensor.to(dtype).to(torch.float32), tensor) for tensor in weights):
            return str(dtype).removeprefix("torch.")
    return "float32"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
