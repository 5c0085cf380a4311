"""Compiles the C kernels with the machine's own compiler, once, and loads them.

The library is kept under the hash of its sources and flags: beside the source where somebody put it there
(`python -m sae_runtime.kernels.native FOLDER` makes one, for machines without a compiler), else in a cache folder.
Where it can't be had `load` says why, and models compute as transformers does.
"""

import argparse
import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sae_runtime.errors import one_line, plain_reason
from sae_runtime.whole_files import whole_file

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.c")
"""The whole is compiled as one; it includes the headers beside it."""
_SETS = {
    "avx512f": "avx512_f",
    "avx512bw": "avx512_bw",
    "avx512dq": "avx512_dq",
    "avx512vl": "avx512_vl",
    "avx512bf16": "avx512_bf16",
    "avx512vnni": "avx512_vnni",
    "fma": "fma3",
    "f16c": "f16c",
}
"""Instruction sets, as compilers and as torch call them."""
# No -ffast-math: a request whose numbers are not finite has to show it. Products and sums become one instruction where
# the source says so, and not where one compiler or another thinks it might.
_FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", *(f"-m{name}" for name in _SETS))


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
        *((name, ctypes.c_void_p) for name in ("screen", "encoder", "slack", "spread")),
        *((name, ctypes.c_void_p) for name in ("offset", "threshold", "decoder", "bias", "mean")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("num_latents", "d_model")),
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
    places = _places(cache_dir)
    found = (_loaded(path) for path in places if _is_there(path))
    library = next((one for one in found if one is not None), None)
    if library is None:
        library = _made(places)
    pointer, count = ctypes.c_void_p, ctypes.c_int
    arguments = {
        "telltale_blocks": (pointer, count, pointer, pointer, pointer),
        "telltale_logits": (pointer, pointer, ctypes.c_float, pointer, count, pointer, pointer),
        "telltale_product": (pointer, pointer, count, pointer, pointer, count),
        "telltale_most_likely": (pointer, count, count, ctypes.c_int64, pointer, pointer, pointer, count),
        "telltale_norms": (pointer, count, count, pointer),
        "telltale_read_some": (pointer, pointer, count, pointer, count, pointer),
        "telltale_read": (pointer, pointer, count, pointer, pointer, pointer, pointer, count),
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
        _check_length(path)
        return ctypes.CDLL(str(path))
    except (OSError, ValueError) as error:
        # The loader's words begin with the path, too.
        reason = one_line(error).removeprefix(f"{path}: ")
        logger.warning("%s can't be loaded, and the kernels are compiled anew: %s", path, reason)
        return None


def _check_length(path: Path) -> None:
    """ValueError for a library that was cut short: the system maps it all the same, and ends the process with SIGBUS
    where it reads beyond the end. Compilers put the table of sections last."""
    with path.open("rb") as file:
        header, num_bytes = file.read(64), os.fstat(file.fileno()).st_size
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return  # no library of 64 bits: the system says so itself
    (start,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    if num_bytes < start + size * count:
        raise ValueError(f"it must have {start + size * count} bytes, got {num_bytes}")


def _made(places: Sequence[Path]) -> Any:
    """The library, compiled to the first of `places` that can be written."""
    first, *others = places
    try:
        build(first)
    except NativeKernelsMissing:
        if not others:
            raise
        return _made(others)
    library = _loaded(first)
    if library is None:
        raise NativeKernelsMissing(f"{first} was compiled anew and can't be loaded all the same")
    return library


def build(path: Path) -> None:
    """Compile the library to `path`. NativeKernelsMissing says what was in the way."""
    compiler = find_compiler()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            command = [*compiler, *_FLAGS, str(SOURCE), "-o", str(partial), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = " ".join(done.stderr.split())
                raise NativeKernelsMissing(f"{' '.join(command)} failed with code {done.returncode}: {said[:500]}")
    except OSError as error:
        raise NativeKernelsMissing(f"{path} can't be made: {plain_reason(error)}") from None


def find_compiler() -> list[str]:
    """The C compiler's command: where it is, and what the variable CC says behind its name. NativeKernelsMissing if
    there is none."""
    named = os.environ.get("CC", "")
    try:
        name, *arguments = shlex.split(named) or ["cc"]
    except ValueError as error:
        raise NativeKernelsMissing(f"the variable CC is no command, {named!r}: {error}") from None
    compiler = shutil.which(name)
    if compiler is None and named:
        raise NativeKernelsMissing(f"there is no C compiler {name}, which the variable CC names")
    if compiler is None:
        raise NativeKernelsMissing("there is no C compiler: install gcc or clang, or name one in the variable CC")
    return [compiler, *arguments]


def sources() -> list[Path]:
    """All that is compiled."""
    return [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]


def is_compiled(cache_dir: Path) -> bool:
    """Whether the library is there, beside the source or in the cache folder."""
    return _is_there(_places(cache_dir)[0])


def _is_there(path: Path) -> bool:
    """False, too, for a folder that may not be entered: what is to be made there says why it can't be."""
    try:
        return path.is_file()
    except OSError:
        return False


def _places(cache_dir: Path) -> list[Path]:
    """Where the library may be, in the order in which it is looked for and made."""
    beside, cached = SOURCE.parent / library_name(), cache_dir / "kernels" / library_name()
    return [beside, cached] if beside.is_file() else [cached]


def library_name() -> str:
    """File name of the library: another for every other recipe."""
    recipe = b"".join(source.read_bytes() for source in sources()) + " ".join(_FLAGS).encode()
    return f"kernels-{hashlib.sha256(recipe).hexdigest()[:16]}.so"


def check_processor() -> None:
    """NativeKernelsMissing for a processor without an instruction set that the kernels are made of."""
    if not hasattr(torch.cpu, "get_capabilities"):
        raise NativeKernelsMissing("this release of torch does not say which instruction sets there are")
    found = torch.cpu.get_capabilities()
    missing = [name for name, known_as in _SETS.items() if not found.get(known_as)]
    if missing:
        raise NativeKernelsMissing(f"this processor has no {', '.join(missing)}")


def main(arguments: Sequence[str]) -> None:
    """Compile the library to a folder, or end with one line that says why not."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_runtime.kernels.native", description="Compile the native kernels, for other machines too."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where kernels-HASH.so is written")
    folder = parser.parse_args(arguments).folder
    try:
        build(folder / library_name())
    except NativeKernelsMissing as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
