"""Steering by a C kernel: what `steering.steer_rows` does, without its two dozen small calls of torch.

For one token of one row those take a tenth of a decode step; for many rows they wake torch's own threads besides, which
then stand in the way of the kernels'. The formulas are those of `steering`; every change is a multiple of the
direction, so that an operation comes down to one number.

Shape suffixes: B rows, T tokens per row, D model width.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_runtime.kernels import native
from sae_runtime.latent_reader import LatentReader, NoDictionary
from sae_runtime.native_sae import WIDEST_MODEL, NativeSAE
from sae_runtime.steering import Operation, Steering
from sae_runtime.steering_spec import SteeringOp, SteeringSpec, StrengthUnit

_NUMBERS = {op: number for number, op in enumerate(SteeringOp)}
"""As the C source numbers them."""


class NativeSteering:
    """Steers rows of a pass, along latents of one dictionary or along raw vectors."""

    def __init__(self, library: Any, sae: LatentReader) -> None:
        """`sae` must be one that `takes` is true of."""
        self._library, self._sae = library, sae

    @staticmethod
    def takes(sae: LatentReader, d_model: int) -> bool:
        """Whether the kernel knows how a latent is read, and has room for a residual."""
        is_known = isinstance(sae, NoDictionary) or (isinstance(sae, NativeSAE) and sae.is_elementwise)
        return is_known and d_model <= WIDEST_MODEL

    def steer(self, rows: Sequence[tuple[int, Steering, int]], resid_BTD: Tensor) -> Tensor:
        """Steer some rows of a pass.

        Args:
            rows: for each its number, its steering, of this dictionary, and the position of its first token.
            resid_BTD: in bf16; not written to.

        Returns:
            [B, T, D] in bf16, as `steer_rows` has it. Tokens that no operation covers are bit for bit the same.
        """
        num_tokens, width = resid_BTD.shape[1:]
        # As whole memory: torch would ask its threads to copy many rows.
        edited_BTD = torch.empty_like(resid_BTD, memory_format=torch.contiguous_format)
        edited_BTD.copy_(resid_BTD)
        operations, tokens = [], []
        for b, steering, start in rows:
            for t in range(num_tokens):
                for operation in steering.operations_at(start + t):
                    operations.append(self._prepared(operation, steering).address)
                    tokens.append(b * num_tokens + t)
        num = len(tokens)
        self._library.telltale_steer(
            (ctypes.c_void_p * num)(*operations), (ctypes.c_int32 * num)(*tokens), num, edited_BTD.data_ptr(), width
        )
        return edited_BTD

    def _prepared(self, operation: Operation, steering: Steering) -> "_Prepared":
        if operation.prepared is None:
            operation.prepared = self._prepare(operation.spec, operation.vector_D, steering.limits.max_relative_norm)
        made: _Prepared = operation.prepared
        return made

    def _prepare(self, spec: SteeringSpec, vector_D: Tensor | None, max_relative_norm: float) -> "_Prepared":
        made = native.Operation(
            strength=spec.strength,
            max_relative_norm=max_relative_norm,
            op=_NUMBERS[spec.op],
            is_relative=spec.unit is StrengthUnit.RELATIVE,
        )
        if vector_D is not None:
            made.direction = vector_D.data_ptr()
            return _Prepared(ctypes.addressof(made), (made, vector_D))
        assert isinstance(self._sae, NativeSAE)
        assert isinstance(spec.direction, int)
        along = self._sae.along(spec.direction)
        made.direction, made.encoder = along.direction_D.data_ptr(), along.encoder_D.data_ptr()
        made.input_scale, made.offset, made.threshold = self._sae.scale, along.offset, along.threshold
        return _Prepared(ctypes.addressof(made), (made, along))


class _Prepared(NamedTuple):
    """An operation as the kernel takes it."""

    address: int
    kept: object
    """What lies there, and what that points to."""
