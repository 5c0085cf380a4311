"""Which residuals a dictionary can read where a text is too short to know its own usual norm: the server's rule.

    ||x|| <= 5 * resid_norm_mean          the mean that the dictionary's manifest has, at its own hook point

Harvests go by their median instead (`shards.ordinary`), which a reply of a few tokens does not have. Where a manifest
has no mean, as of most imported dictionaries, a search goes by the median of all the tokens that it scores.

Shape suffixes: N tokens, D model width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monitors.components import OFF_SCALE_NORMS
from sae_runtime.checkpoint import Manifest


def largest_usual_norm(manifest: Manifest) -> float:
    """The norm above which a residual is a massive activation; infinite if the manifest does not know the mean norm."""
    return math.inf if manifest.resid_norm_mean is None else OFF_SCALE_NORMS * manifest.resid_norm_mean


def largest_norm_among(norms: Sequence[Tensor]) -> float:
    """The same by the median of all of `norms`, of which there must be some."""
    return OFF_SCALE_NORMS * float(torch.cat(list(norms)).median())


def of_usual_norm(resid_ND: Tensor, manifest: Manifest) -> Tensor:
    """Mask [N] of the tokens without a massive activation; all of them if the manifest does not know the mean norm."""
    return resid_ND.float().norm(dim=-1) <= largest_usual_norm(manifest)
