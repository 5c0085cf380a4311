"""Tensors in a text file: little-endian 32-bit floats as base64, their shape beside them.

    direction: {dtype: F32, shape: [576], data: AACAPwAAAEA...}

Plain sequences of floats in Python: nothing here computes with them.
"""

import base64
import binascii
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from monitors import checks
from monitors.errors import Problem, shown

_BYTES = 4


@dataclass(frozen=True, slots=True)
class PackTensor:
    """One tensor. MonitorError for data that is no base64, of another size than its shape, or not finite."""

    dtype: Literal["F32"]
    shape: tuple[int, ...]
    data: str
    """Base64 of the values, row by row, each 4 bytes, the lowest first."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.choice("dtype", self.dtype, ["F32"]),
            *(checks.count(f"shape.{i}", size, at_least=1) for i, size in enumerate(self.shape)),
        )
        checks.refuse(*self._bad_data())

    @classmethod
    def of(cls, values: Sequence[float]) -> "PackTensor":
        """A vector, rounded to 32 bits."""
        packed = struct.pack(f"<{len(values)}f", *values)
        return cls("F32", (len(values),), base64.b64encode(packed).decode("ascii"))

    @property
    def values(self) -> tuple[float, ...]:
        """All values, row by row."""
        return _unpack(base64.b64decode(self.data))

    def _bad_data(self) -> Iterator[Problem]:
        try:
            packed = base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            yield Problem("data", "base64", f"{shown(self.data)}: {error}")
            return
        wanted = math.prod(self.shape) * _BYTES
        if len(packed) != wanted:
            yield Problem("data", f"{wanted} bytes, for shape {list(self.shape)}", f"{len(packed)} bytes")
            return
        for i, value in enumerate(_unpack(packed)):
            if not math.isfinite(value):
                yield Problem(f"data.{i}", "a finite number", shown(value))
                return


def _unpack(packed: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(packed) // _BYTES}f", packed)
