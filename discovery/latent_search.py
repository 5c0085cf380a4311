"""Latents by what they write, and by what they read in one sentence.

    similar      cosine between decoder rows (what a latent adds to the residual), or between one and any vector
    sentence     the readings of all latents at every token of a sentence; position 0 and massive activations left out

Shape suffixes: T tokens, F latents, D model width, N neighbours.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from discovery.corpus import Context
from discovery.errors import SearchError
from discovery.residuals import read_residuals
from discovery.shards import ordinary
from discovery.token_text import pieces_of, token_bytes
from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE
from sae_runtime.tap import Tap

_COSINES_PER_CHUNK = 2**24


class Neighbours(NamedTuple):
    """Latents most like each of some directions, most like first."""

    latents_NN: Tensor
    cosines_NN: Tensor


class Strongest(NamedTuple):
    """A latent that fires in a sentence."""

    latent: int
    max: float
    position: int
    """Where it reads most."""
    mean: float
    """Over the tokens that are read."""
    num_active: int
    share: float | None
    """The largest reading as a share of the largest in an example file's text."""


class Sentence(NamedTuple):
    """A sentence as a dictionary reads it."""

    token_ids: list[int]
    pieces: tuple[str, ...]
    readings_TF: Tensor
    """0 at tokens that are not read."""
    read_T: Tensor
    """False at position 0 and at massive activations."""

    def strongest(self, num: int, maxima_F: Tensor | None = None, *, by_share: bool = False) -> list[Strongest]:
        """The latents with the largest readings, or with the largest share of their maximum elsewhere.

        `maxima_F`: each latent's largest reading in other text; those that are silent there have no share.
        """
        largest_F = self.readings_TF.amax(0)
        share_F = torch.zeros_like(largest_F)
        if maxima_F is not None:
            share_F = torch.where(maxima_F > 0, largest_F / maxima_F, 0.0)
        order_F = share_F if by_share else largest_F
        num_read = max(int(self.read_T.sum()), 1)
        found = []
        for latent in order_F.topk(min(num, len(order_F))).indices.tolist():
            column_T = self.readings_TF[:, latent]
            if order_F[latent] > 0:
                mean, num_active = float(column_T.sum()) / num_read, int((column_T > 0).sum())
                share = None if maxima_F is None else float(share_F[latent])
                place = int(column_T.argmax())
                found.append(Strongest(latent, float(column_T[place]), place, mean, num_active, share))
        return found

    def by_token(self, num: int) -> list[list[tuple[int, float]]]:
        """Of each token the latents that read most there, with their readings."""
        top = self.readings_TF.topk(min(num, self.readings_TF.shape[1]), dim=-1)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [[(latent, value) for latent, value in zip(*pair, strict=True) if value > 0] for pair in pairs]


def similar(sae: SAE, directions_ND: Tensor, num: int) -> Neighbours:
    """The `num` latents whose decoder rows have the largest cosine with each direction."""
    rows_FD = normalize(sae.W_dec, dim=-1)
    chunks = torch.split(normalize(directions_ND.to(rows_FD), dim=-1), max(1, _COSINES_PER_CHUNK // sae.num_latents))
    found = [(chunk_ND @ rows_FD.T).topk(min(num, sae.num_latents), dim=-1) for chunk_ND in chunks]
    return Neighbours(torch.cat([top.indices for top in found]), torch.cat([top.values for top in found]))


def neighbours(sae: SAE, latents: list[int], num: int) -> Neighbours:
    """The `num` latents most like each of `latents`, itself left out."""
    latents_NN, cosines_NN = similar(sae, sae.W_dec[latents], num + 1)
    # Itself is the first, but where a twin has the same direction.
    others_NN = latents_NN != torch.tensor(latents)[:, None]
    others_NN[:, -1] &= ~others_NN.all(1)
    kept = others_NN.sum(1).min()
    order_NN = (~others_NN).long().argsort(dim=1, stable=True)[:, :kept]
    return Neighbours(latents_NN.gather(1, order_NN), cosines_NN.gather(1, order_NN))


def read_direction(text: str, sae: SAE) -> Tensor:
    """[D] the decoder row of a latent, by its index, or the vector in a .npy, .safetensors or .json file."""
    if text.isdecimal():
        if int(text) >= sae.num_latents:
            raise SearchError(f"latent must lie in 0..{sae.num_latents - 1}, got {text}")
        return sae.W_dec[int(text)]
    try:
        vector_D = _read_vector(Path(text))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise SearchError(f"vector file {text} can't be read: {error}") from None
    if vector_D.shape != (sae.d_model,) or not vector_D.isfinite().all() or not vector_D.any():
        raise SearchError(
            f"vector file {text} must hold {sae.d_model} finite numbers, not all 0, got shape {list(vector_D.shape)}"
        )
    return vector_D


def _read_vector(path: Path) -> Tensor:
    match path.suffix:
        case ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False)).float().squeeze()
        case ".safetensors":
            tensors = load_file(path)
            if len(tensors) != 1:
                raise ValueError(f"it must hold one tensor, got {', '.join(sorted(tensors)) or 'none'}")
            return next(iter(tensors.values())).float().squeeze()
        case ".json":
            return torch.tensor(json.loads(path.read_text()), dtype=torch.float32)
        case suffix:
            raise ValueError(f"its name must end in .npy, .safetensors or .json, got {suffix or 'nothing'}")


@torch.inference_mode()
def read_sentence(lm: LanguageModel, tap: Tap, sae: SAE, text: str) -> Sentence:
    """Read `text` as the tokenizer makes it."""
    token_ids = lm.tokenizer(text)["input_ids"]
    if len(token_ids) < 2:
        raise SearchError(f"the sentence must have a token behind position 0, got {text!r}")
    (resid_TD,) = read_residuals(lm, tap, [Context(token_ids, 0, 0, "sentence")])
    read_T = torch.cat([torch.tensor([False]), ordinary(resid_TD[1:]).cpu()])
    readings_TF = sae.encode(resid_TD.to(sae.W_enc.device)).cpu() * read_T[:, None]
    pieces = pieces_of(list(map(token_bytes(lm.tokenizer, token_ids).__getitem__, token_ids)))
    return Sentence(token_ids, pieces, readings_TF, read_T)
