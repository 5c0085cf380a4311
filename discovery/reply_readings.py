"""What was read at the scored tokens of many replies, as arrays, and as files that are put together again.

Shape suffixes: I replies, N scored tokens of all replies in order, L hook points, P probes, D model width, F latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array, vstack  # type: ignore[import-untyped]

from sae_runtime.whole_files import whole_file

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ReplyReadings:
    """Readings of I replies. What was not asked for is empty."""

    counts_I: NDArray[np.int64]
    """Scored tokens of each reply, at least 1."""
    mean_ILD: Floats
    """Mean residual over the scored tokens, or the last one's, at each hook point of `ReadingPlan.mean_points`."""
    token_ND: Floats
    """Residual of every scored token at `ReadingPlan.token_point`; [0, 0] without one."""
    probes_NP: Floats
    """resid . direction + bias of each probe at every scored token."""
    log_prob_N: Floats
    """Of the token itself, natural, as the model predicted it; empty if not asked for."""
    entropy_N: Floats
    """Of that prediction, in nats; empty if not asked for."""
    off_scale_N: NDArray[np.bool_]
    """Massive activations by the norm at the dictionary's place; all False without one."""
    latents_NF: Any
    """Sparse fp32 rows (csr_array), a latent's activation at every scored token; [0, 0] without a dictionary."""
    norms_NP: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """Norm of the residual that each probe was taken from; [0, 0] in readings of before they were kept."""

    @property
    def num_replies(self) -> int:
        return len(self.counts_I)

    @property
    def ends_I(self) -> NDArray[np.int64]:
        """Row behind each reply's last token."""
        return np.cumsum(self.counts_I)

    def rows(self, reply: int) -> slice:
        """Rows of one reply's tokens."""
        end = int(self.ends_I[reply])
        return slice(end - int(self.counts_I[reply]), end)

    def mean_over_tokens(self, values_NX: NDArray[Any]) -> Floats:
        """[I, X] (or [I]) mean of each reply's rows."""
        begins_I = self.ends_I - self.counts_I
        sums_IX = np.add.reduceat(values_NX.astype(np.float64), begins_I, axis=0)
        counts_I = self.counts_I if values_NX.ndim == 1 else self.counts_I[:, None]
        return (sums_IX / counts_I).astype(np.float32)

    def mean_latents(self) -> Any:
        """[I, F] sparse: each latent's mean activation over a reply's scored tokens."""
        num_tokens = int(self.counts_I.sum())
        weights = np.repeat(1 / self.counts_I, self.counts_I).astype(np.float32)
        indptr = np.concatenate([[0], self.ends_I])
        averaging_IN = csr_array((weights, np.arange(num_tokens), indptr), shape=(self.num_replies, num_tokens))
        return csr_array(averaging_IN @ self.latents_NF)

    def take(self, replies: Sequence[int]) -> "ReplyReadings":
        """Some of the replies, in the order given."""
        begins_I = self.ends_I - self.counts_I
        pieces = [np.arange(begins_I[i], begins_I[i] + self.counts_I[i]) for i in replies]
        rows_N = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        index = np.asarray(replies, np.int64)

        def rows(values_N: Any) -> Any:
            return values_N[rows_N] if values_N.shape[0] else values_N

        return ReplyReadings(
            counts_I=self.counts_I[index],
            mean_ILD=self.mean_ILD[index],
            token_ND=rows(self.token_ND),
            probes_NP=rows(self.probes_NP),
            log_prob_N=rows(self.log_prob_N),
            entropy_N=rows(self.entropy_N),
            off_scale_N=rows(self.off_scale_N),
            latents_NF=rows(self.latents_NF),
            norms_NP=rows(self.norms_NP),
        )


def concatenated(parts: Sequence[ReplyReadings]) -> ReplyReadings:
    """The replies of all parts, of which there is at least one."""

    def joined(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    latents_NF = csr_array(vstack([part.latents_NF for part in parts], format="csr"))
    return ReplyReadings(**{name: joined(name) for name in _DENSE}, latents_NF=latents_NF)


# --- files ----------------------------------------------------------------------------------------------------------

_DENSE = ("counts_I", "mean_ILD", "token_ND", "probes_NP", "log_prob_N", "entropy_N", "off_scale_N", "norms_NP")


def save_readings(path: Path, readings: ReplyReadings) -> None:
    """Write a file, there whole or not at all."""
    latents_NF = readings.latents_NF
    tensors = {name: np.ascontiguousarray(getattr(readings, name)) for name in _DENSE}
    tensors |= {
        "latents.data": latents_NF.data,
        "latents.indices": latents_NF.indices.astype(np.int32),
        "latents.indptr": latents_NF.indptr.astype(np.int64),
        "latents.shape": np.array(latents_NF.shape, np.int64),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        save_file(tensors, partial)


def load_readings(path: Path) -> ReplyReadings | None:
    """What a file holds; None if there is none, or none that can be read: it is made again then."""
    try:
        tensors = load_file(path)
        parts = tensors["latents.data"], tensors["latents.indices"], tensors["latents.indptr"]
        latents_NF = csr_array(parts, shape=tuple(tensors["latents.shape"].tolist()))
        # Files of before norms were kept are of plans without probes.
        tensors.setdefault("norms_NP", np.zeros((len(tensors["off_scale_N"]), 0), np.float32))
        return ReplyReadings(**{name: tensors[name] for name in _DENSE}, latents_NF=latents_NF)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
