"""Which tokens a latent makes likelier or less likely by the direct path from the residual to the logits.

    effect_FV = (d * g) @ U^T,   minus its mean over the vocabulary

`d` is the latent's direction in residual units, `g` the weight of the model's last norm, `U` the unembedding. The norm
also divides by the residual's size, which differs from token to token, so effects can be compared within a latent and
between latents, but are no logits; what the blocks in between make of the direction is not in them.

Shape suffixes: F latents, D model width, V vocabulary, E tokens kept.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE

_EFFECTS_PER_CHUNK = 2**24


class LogitEffects(NamedTuple):
    """The tokens each latent promotes most (falling) and suppresses most (rising)."""

    promoted_ids_FE: NDArray[np.int32]
    promoted_FE: NDArray[np.float32]
    suppressed_ids_FE: NDArray[np.int32]
    suppressed_FE: NDArray[np.float32]


@torch.inference_mode()
def logit_effects(lm: LanguageModel, sae: SAE, num: int = 10, *, progress: bool = False) -> LogitEffects:
    """The `num` largest and smallest effects of every latent."""
    unembedding_VD = lm.model.get_output_embeddings().weight.float()
    norm_D = lm.model.model.norm.weight.float()
    scale = sae.scale if sae.normalization == "scalar" else 1.0
    rows_FD = sae.W_dec.to(unembedding_VD.device).float() / scale * norm_D
    num = min(num, len(unembedding_VD))
    # Means are over real tokens; rows that pad the matrix to a round size are no tokens.
    num_real = min(len(lm.tokenizer), len(unembedding_VD)) if lm.tokenizer is not None else len(unembedding_VD)
    unembedding_VD = unembedding_VD[:num_real] - unembedding_VD[:num_real].mean(0)
    chunks = torch.split(rows_FD, max(1, _EFFECTS_PER_CHUNK // num_real))
    found = []
    for part_FD in tqdm(chunks, desc="logit effects", unit="chunk", mininterval=5, disable=not progress):
        effects_FV = part_FD @ unembedding_VD.T
        most, least = effects_FV.topk(num), effects_FV.topk(num, largest=False)
        found.append([most.indices.int(), most.values, least.indices.int(), least.values])
    return LogitEffects(*(torch.cat(column).cpu().numpy() for column in zip(*found, strict=True)))
