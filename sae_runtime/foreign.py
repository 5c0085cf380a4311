"""A dictionary in somebody else's format, read: what its files say, what had to be assumed, and its parts.

The readers of the single formats are the modules `format_*`; this one has what they share: reading files without
running code from them, and checking tensors by name, shape and value. Whatever is wrong ends in a CheckpointError of
one line that names the file, what it should hold and what it does.
"""

import contextlib
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_runtime.errors import CheckpointError
from sae_runtime.hook_point import HookPoint
from sae_runtime.sae_parts import SAEParts

BosPolicy = Literal["tokenizer", "always", "never", "unknown"]

_HUGGING_FACE = re.compile(
    r"(?:(?:model|language_model|transformer|gpt_neox)\.)*(?:layers|h)\.(\d+)(?:\.(input|output))?"
)
_SAME_FACTOR = 1e-4

Layout = dict[str, tuple[str, str]]
"""Names in a file -> our name, and the axes it has in the file: D model width, F latents, none for a scalar."""

_OUR_AXES = {"W_enc": "DF", "W_dec": "FD"}


def linear_layout(encoder: str = "encoder", decoder: str = "decoder") -> Layout:
    """An encoder and a decoder that are nn.Linear with biases."""
    return {
        f"{encoder}.weight": ("W_enc", "FD"),
        f"{encoder}.bias": ("b_enc", "F"),
        f"{decoder}.weight": ("W_dec", "DF"),
        f"{decoder}.bias": ("b_dec", "D"),
    }


PLAIN_LAYOUT: Layout = {
    "W_enc": ("W_enc", "DF"),
    "b_enc": ("b_enc", "F"),
    "W_dec": ("W_dec", "FD"),
    "b_dec": ("b_dec", "D"),
}
"""Names and orientation as they are here."""


class Stated(NamedTuple):
    """What the user says of a dictionary whose files don't."""

    scale: float | None = None
    """Residuals are multiplied by it before encoding."""
    hook_point: HookPoint | None = None
    k: int | None = None
    threshold: float | None = None
    """These two are for BatchTopK files that hold neither."""


@dataclass(slots=True)
class Foreign:
    """A dictionary read from another format."""

    format: str
    """Format and version, as a person would name them."""
    files: list[Path]
    parts: SAEParts
    hook_name: str | None = None
    """The hook point in the file's own words."""
    model_name: str | None = None
    bos_policy: BosPolicy = "unknown"
    expected_l0: float | None = None
    """Active latents a token according to the files."""
    found: dict[str, Any] = field(default_factory=dict)
    """What else the files say that may matter: data, versions."""
    assumed: list[str] = field(default_factory=list)
    """What no file says, one sentence each."""
    has_stated_activation: bool = False
    """True if `Stated.k` or `Stated.threshold` was of use."""


# --- reading files --------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {_one_line(error)}") from None


def read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of an npz file; pickled objects in it are refused."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no readable npz file of numbers: {_one_line(error)}") from None


def read_torch(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, if it is a dict. Only tensors and plain values: no code from the file is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what can't be read is refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} must hold tensors and plain values only, which is all that is read: {_one_line(error)}"
        ) from None
    except Exception as error:  # the unpickler raises whatever a damaged file's bytes make of it
        raise CheckpointError(f"{path} is no readable PyTorch file: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a dict of tensors, got {type(content).__name__}")
    return content


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- checking -------------------------------------------------------------------------------------------------------


def check_tensors(
    path: Path, tensors: dict[str, Any], shapes: dict[str, tuple[int, ...]], *, ignored: Collection[str] = ()
) -> None:
    """CheckpointError with all that is missing, unexpected, misshaped, not finite or no floating-point tensor."""
    problems = [f"missing tensor {name} {list(shape)}" for name, shape in shapes.items() if name not in tensors]
    problems += [f"unexpected tensor {name}" for name in tensors if name not in shapes and name not in ignored]
    for name, shape in shapes.items():
        if name in tensors and (problem := _tensor_problem(tensors[name], shape)):
            problems.append(f"tensor {name} must {problem}")
    if problems:
        raise CheckpointError(f"{path}: " + "; ".join(problems))


def _tensor_problem(tensor: Any, shape: tuple[int, ...]) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"be a tensor, got {type(tensor).__name__}"
    if not tensor.is_floating_point():
        return f"hold floating-point numbers, got {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.shape != shape:
        return f"have shape {list(shape)}, got {list(tensor.shape)}"
    if not tensor.isfinite().all():
        bad = int((~tensor.isfinite()).sum())
        return f"be finite, got {bad} NaN or infinite of {tensor.numel()} values"
    return None


def bias_widths(path: Path, tensors: dict[str, Any], *, b_dec: str, b_enc: str) -> tuple[int, int]:
    """(d_model, num_latents) from the two biases, so that a transposed matrix shows."""
    widths = []
    for name in (b_dec, b_enc):
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor) or tensor.dim() != 1:
            found = f"shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"tensors {', '.join(tensors)}"
            raise CheckpointError(f"{path}: tensor {name} must be there and have one dimension, got {found}")
        widths.append(tensor.shape[0])
    return widths[0], widths[1]


def refuse_square(path: Path, parts: SAEParts) -> None:
    """For formats in which only the shape shows which side of a matrix is which."""
    if parts.d_model == parts.num_latents:
        raise CheckpointError(
            f"{path}: the matrices are square ({parts.d_model} x {parts.num_latents}) and no configuration says which "
            "side is the residual's: the file is ambiguous"
        )


def take(
    path: Path, tensors: dict[str, Any], layout: Layout, widths: tuple[int, int], *, ignored: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of `layout`, checked, under our names, the right way round and in fp32. `widths` is (D, F)."""
    sizes = dict(zip("DF", widths, strict=True))
    shapes = {name: tuple(sizes[axis] for axis in axes) for name, (_, axes) in layout.items()}
    check_tensors(path, tensors, shapes, ignored=ignored)
    return {
        ours: turned(tensors[name], ours, axes).to(torch.float32).contiguous() for name, (ours, axes) in layout.items()
    }


def turned(tensor: Tensor, ours: str, axes: str) -> Tensor:
    """Tensor `ours` between our orientation and `axes`, either way."""
    return tensor if axes == _OUR_AXES.get(ours, axes) else tensor.T


def require(config: dict[str, Any], path: Path, name: str, kind: type) -> Any:
    """`config[name]` of a type; bool is no int."""
    value = config.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(f"{path}: {name} must be of type {kind.__name__}, got {value!r}")
    return value


def choice(path: Path, name: str, value: Any, choices: Collection[str]) -> str:
    """`value`, if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        wanted = f"one of {', '.join(choices)}" if len(choices) > 1 else next(iter(choices))
        raise CheckpointError(f"{path}: {name} must be {wanted}, got {value!r}")
    return value


def positive(path: Path, name: str, value: Any) -> float:
    """A positive finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise CheckpointError(f"{path}: {name} must be a positive number, got {value!r}")
    return float(value)


def whole_k(path: Path, value: Any, num_latents: int) -> int:
    """The k of topk."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= num_latents:
        raise CheckpointError(f"{path}: k must be a whole number in 1..{num_latents}, got {value!r}")
    return value


# --- what is stated and what is found -------------------------------------------------------------------------------


def settle_scale(path: Path, stated: float | None, in_file: float) -> float:
    """The file's own scale (1 if the format has none). The user may repeat it, not contradict it."""
    if stated is not None and abs(stated / in_file - 1) > _SAME_FACTOR:
        raise CheckpointError(f"{path}: scale is {in_file:.6g} according to the file, got {stated:.6g}")
    return in_file


def residual_hook(path: Path, name: Any) -> HookPoint:
    """The hook point of a name in TransformerLens', transformers' or our own words.

    Only places in the residual stream can be read and steered; other ones are refused by name.
    """
    if name in ("hook_embed", "embed_tokens"):
        return HookPoint(0, "input")
    with contextlib.suppress(ValueError):
        return HookPoint.parse(str(name))
    if match := _HUGGING_FACE.fullmatch(str(name)):
        return HookPoint(int(match[1]), "input" if match[2] == "input" else "output")
    raise CheckpointError(f"{path}: hook point must be a place in the residual stream, got {name!r}")


def settle_hook(foreign: Foreign, stated: HookPoint | None) -> HookPoint | None:
    """The hook point the file names, else the stated one; None if neither."""
    if foreign.hook_name is None:
        return stated
    hook = residual_hook(foreign.files[0], foreign.hook_name)
    if stated is not None and not stated.is_same_residual(hook):
        raise CheckpointError(f"{foreign.files[0]}: hook point is {hook} according to the file, got {stated}")
    return hook
