"""Weights on disk: which ones they are, by hash, and whether there is memory for them."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sae_runtime.checkpoint import write_atomically
from sae_runtime.errors import ModelError, one_line

# Weights beside which a working process needs room for activations, caches and the runtime itself.
_MEMORY_HEADROOM_BYTES = 512 * 2**20


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/telltale`, or `~/.cache/telltale`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "telltale"


def check_hash(source: str, found: str, expected: str | None) -> None:
    """ModelError for other weights than those expected; None expects nothing."""
    if expected is not None and found != expected:
        raise ModelError(f"weights of {source} must have sha256 {expected}, got {found}")


def folder_sha256(folder: Path, cache_dir: Path, *, progress: bool = False) -> str:
    """sha256 over the sorted (name, sha256) list of a folder's weight files; ModelError if it has none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"model folder {folder} has no .safetensors weights")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {file_sha256(file, cache_dir, progress=progress)}\n".encode())
    return total.hexdigest()


def file_sha256(path: Path, cache_dir: Path, *, progress: bool = False) -> str:
    """sha256 of a file, remembered under its path, size and modification time: a start reads gigabytes only once."""
    stat = path.resolve().stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    record = cache_dir / "hashes" / key
    # A cache that can't be read or written costs time at the next start, nothing else.
    with contextlib.suppress(OSError):
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
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, digest.hexdigest())
    return digest.hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`; ModelError if it is none."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is no model configuration: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no model configuration: it must hold an object, got {type(config).__name__}")
    return config


def resident_bytes(folder: Path, quantization: str, dtype: torch.dtype) -> int:
    """About what a folder's weights take once loaded."""
    config = read_config(folder)
    stored_bytes = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    stored_dtype = config.get("dtype") or config.get("torch_dtype")  # the older name
    num_weights = stored_bytes / (4 if stored_dtype == "float32" else 2)
    per_weight = {"nf4": 0.6, "int8": 1.1}.get(quantization, float(dtype.itemsize))
    return int(num_weights * per_weight)


def check_memory(needed_bytes: int, device: str, what: str) -> None:
    """ModelError if `needed_bytes` and room to work in are more than there is on `device`."""
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
