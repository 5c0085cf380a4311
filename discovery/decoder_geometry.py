"""How a dictionary's decoder rows lie to each other.

`max_cosine_F` is each row's largest cosine with another row. Random directions in D dimensions give about
sqrt(2 ln F / D); far above it two latents share a direction, and near 1 one latent has been learnt twice.

Shape suffixes: F latents, C rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_runtime.sae import SAE

_CHUNK_ROWS = 1024
_TWINS = 0.9
_BINS = 50


@torch.inference_mode()
def max_cosines(sae: SAE) -> Tensor:
    """[F] each row's largest cosine with another. Exact: F^2 * D operations, a chunk of rows at a time."""
    rows_FD = normalize(sae.W_dec.float(), dim=-1)
    cosines = []
    for first in range(0, len(rows_FD), _CHUNK_ROWS):
        cosine_CF = rows_FD[first : first + _CHUNK_ROWS] @ rows_FD.T
        own_C = torch.arange(first, first + len(cosine_CF), device=rows_FD.device)
        cosine_CF[own_C - first, own_C] = -2
        cosines.append(cosine_CF.amax(-1).cpu())
    return torch.cat(cosines)


def cosine_histogram(cosine_F: Tensor) -> dict[str, list[Any]]:
    """Rows by their largest cosine, in bins from 0 to 1; what is below 0 is in the first."""
    counts = torch.histc(cosine_F.clamp(0, 1), bins=_BINS, min=0, max=1)
    return {"edges": [edge / _BINS for edge in range(_BINS + 1)], "counts": [int(count) for count in counts]}


def geometry_figures(sae: SAE) -> dict[str, Any]:
    """Quantiles and histogram of the largest cosines, the share of twins, and what random rows would give.

    2 * F^2 * D operations, once for the rows and once for random ones: most of an evaluation of a wide dictionary.
    """
    cosine_F = max_cosines(sae)
    norm_F = sae.W_dec.float().norm(dim=-1)
    quantiles = torch.tensor([0.05, 0.5, 0.95])
    generator = torch.Generator().manual_seed(0)
    chance = SAE(d_model=sae.d_model, num_latents=sae.num_latents, activation="relu")
    with torch.no_grad():
        chance.W_dec.copy_(torch.randn(chance.W_dec.shape, generator=generator))
    return {
        "max_cosine_quantiles": dict(zip(["5%", "50%", "95%"], cosine_F.quantile(quantiles).tolist(), strict=True)),
        "max_cosine_histogram": cosine_histogram(cosine_F),
        "max_cosine_random_median": float(max_cosines(chance).median()),
        "twin_ratio": float((cosine_F > _TWINS).float().mean()),
        "decoder_norm_min": float(norm_F.min()),
        "decoder_norm_max": float(norm_F.max()),
    }
