"""A dictionary's encoder in 8 bits: enough to see which latents of a residual may be on, at half the bytes.

A latent's weights w become w' = scale * number, with numbers in -127..127 and 32 inputs to a scale, and the C source
rounds a residual x to x' alike, so that products are sums of whole numbers. What such a product is off by is bounded
(Cauchy-Schwarz):

    |w . x - w' . x'| <= ||w - w'|| ||x|| + ||w'|| ||x - x'||

and a latent that is below its threshold by more than that, and by what sums in fp32 round, is off.

Shape suffixes: F latents, D model width, G groups of 32 inputs, J tiles of 16 latents.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_runtime.packed_weights import GROUP, TILE

_ROUNDED = 2.0**-20
"""Of a sum, and of what is added to it, relative: several times what a few roundings in fp32 amount to."""
_INPUTS_AT_ONCE = 4
"""Whose numbers lie side by side: what one instruction multiplies and adds for a latent."""
_OFFSET = 128
"""Is added to numbers, since the instruction takes those of one side without a sign."""
_LATENTS_AT_ONCE = 512


class EncoderScreen(NamedTuple):
    """What the C source reads of an encoder before it reads the encoder itself."""

    blocks: Tensor
    """uint8 [J, G, 544]: the numbers of 16 latents and 32 inputs, and 16 scales in fp16."""
    slack_F: Tensor
    """fp32: what a screened product is off by for each ||x||, at most, sums of both sides in fp32 included."""
    spread_F: Tensor
    """fp32: what it is off by for each ||x - x'||, at most."""

    @classmethod
    def of(cls, encoder_FD: Tensor) -> "EncoderScreen":
        """Of weights in bf16, a multiple of 16 latents by a multiple of 32 inputs."""
        pieces = [cls._of_some(piece_FD) for piece_FD in torch.split(encoder_FD, _LATENTS_AT_ONCE)]
        return cls(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))

    @classmethod
    def _of_some(cls, encoder_FD: Tensor) -> "EncoderScreen":
        groups_FGK = encoder_FD.to(torch.float32).view(len(encoder_FD), -1, GROUP)
        step_FG1 = groups_FGK.abs().amax(-1, keepdim=True) / 127
        numbers_FGK = torch.where(step_FG1 > 0, groups_FGK / step_FG1, 0).round()
        scale_FG1 = step_FG1.to(torch.float16)
        exact_FD = encoder_FD.to(torch.float64)
        kept_FD = (numbers_FGK.to(torch.float64) * scale_FG1.to(torch.float64)).view_as(exact_FD)
        spread_F = kept_FD.norm(dim=1)
        # A sum of n numbers is off by up to n 2^-24 of the sum of their absolute values. Of x', which is at most twice
        # as long as x, sums of groups are exact, so that G + 3 roundings are left.
        summed_F = (exact_FD.norm(dim=1) + spread_F) * encoder_FD.shape[1] * 2.0**-23
        slack_F = (exact_FD - kept_FD).norm(dim=1) + summed_F
        blocks = torch.cat([_tiles(numbers_FGK), _per_tile(scale_FG1[..., 0])], dim=-1)
        return cls(blocks, *((bound_F * (1 + _ROUNDED)).to(torch.float32) for bound_F in (slack_F, spread_F)))


def _tiles(numbers_FGK: Tensor) -> Tensor:
    """[J, G, 512]: for each 4 inputs those of 16 latents."""
    tiles = (numbers_FGK + _OFFSET).to(torch.uint8).view(-1, TILE, numbers_FGK.shape[1], GROUP // 4, _INPUTS_AT_ONCE)
    return tiles.permute(0, 2, 3, 1, 4).flatten(2)


def _per_tile(scale_FG: Tensor) -> Tensor:
    """[J, G, 32], the bytes of fp16."""
    return scale_FG.view(-1, TILE, scale_FG.shape[1]).transpose(1, 2).contiguous().view(torch.uint8)
