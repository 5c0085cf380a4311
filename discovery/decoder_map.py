"""Latents on a plane, so that those which write alike lie near each other.

`umap` (McInnes, Healy and Melville 2018) of the decoder rows' directions by cosine, seeded: a minute for 8192 latents.
`pca` takes a moment and shows less: the two directions in which the normed rows vary most.

Shape suffixes: N latents, D model width.
"""

import math
import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from discovery.errors import PageError

MapMethod = Literal["umap", "pca"]
METHODS: tuple[str, ...] = get_args(MapMethod)

_LEAST_FOR_UMAP = 20


def decoder_map(rows_ND: Tensor, method: MapMethod, seed: int = 0, *, progress: bool = False) -> NDArray[np.float32]:
    """[N, 2] places. `progress` shows a bar on stderr, of what takes long."""
    rows_ND = normalize(rows_ND.float().cpu(), dim=-1)
    if not rows_ND.isfinite().all():
        raise PageError("decoder rows must be finite for a map, got NaN or infinity")
    use_umap = method == "umap" and len(rows_ND) >= _LEAST_FOR_UMAP
    return _umap(rows_ND, seed, progress) if use_umap else _principal(rows_ND)


def _umap(rows_ND: Tensor, seed: int, progress: bool) -> NDArray[np.float32]:
    if progress:
        print(f"map of {len(rows_ND)} latents by UMAP, after a while without a bar:", file=sys.stderr)
    import umap  # late: it compiles for many seconds

    neighbours = min(15, len(rows_ND) - 1)
    # One thread: with more a seed does not settle the result.
    made = umap.UMAP(metric="cosine", n_neighbors=neighbours, min_dist=0.05, random_state=seed, n_jobs=1)
    made.verbose, made.tqdm_kwds = progress, {"desc": "map", "unit": "epoch"}
    # What else it says goes to stdout, which is for results.
    with redirect_stdout(StringIO()):
        return np.asarray(made.fit_transform(rows_ND.numpy()), np.float32)


def _principal(rows_ND: Tensor) -> NDArray[np.float32]:
    centred_ND = rows_ND - rows_ND.mean(0)
    _, _, directions_DD = torch.linalg.svd(centred_ND, full_matrices=False)
    places_N2 = torch.zeros(len(rows_ND), 2)
    kept = min(2, len(directions_DD))
    places_N2[:, :kept] = centred_ND @ directions_DD[:kept].T
    return places_N2.numpy()


def density_exponents(densities: list[float]) -> list[float]:
    """log10 of each share of tokens, for a colour scale; -6 where there is none."""
    return [round(math.log10(max(density, 1e-6)), 3) for density in densities]
