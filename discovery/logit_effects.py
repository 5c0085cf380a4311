"""Which tokens a latent makes likelier or less likely by the direct path from the residual to the logits.

    effect_FV = (d * g) @ U^T,   minus its mean over the vocabulary

`d` is the latent's direction in residual units (less its mean, where the model's last norm takes means off), `g` the
gain of that norm, `U` the unembedding. The norm also divides by the residual's size, which differs from token to token,
so effects can be compared within a latent and between latents, but are no logits; what the blocks in between make of
the direction is not in them. The last norm is the part of the decoder whose output is the decoder's own: its name and
its parameters differ between models.

Shape suffixes: F latents, D model width, V vocabulary, E tokens kept.
"""

from contextlib import ExitStack
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from discovery.errors import FitError
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
    """The `num` largest and smallest effects of every latent; FitError as `promoted_tokens`."""
    readout_VD = _readout(lm)
    scale = sae.scale if sae.normalization == "scalar" else 1.0
    rows_FD = sae.W_dec.to(readout_VD.device).float() / scale
    num = min(num, len(readout_VD))
    chunks = torch.split(rows_FD, max(1, _EFFECTS_PER_CHUNK // len(readout_VD)))
    found = []
    for part_FD in tqdm(chunks, desc="logit effects", unit="chunk", mininterval=5, disable=not progress):
        effects_FV = part_FD @ readout_VD.T
        most, least = effects_FV.topk(num), effects_FV.topk(num, largest=False)
        found.append([most.indices.int(), most.values, least.indices.int(), least.values])
    return LogitEffects(*(torch.cat(column).cpu().numpy() for column in zip(*found, strict=True)))


@torch.inference_mode()
def promoted_tokens(lm: LanguageModel, direction_D: Tensor, num: int) -> list[int]:
    """The tokens with the largest effect along any direction in residual units, largest first.

    FitError for a model that has no norm at its end.
    """
    effects_V = _readout(lm) @ direction_D.to(lm.device).float()
    return effects_V.topk(min(num, len(effects_V))).indices.tolist()


def _readout(lm: LanguageModel) -> Tensor:
    """[V, D] what a direction is multiplied by: g * U, its mean over the vocabulary taken off."""
    unembedding_VD = lm.model.get_output_embeddings().weight.float()
    # Means are over real tokens; rows that pad the matrix to a round size are no tokens.
    num_real = min(len(lm.tokenizer), len(unembedding_VD)) if lm.tokenizer is not None else len(unembedding_VD)
    unembedding_VD = unembedding_VD[:num_real] - unembedding_VD[:num_real].mean(0)
    gain_D, takes_mean_off = _measured(last_norm(lm), unembedding_VD)
    readout_VD = unembedding_VD * gain_D
    return readout_VD - readout_VD.mean(1, keepdim=True) if takes_mean_off else readout_VD


@torch.inference_mode()
def last_norm(lm: LanguageModel) -> nn.Module:
    """The norm before the unembedding, found by a pass over one token; FitError if there is none."""
    decoder = lm.model.model
    outputs: list[tuple[nn.Module, Any]] = []
    with ExitStack() as hooks:
        for part in decoder.children():
            handle = part.register_forward_hook(lambda module, _args, output: outputs.append((module, output)))
            hooks.callback(handle.remove)
        final_1TD = decoder(input_ids=torch.zeros(1, 1, dtype=torch.long, device=lm.device), use_cache=False)[0]
    for part, output in outputs:
        if output is final_1TD:
            return part
    raise FitError(
        f"model {lm.identity.name} must end in a norm, whose gain logit effects need, got none in "
        f"{type(decoder).__name__} whose output is the decoder's"
    )


def _measured(norm: nn.Module, like_VD: Tensor) -> tuple[Tensor, bool]:
    """[D] what the last norm multiplies by, and whether it takes the mean off first, as LayerNorm does.

    RMS norms multiply by their weight, or 1 + weight, or whatever their code makes of it: so it is asked. Of a probe
    x = (1, -1, 1, ...), whose mean is 0 and root mean square 1, either kind returns x * gain + bias, but for its
    epsilon, and only LayerNorm returns the same of x + 1. A copy is asked, in fp32: rounded to bf16, gains would be off
    by 0.4 %, and LayerNorm takes no fp32 where its weight is bf16.
    """
    norm = deepcopy(norm).to(like_VD.device, torch.float32)
    probe_D = torch.ones(like_VD.shape[1], device=like_VD.device)
    probe_D[1::2] = -1
    out_3D = norm(torch.stack([probe_D, -probe_D, probe_D + 1])).float()
    gain_D = (out_3D[0] - out_3D[1]) / 2 * probe_D
    return gain_D, torch.allclose(out_3D[2], out_3D[0], rtol=1e-3, atol=1e-5)
