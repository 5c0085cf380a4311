"""Which format a path holds, told by its files' names.

    sae.json                             our own
    cfg.json + sae_weights.safetensors   SAELens
    cfg.json + sae.safetensors           sparsify
    *.npz                                Gemma Scope
    params.safetensors                   Gemma Scope 2
    hyperparams.json                     Llama Scope
    config.json + sae_weights.*, ...     Llama Scope R1-Distill, Llamascopium
    config.json + ae.pt, ae_STEP.pt      dictionary_learning
    another .pt, .pth or .ckpt           Goodfire, qresearch, a Lightning checkpoint

A file of a format that is a folder stands for the folder.
"""

from collections.abc import Callable
from pathlib import Path

from sae_runtime import (
    format_bare,
    format_dictionary_learning,
    format_gemma_scope,
    format_llama_scope,
    format_saelens,
    format_sparsify,
)
from sae_runtime.checkpoint import MANIFEST_FILE, WEIGHTS_FILE
from sae_runtime.errors import CheckpointError
from sae_runtime.foreign import Foreign, Stated

Reader = Callable[[Path, Stated], Foreign]
Found = tuple[Reader, Path]
"""Who reads it, and the folder or file to give."""

_TORCH_ENDINGS = (".pt", ".pth", ".ckpt")
_MARKERS = (MANIFEST_FILE, "cfg.json", "params.npz", "params.safetensors", "hyperparams.json", "ae.pt", "sae_weights.*")
_MAX_NAMED = 5
_KNOWN = (
    "our own, SAELens, Gemma Scope, Llama Scope, sparsify, dictionary_learning, Goodfire, a Lightning checkpoint, "
    "or bare tensors"
)


def own_folder(path: Path) -> Path | None:
    """The folder of a dictionary in our own format, if `path` is one or one of its files."""
    folder = path if path.is_dir() else path.parent
    is_ours = path.is_dir() or path.name in (MANIFEST_FILE, WEIGHTS_FILE)
    return folder if is_ours and (folder / MANIFEST_FILE).exists() else None


def detect(path: Path) -> Found:
    """The reader of what is at `path`. CheckpointError says what is there instead of a dictionary."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    found = _in_folder(path) if path.is_dir() else _in_file(path)
    if found is not None:
        return found
    if path.is_file():
        raise CheckpointError(f"{path} is no dictionary of a known format; known are {_KNOWN}")
    if inside := sorted({str(file.parent.relative_to(path)) for marker in _MARKERS for file in path.rglob(marker)}):
        names = ", ".join(inside[:_MAX_NAMED]) + (", ..." if len(inside) > _MAX_NAMED else "")
        raise CheckpointError(f"{path} is no dictionary but holds some: name one of {names}")
    names = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(f"{path} is no dictionary of a known format: it has {names}; known are {_KNOWN}")


def _in_folder(folder: Path) -> Found | None:
    if (folder / format_saelens.CONFIG_FILE).exists():
        return _with_cfg(folder)
    for name, read, is_file in (
        (format_gemma_scope.WEIGHTS_FILE_1, format_gemma_scope.read_1, True),
        (format_gemma_scope.WEIGHTS_FILE_2, format_gemma_scope.read_2, False),
        (format_llama_scope.CONFIG_FILE_1, format_llama_scope.read_1, False),
        (format_dictionary_learning.WEIGHTS_FILE, format_dictionary_learning.read, True),
    ):
        if (folder / name).exists():
            return read, folder / name if is_file else folder
    weights = [name for name in format_llama_scope.WEIGHTS_FILES_2 if (folder / name).exists()]
    if weights and (folder / format_llama_scope.CONFIG_FILE_2).exists():
        return format_llama_scope.read_2, folder
    files = [child for child in folder.iterdir() if child.suffix in (*_TORCH_ENDINGS, ".npz")]
    return _in_file(files[0]) if len(files) == 1 else None


def _with_cfg(folder: Path) -> Found:
    """SAELens and sparsify name their configuration alike."""
    if (folder / format_saelens.WEIGHTS_FILE).exists():
        return format_saelens.read, folder
    if (folder / format_sparsify.WEIGHTS_FILE).exists():
        return format_sparsify.read, folder
    wanted = f"{format_saelens.WEIGHTS_FILE} (SAELens) or {format_sparsify.WEIGHTS_FILE} (sparsify)"
    raise CheckpointError(f"{folder} has {format_saelens.CONFIG_FILE}, but no {wanted}")


def _in_file(path: Path) -> Found | None:
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if path.suffix == ".npz":
        return format_gemma_scope.read_1, path
    if path.suffix in (".json", ".safetensors"):
        return _in_folder(folder)
    if path.suffix not in _TORCH_ENDINGS:
        return None
    if str(path.relative_to(folder)) in format_llama_scope.WEIGHTS_FILES_2:
        return _in_folder(folder)
    is_theirs = path.name == format_dictionary_learning.WEIGHTS_FILE
    if is_theirs or format_dictionary_learning.find_config(path) is not None:
        return format_dictionary_learning.read, path
    return format_bare.read, path
