"""Which residuals a dictionary can read where a text is too short to know its own usual norm: the server's rule.

    ||x|| <= 5 * resid_norm_mean          the mean that the dictionary's manifest has, at its own hook point

Harvests go by their median instead (`shards.ordinary`), which a reply of a few tokens does not have.

Shape suffixes: N tokens, D model width.
"""

import torch
from torch import Tensor

from monitors.components import OFF_SCALE_NORMS
from sae_runtime.checkpoint import Manifest


def of_usual_norm(resid_ND: Tensor, manifest: Manifest) -> Tensor:
    """Mask [N] of the tokens without a massive activation; all of them if the manifest does not know the mean norm."""
    if manifest.resid_norm_mean is None:
        return torch.ones(len(resid_ND), dtype=torch.bool, device=resid_ND.device)
    return resid_ND.float().norm(dim=-1) <= OFF_SCALE_NORMS * manifest.resid_norm_mean
