"""What goes into a forward pass of a row, and what comes out, on the device and on the host.

Shape suffixes: B rows, T tokens per row, N = B * T, V vocabulary, U latents read in this pass, P probes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.steering import Steering
from service.sampling import Draw


@dataclass(slots=True)
class RowInput:
    """One row of a pass."""

    slot: int
    start: int
    """Position of the first of `ids`."""
    ids: Sequence[int]
    steering: Steering | None = None


class TokenStats(NamedTuple):
    """Readings of N tokens: on the device or the host as `PassOutput` holds them, on the host as `Fetched` does."""

    readings_NU: Any
    top_values_Nk: Any
    top_indices_Nk: Any
    l0_N: Any
    fvu_N: Any
    finite_N: Any
    """1 where the residual (as read on by the model) and all that was read from it, probes too, were finite."""
    off_scale_N: Any
    """1 at position 0 and wherever else the residual is far longer than the dictionary's usual one: readings there mean
    nothing."""
    probes_NP: Any
    """Values of all probes, in the order of `ModelRunner.probe_names`; no columns if they were not asked for."""
    norms_NP: Any
    """Norm of the residual that each probe was taken from; no columns where there are none of values."""


class SteeredRow(NamedTuple):
    """What steering did to one row's T tokens; on the device or on the host, as TokenStats."""

    readings_TU: Any
    """As the following blocks read them."""
    relative_T: Any
    """||delta|| / ||h||; 0 where nothing changed."""
    covered_T: Any
    """1 at positions that were to be steered."""


class PassOutput(NamedTuple):
    """What one forward pass gave, on the device where its reader left it there. Tokens are numbered row by row."""

    logits_BTV: Tensor
    """fp32; T is 1 if only the last token's were asked for."""
    stats: TokenStats
    steered: dict[int, SteeredRow]
    """Rows that were steered in this pass."""
    num_tapped: int
    encode_seconds: float | None
    """None where it can't be told apart from the rest of the pass."""
    greedy: Draw | None = None
    """The most likely next tokens, where the pass found them itself: on the host then."""


class Fetched(NamedTuple):
    """The same on the host, in fp32 arrays, with what the sampler drew."""

    stats: TokenStats
    steered: dict[int, SteeredRow]
    extra: list[NDArray[np.float32]]


def fetch(output: PassOutput, extra: Sequence[Tensor]) -> Fetched:
    """Copy what of a pass's readings is not on the host yet, and `extra` tensors, in one piece, as fp32.

    Token ids, latents and counts are far below 2^24, so fp32 holds them exactly.
    """
    parts = [*output.stats, *(part for row in output.steered.values() for part in row), *extra]
    if not any(isinstance(part, Tensor) for part in parts):
        return Fetched(output.stats, output.steered, [])
    copied = iter(_on_host([part for part in parts if isinstance(part, Tensor)]))
    rest = iter([next(copied) if isinstance(part, Tensor) else part for part in parts])
    stats = TokenStats(*(next(rest) for _ in output.stats))
    steered = {b: SteeredRow(*(next(rest) for _ in row)) for b, row in output.steered.items()}
    return Fetched(stats, steered, list(rest))


def _on_host(tensors: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Tensors as fp32 arrays, copied in one piece."""
    with torch.inference_mode():
        packed = torch.cat([t.to(torch.float32).flatten() for t in tensors]).cpu().numpy()
    ends = np.cumsum([t.numel() for t in tensors])
    return [part.reshape(t.shape) for part, t in zip(np.split(packed, ends[:-1]), tensors, strict=True)]
