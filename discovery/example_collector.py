"""One pass over a text that leaves, for every latent, its examples and figures. Memory does not grow with the text.

    top         of each context the largest reading; of those with the same text before them the largest; the best of
                these. So that a licence that stands in a hundred files is one example.
    sample      the active tokens with the smallest hash of (seed, place, latent): a uniform sample of them, in whatever
                batches they come (bottom-k sampling)
    figures     active tokens, sum and maximum of readings, histogram, active tokens by source: over all tokens
    background  random windows with the latents that are active in them

Examples and background come only from sources that may be quoted; figures from all.

Shape suffixes: F latents, H histogram bins, S sources, N tokens, M candidates, P pairs of token and active latent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from discovery.background_sample import BackgroundSample
from discovery.errors import ExampleError
from discovery.reading_batch import ActivePairs, Ints, ReadingBatch, mix
from discovery.text_pieces import Piece
from discovery.window_keeper import Candidates, WindowKeeper, WindowSpan
from sae_runtime.sae import SAE

HISTOGRAM_EDGES = 2.0 ** (np.arange(-32, 41) / 4)
"""Four bins to the octave, from 1/256 to 1024."""

_READINGS_PER_BATCH = 2**24
_FIGURES = ("num_active_F", "sum_F", "max_F", "histogram_FH", "by_source_FS")


@dataclass(frozen=True, slots=True)
class ExampleSettings:
    """What is kept of each latent."""

    num_top: int = 20
    num_bins: int = 5
    """Quantile bins of the sample."""
    per_bin: int = 4
    before: int = 16
    """Tokens of an example before its focus."""
    after: int = 8
    num_backgrounds: int = 512
    distinct_tokens: int = 8
    """Two maxima whose last so many tokens, the focus included, are equal count as one."""
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"num_top": 1, "num_bins": 1, "per_bin": 1, "before": 0, "after": 0, "num_backgrounds": 1}
        for name, smallest in (least | {"distinct_tokens": 1}).items():
            if getattr(self, name) < smallest:
                raise ExampleError(f"{name} must be {smallest} or more, got {getattr(self, name)}")

    @property
    def span(self) -> WindowSpan:
        """The windows' extent."""
        return WindowSpan(self.before, self.after)


class Collector:
    """Everything held during a pass."""

    def __init__(self, num_latents: int, settings: ExampleSettings, quotable: list[bool]) -> None:
        """`quotable`: for each source whether examples may come from it."""
        self.settings = settings
        self.quotable_S = np.array(quotable)
        self.num_tokens = 0
        """Read ones."""
        self.num_massive = 0
        self.num_places = 0
        """Read or not."""
        self.top = WindowKeeper(num_latents, settings.num_top, settings.span)
        self.sample = WindowKeeper(num_latents, settings.num_bins * settings.per_bin, settings.span)
        self.background = BackgroundSample(settings.num_backgrounds, settings.span)
        self.num_active_F = np.zeros(num_latents, np.int64)
        self.sum_F = np.zeros(num_latents)
        self.max_F = np.zeros(num_latents, np.float32)
        self.histogram_FH = np.zeros((num_latents, len(HISTOGRAM_EDGES) - 1), np.int32)
        self.by_source_FS = np.zeros((num_latents, len(quotable)), np.int32)

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(array.nbytes for array in self.arrays().values())

    @torch.inference_mode()
    def add(self, sae: SAE, piece: Piece) -> None:
        """Read one piece of the text."""
        self.num_tokens += int(piece.ordinary_N.sum())
        self.num_massive += int((~piece.ordinary_N).sum())
        for batch in read_batches(sae, piece, self.num_places):
            self._count(batch, pairs := batch.active())
            self._keep(batch, pairs)
        self.num_places += len(piece.token_ids_N)

    def _count(self, batch: ReadingBatch, pairs: ActivePairs) -> None:
        num_latents = len(self.num_active_F)
        self.num_active_F += np.bincount(pairs.latents_P, minlength=num_latents)
        self.sum_F += np.bincount(pairs.latents_P, weights=pairs.values_P, minlength=num_latents)
        np.maximum.at(self.max_F, pairs.latents_P, pairs.values_P)
        np.add.at(self.histogram_FH, (pairs.latents_P, histogram_bin(pairs.values_P)), 1)
        np.add.at(self.by_source_FS, (pairs.latents_P, batch.sources_N[pairs.rows_P]), 1)

    def _keep(self, batch: ReadingBatch, pairs: ActivePairs) -> None:
        quotable_N = self.quotable_S[batch.sources_N]
        self.background.offer(batch, pairs, quotable_N, self.settings.seed)
        pairs = pairs.take(quotable_N[pairs.rows_P])
        # Nearly all candidates fall here, before anything is sorted.
        better = pairs.take(pairs.values_P > self.top.worst_F[pairs.latents_P])
        self.top.offer(self._maxima(batch, better), batch)
        places_P = batch.places_N[pairs.rows_P]
        priorities_P = random_priorities(self.settings.seed, places_P, pairs.latents_P)
        # No two places are equal: as keys they leave the candidates as they are.
        self.sample.offer(Candidates(pairs.latents_P, pairs.rows_P, -priorities_P, places_P), batch)

    def _maxima(self, batch: ReadingBatch, pairs: ActivePairs) -> Candidates:
        """The largest reading of each latent in each context, the first of equal ones."""
        contexts_P = batch.contexts_N[pairs.rows_P]
        order = np.lexsort((pairs.rows_P, -pairs.values_P, contexts_P, pairs.latents_P))
        pairs, contexts_P = pairs.take(order), contexts_P[order]
        later = (np.diff(pairs.latents_P) == 0) & (np.diff(contexts_P) == 0)
        best = pairs.take(np.append(True, ~later)[: len(contexts_P)])
        keys_M = batch.text_keys(self.settings.distinct_tokens)[best.rows_P]
        return Candidates(best.latents_P, best.rows_P, best.values_P.astype(np.float64), keys_M)

    # --- on disk ----------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The whole state."""
        counts = np.array([self.num_tokens, self.num_massive, self.num_places])
        figures = {name: getattr(self, name) for name in _FIGURES}
        parts = {"top": self.top.arrays, "sample": self.sample.arrays, "background": self.background.arrays()}
        nested = {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        return {"counts": counts, **figures, **nested}

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from the state of another collector with the same settings."""
        self.num_tokens, self.num_massive, self.num_places = arrays["counts"].tolist()
        for name in _FIGURES:
            setattr(self, name, arrays[name])
        for part, name in ((self.top, "top."), (self.sample, "sample."), (self.background, "background.")):
            part.load({key.removeprefix(name): array for key, array in arrays.items() if key.startswith(name)})


def read_batches(sae: SAE, piece: Piece, first_place: int) -> Iterator[ReadingBatch]:
    """The piece's contexts, as many at a time as fit into memory with all their readings."""
    most = max(1, _READINGS_PER_BATCH // sae.num_latents)
    context = 0
    for begin, end in piece.spans(most):
        rows = slice(begin, end)
        f_NF = sae.encode(piece.resid_ND[rows].to(sae.W_enc.device, torch.float32))
        f_NF[torch.from_numpy(~piece.ordinary_N[rows]).to(f_NF.device)] = 0
        num_contexts = int((piece.positions_N[rows] == 1).sum())
        yield ReadingBatch(
            f_NF,
            token_ids_N=piece.token_ids_N[rows],
            positions_N=piece.positions_N[rows],
            documents_N=piece.documents_N[rows],
            sources_N=piece.sources_N[rows],
            first_ids_C=piece.first_ids_C[context : context + num_contexts],
            first_place=first_place + begin,
        )
        context += num_contexts


def histogram_bin(values_P: NDArray[np.float32]) -> Ints:
    """Index of each reading's bin."""
    return np.searchsorted(HISTOGRAM_EDGES[1:-1], values_P, side="right")


def random_priorities(seed: int, places_P: Ints, latents_P: Ints) -> NDArray[np.float64]:
    """A number in [0, 1) for each pair that depends on nothing else."""
    numbers = mix(mix(mix(np.array([seed], np.uint64)) + places_P.astype(np.uint64)) + latents_P.astype(np.uint64))
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53
