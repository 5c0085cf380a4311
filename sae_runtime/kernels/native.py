"""Compiles the C kernels with the machine's own compiler, once, and loads them.

The library is kept under the hash of its source and flags: beside the source where somebody put it there
(`python -m sae_runtime.kernels.native FOLDER` makes one, for machines without a compiler), else in a cache folder.
Where it can't be had `load` says why, and models compute as transformers does.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("decoder_block.c")
_SETS = {
    "avx512f": "avx512_f",
    "avx512bw": "avx512_bw",
    "avx512dq": "avx512_dq",
    "avx512vl": "avx512_vl",
    "avx512bf16": "avx512_bf16",
    "fma": "fma3",
    "f16c": "f16c",
}
"""Instruction sets, as compilers and as torch call them."""
# No -ffast-math: a request whose numbers are not finite has to show it.
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", *(f"-m{name}" for name in _SETS))


class NativeKernelsMissing(Exception):
    """Why there are no native kernels here, in one line."""


class Matrix(ctypes.Structure):
    """`Matrix` of the C source."""

    _fields_ = (
        ("blocks", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bits", ctypes.c_int32),
        ("num_outputs", ctypes.c_int32),
        ("num_inputs", ctypes.c_int32),
    )


class Block(ctypes.Structure):
    """`Block` of the C source."""

    _fields_ = (
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("input_norm", "mlp_norm", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("slot_stride", "head_stride")),
        *((name, ctypes.c_int32) for name in ("d_model", "d_mlp", "num_heads", "num_kv_heads", "head_dim")),
        *((name, ctypes.c_float) for name in ("norm_eps", "scaling")),
    )


class Pass(ctypes.Structure):
    """`Pass` of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("slots", "positions", "cos", "sin")),
        *((name, ctypes.c_void_p) for name in ("normed", "qkv", "seen", "middle", "inner", "sums", "inner_sums")),
        *((name, ctypes.c_int32) for name in ("num_tokens", "num_threads")),
    )


class Dictionary(ctypes.Structure):
    """`Dictionary` of the C source."""

    _fields_ = (
        ("screen", Matrix),
        *((name, ctypes.c_void_p) for name in ("encoder", "slack", "least", "offset", "threshold")),
        *((name, ctypes.c_void_p) for name in ("decoder", "bias", "mean")),
        ("scale", ctypes.c_float),
    )


class Operation(ctypes.Structure):
    """`Operation` of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("direction", "encoder")),
        *((name, ctypes.c_float) for name in ("input_scale", "offset", "threshold", "strength", "max_relative_norm")),
        *((name, ctypes.c_int32) for name in ("op", "is_relative")),
    )


@cache
def load(cache_dir: Path) -> Any:
    """The library, as ctypes has it; compiled if it is not there yet. NativeKernelsMissing says why it can't be had."""
    check_processor()
    path = library_path(cache_dir)
    library = _loaded(path) if path.is_file() else None
    if library is None:
        build(path)
        library = _loaded(path)
    if library is None:
        raise NativeKernelsMissing(f"{path} was compiled anew and can't be loaded all the same")
    pointer, count = ctypes.c_void_p, ctypes.c_int
    arguments = {
        "telltale_blocks": (pointer, count, pointer, pointer, pointer),
        "telltale_norm": (pointer, ctypes.c_float, count, pointer, count, pointer),
        "telltale_product": (pointer, pointer, count, pointer, pointer, count),
        "telltale_most_likely": (pointer, count, count, ctypes.c_int64, pointer, pointer, pointer, count),
        "telltale_norms": (pointer, count, count, pointer),
        "telltale_read_some": (pointer, pointer, count, pointer, count, pointer),
        "telltale_read": (pointer, pointer, count, pointer, pointer, pointer, count),
        "telltale_steer": (pointer, pointer, count, pointer, count),
        "telltale_moves": (pointer, pointer, count, count, pointer),
    }
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None
    library.telltale_read_some.restype = count
    return library


def _loaded(path: Path) -> Any:
    """None, and a line in the log, for a damaged file: it would keep the kernels away until somebody deletes it."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        logger.warning("%s can't be loaded: %s", path, error)
        return None


def build(path: Path) -> None:
    """Compile the library to `path`. NativeKernelsMissing says what was in the way."""
    compiler = find_compiler()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [compiler, *_FLAGS, str(SOURCE), "-o", str(made), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = " ".join(done.stderr.split())
                raise NativeKernelsMissing(f"{' '.join(command)} failed with code {done.returncode}: {said[:500]}")
            made.replace(path)  # at once, so that nobody loads half of it
    except OSError as error:
        raise NativeKernelsMissing(f"{path} can't be made: {error.strerror}") from None


def find_compiler() -> str:
    """Where the C compiler is. NativeKernelsMissing if there is none."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise NativeKernelsMissing("there is no C compiler: install gcc or clang, or name one in the variable CC")
    return compiler


def library_path(cache_dir: Path) -> Path:
    """Where the library is, or is to be: beside the source if it lies there."""
    beside, cached = SOURCE.parent / library_name(), cache_dir / "kernels" / library_name()
    return beside if beside.is_file() else cached


def library_name() -> str:
    """File name of the library: another for every other recipe."""
    recipe = SOURCE.read_bytes() + " ".join(_FLAGS).encode()
    return f"decoder_block-{hashlib.sha256(recipe).hexdigest()[:16]}.so"


def check_processor() -> None:
    """NativeKernelsMissing for a processor without an instruction set that the kernels are made of."""
    if not hasattr(torch.cpu, "get_capabilities"):
        raise NativeKernelsMissing("this release of torch does not say which instruction sets there are")
    found = torch.cpu.get_capabilities()
    missing = [name for name, known_as in _SETS.items() if not found.get(known_as)]
    if missing:
        raise NativeKernelsMissing(f"this processor has no {', '.join(missing)}")


if __name__ == "__main__":
    build(Path(sys.argv[1]) / library_name())
