"""Runs forward passes: ids in, logits and readings out. The only module of the service that handles activations.

Owns the model, the key-value slots, the tap and the dictionary, on one thread. Knows nothing of queues, text or
clients. A pass is one prompt chunk of one row (`prefill`) or one token of many rows (`decode`).

Shape suffixes: B rows, T tokens per row, N = B * T, D model width, V vocabulary, U latents read in this pass.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE
from sae_runtime.steering import Steering
from sae_runtime.tap import Tap, TapRecord
from service.slot_cache import SlotCache


@dataclass(slots=True)
class RowInput:
    """One row of a pass."""

    slot: int
    start: int
    """Position of the first of `ids`."""
    ids: Sequence[int]
    steering: Steering | None = None


class TokenStats(NamedTuple):
    """Readings of N tokens: on the device as `PassOutput` holds them, on the host as `Fetched` does."""

    readings_NU: Any
    top_values_Nk: Any
    top_indices_Nk: Any
    l0_N: Any
    fvu_N: Any
    finite_N: Any
    """1 where the residual (as read on by the model) and all that was read from it were finite."""


class PassOutput(NamedTuple):
    """What one forward pass gave, still on the device. Tokens are numbered row by row."""

    logits_BTV: Tensor
    """fp32; T is 1 if only the last token's were asked for."""
    stats: TokenStats
    steered: dict[int, Tensor]
    """Row -> its readings [T, U] after steering, for rows that were steered in this pass."""
    num_tapped: int
    encode_seconds: float


class Fetched(NamedTuple):
    """The same on the host, in fp32 arrays, with what the sampler drew."""

    stats: TokenStats
    steered: dict[int, NDArray[np.float32]]
    extra: list[NDArray[np.float32]]


class ModelRunner:
    """A model, its slots, its tap and its dictionary."""

    def __init__(self, language_model: LanguageModel, sae: SAE, tap: Tap, cache: SlotCache) -> None:
        self.language_model = language_model
        self.sae = sae
        self.tap = tap
        self.cache = cache
        self._device = language_model.device

    def forward(
        self,
        rows: Sequence[RowInput],
        latents: Sequence[int],
        *,
        num_top: int = 0,
        all_logits: bool = False,
    ) -> PassOutput:
        """One pass over rows of equally many tokens.

        Args:
            rows: what to read, each row into its own slot.
            latents: U latents to read at every token.
            num_top: how many of the largest latents to report besides.
            all_logits: give logits for every token, not for each row's last alone.

        Raises:
            TapError: the tap did not see every token. Whatever torch raises is passed on; slots may then hold part
            of the pass, which a repetition overwrites.
        """
        num_tokens = len(rows[0].ids)
        ids_BT = torch.tensor([list(row.ids) for row in rows], device=self._device)
        positions_BT, mask_B1TL = self.cache.begin([r.slot for r in rows], [r.start for r in rows], num_tokens)
        steered_rows = [b for b, row in enumerate(rows) if self._is_steered(row)]

        def edit(resid_BTD: Tensor) -> Tensor:
            edited_BTD = resid_BTD.clone()
            for b in steered_rows:
                steering = rows[b].steering
                assert steering is not None
                edited_BTD[b] = steering.apply(resid_BTD[b], rows[b].start)
            return edited_BTD

        with torch.inference_mode(), self.tap.step(ids_BT.numel(), edit if steered_rows else None) as record:
            logits_BTV = self.language_model.model(
                input_ids=ids_BT,
                position_ids=positions_BT,
                attention_mask=mask_B1TL,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=0 if all_logits else 1,
            ).logits.to(torch.float32)
        with torch.inference_mode():
            started = time.perf_counter()
            stats, steered = self._read(record, rows, steered_rows, latents, num_top)
            encode_seconds = time.perf_counter() - started
        return PassOutput(logits_BTV, stats, steered, record.num_tokens, encode_seconds)

    @staticmethod
    def fetch(output: PassOutput, extra: Sequence[Tensor]) -> Fetched:
        """Copy a pass's readings, and `extra` tensors, to the host in one piece, as fp32.

        Token ids, latents and counts are far below 2^24, so fp32 holds them exactly.
        """
        with torch.inference_mode():
            tensors = [*output.stats, *output.steered.values(), *extra]
            packed = torch.cat([t.to(torch.float32).flatten() for t in tensors]).cpu().numpy()
        ends = np.cumsum([t.numel() for t in tensors])
        arrays = [part.reshape(t.shape) for part, t in zip(np.split(packed, ends[:-1]), tensors, strict=True)]
        num_stats, num_steered = len(output.stats), len(output.steered)
        steered = dict(zip(output.steered, arrays[num_stats : num_stats + num_steered], strict=True))
        return Fetched(TokenStats(*arrays[:num_stats]), steered, arrays[num_stats + num_steered :])

    def warm_up(self) -> None:
        """Run a prompt and a token through slot 0, so that the first request does not pay for first times."""
        self.forward([RowInput(0, 0, [0] * 8)], [0], num_top=1)
        self.forward([RowInput(0, 8, [0])], [0], num_top=1)
        self.release(0, 9)

    def release(self, slot: int, num_used: int) -> None:
        """Make a slot ready for its next tenant."""
        with torch.inference_mode():
            self.cache.scrub(slot, num_used)

    @staticmethod
    def _is_steered(row: RowInput) -> bool:
        return row.steering is not None and row.steering.covers(row.start, row.start + len(row.ids))

    def _read(
        self,
        record: TapRecord,
        rows: Sequence[RowInput],
        steered_rows: list[int],
        latents: Sequence[int],
        num_top: int,
    ) -> tuple[TokenStats, dict[int, Tensor]]:
        """Encode all residuals, and steered rows once more as they were left."""
        resid_BTD, edited_BTD = record.resid_BTD, record.edited_BTD
        assert resid_BTD is not None
        latents_U = torch.tensor(latents, dtype=torch.long, device=self._device)
        seen = self.sae.read_tokens(resid_BTD.flatten(0, 1), latents_U, num_top)
        read_on_ND = (resid_BTD if edited_BTD is None else edited_BTD).flatten(0, 1)
        finite_N = read_on_ND.isfinite().all(-1) & seen.fvu_T.isfinite()
        stats = TokenStats(seen.readings_TW, seen.top_values_TN, seen.top_indices_TN, seen.l0_T, seen.fvu_T, finite_N)
        steered = {}
        for b in steered_rows:
            assert edited_BTD is not None
            steering = rows[b].steering
            assert steering is not None
            steering.account(resid_BTD[b], edited_BTD[b])
            steered[b] = self.sae.read(edited_BTD[b], latents_U)
        return stats, steered
