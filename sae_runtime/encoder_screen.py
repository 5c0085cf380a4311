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

from sae_runtime.packed_weights import GROUP, OUTPUTS_AT_ONCE, TILE, multiples, per_tile, to_half

_ROUNDED = 2.0**-20
"""Of a bound, relative: several times what a few roundings in fp32 amount to."""
_INPUTS_AT_ONCE = 4
"""Whose numbers lie side by side: what one instruction multiplies and adds for a latent. As the C source has it."""
_SCREEN_BYTES = GROUP * TILE + 2 * TILE
"""Of a tile's group: numbers, and scales in fp16."""
_ADDED = 128
"""To numbers, since the instruction takes those of one side without a sign. As the C source has it."""


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
        num_latents, num_groups = len(encoder_FD), encoder_FD.shape[1] // GROUP
        blocks = torch.empty(num_latents // TILE, num_groups, _SCREEN_BYTES, dtype=torch.uint8)
        made = cls(blocks, torch.empty(num_latents), torch.empty(num_latents))
        # Into memory that is there already: pieces kept among what is computed on the way would keep that, too.
        for first in range(0, num_latents, OUTPUTS_AT_ONCE):
            some = cls._of_some(encoder_FD[first : first + OUTPUTS_AT_ONCE])
            made.blocks[first // TILE : first // TILE + len(some.blocks)] = some.blocks
            made.slack_F[first : first + OUTPUTS_AT_ONCE] = some.slack_F
            made.spread_F[first : first + OUTPUTS_AT_ONCE] = some.spread_F
        return made

    @classmethod
    def _of_some(cls, encoder_FD: Tensor) -> "EncoderScreen":
        groups_FGK = encoder_FD.to(torch.float32).reshape(len(encoder_FD), -1, GROUP)
        scale_FG = to_half(groups_FGK.abs().amax(-1) / 127)
        # Multiples of the scale that is kept; one that fp16 rounded down would take more than 127 of the largest.
        numbers_FGK = multiples(groups_FGK, scale_FG).clamp(-127, 127)
        exact_FD = encoder_FD.to(torch.float64)
        kept_FD = (numbers_FGK.to(torch.float64) * scale_FG[..., None].to(torch.float64)).view_as(exact_FD)
        spread_F = kept_FD.norm(dim=1)
        # A sum of n numbers is off by up to n 2^-24 of the sum of their absolute values. Of x', which is at most twice
        # as long as x, sums of groups are exact, so that G + 3 roundings are left.
        summed_F = (exact_FD.norm(dim=1) + spread_F) * encoder_FD.shape[1] * 2.0**-23
        slack_F = (exact_FD - kept_FD).norm(dim=1) + summed_F
        blocks = torch.cat([_tiles(numbers_FGK), per_tile(scale_FG)], dim=-1)
        return cls(blocks, *((bound_F * (1 + _ROUNDED)).to(torch.float32) for bound_F in (slack_F, spread_F)))


def _tiles(numbers_FGK: Tensor) -> Tensor:
    """[J, G, 512]: for each 4 inputs those of 16 latents."""
    shape = -1, TILE, numbers_FGK.shape[1], GROUP // _INPUTS_AT_ONCE, _INPUTS_AT_ONCE
    return (numbers_FGK + _ADDED).to(torch.uint8).view(shape).permute(0, 2, 3, 1, 4).flatten(2)
