"""Weights in the order that the block kernel reads them: 4, 8 or 16 bits a number, 32 inputs of an output to a scale.

A weight is `scale * number + least` with numbers of 4 bits, as Q4_0, Q4_1 and Q4_K of a GGUF file have it, or
`scale * number` with numbers of 8 bits, as Q8_0 has it. Both are found again in weights that were de-quantised from
such a file. Scales and least weights are kept in fp16: as the file has them, but for those of Q4_K, which are products
of two numbers and get rounded. With them 4 bits take 5 a weight, as in Q4_1 (Q4_0 and Q4_K take 4.5 in the file), and 8
bits 8.5. What is neither is kept in bf16, weights of Q5 and Q6_K too, of which a file of Q4_K has some.

Shape suffixes: N outputs, K inputs, G groups of 32 inputs, J tiles of 16 outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32
"""Inputs that share a scale."""
TILE = 16
"""Outputs that are computed at once."""

BITS_OF_BYTES = {320: 4, 544: 8, 1024: 16}
"""Of the bytes of a tile's group."""
# A number is a multiple of the scale but for what fp32 rounded when the file was read.
_NEAR = 1e-3
# What a weight may be off by, as a part of its group's largest: bf16 may be off by as much of that one (2^-9 to 2^-8 of
# it, by where it lies between two powers of 2), though by less of smaller ones.
_MOST_LOST = 2.0**-9
# Where more groups than this don't use both ends, weights were not of 4 bits.
_MOST_GROUPS_LEFT = 0.95
OUTPUTS_AT_ONCE = 512
"""Outputs whose weights are packed at once: what is computed on the way stays in the processor's caches."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix [N, K]."""

    blocks: Tensor
    """uint8 [J, G, bytes]: the numbers of 16 outputs and 32 inputs; with 4 and 8 bits 16 scales, with 4 bits 16 least
    weights, in fp16."""

    @property
    def bits(self) -> int:
        return BITS_OF_BYTES[self.blocks.shape[2]]

    @property
    def num_outputs(self) -> int:
        return len(self.blocks) * TILE

    @property
    def num_inputs(self) -> int:
        return self.blocks.shape[1] * GROUP


def pack(weight_NK: Tensor) -> PackedWeight:
    """Pack fp32 weights in as few bits as hold them: in 4 or 8 none is off by more than 2^-9 of its group's largest.

    ValueError for a shape that does not divide into tiles of 16 outputs by 32 inputs.
    """
    num_outputs, num_inputs = weight_NK.shape
    if num_outputs % TILE or num_inputs % GROUP:
        raise ValueError(f"weights must have multiples of {TILE} by {GROUP}, got {list(weight_NK.shape)}")
    pieces = torch.split(weight_NK.view(num_outputs, -1, GROUP), OUTPUTS_AT_ONCE)
    for form in (_blocks4, _blocks8):
        blocks = []
        for groups_NGK in pieces:
            made = form(groups_NGK)
            if made is None:
                break
            blocks.append(made)
        else:
            return PackedWeight(torch.cat(blocks))
    return pack_bfloat16(weight_NK)


def pack_bfloat16(weight_NK: Tensor) -> PackedWeight:
    """Pack weights as bf16, whatever they are."""
    numbers_NGK = weight_NK.to(torch.bfloat16).reshape(len(weight_NK), -1, GROUP)
    return PackedWeight(_tiles(numbers_NGK).flatten(2).view(torch.uint8))


def by_turns(first_NK: Tensor, second_NK: Tensor) -> Tensor:
    """Two matrices as one, a tile of the first and a tile of the second by turns."""
    tiles = [matrix_NK.view(-1, TILE, matrix_NK.shape[1]) for matrix_NK in (first_NK, second_NK)]
    return torch.stack(tiles, dim=1).flatten(0, 2)


def _blocks4(groups_NGK: Tensor) -> Tensor | None:
    """Blocks of numbers of 4 bits; None where those would lose too much."""
    least_NG = groups_NGK.amin(-1)
    offsets_NGK = groups_NGK - least_NG[..., None]
    step_NG = _step(offsets_NGK)
    kept_NG, least_NG = to_half(step_NG), to_half(least_NG)
    numbers_NGK = multiples(offsets_NGK, step_NG)
    if _loses(groups_NGK, numbers_NGK * kept_NG[..., None] + least_NG[..., None]):
        return None
    tiles = _tiles(numbers_NGK.to(torch.uint8))
    pairs = tiles.view(*tiles.shape[:2], 8, 2, TILE, 2)
    # Of 32 bytes the low halves are a pair of inputs of 16 outputs, the high ones the next: no shuffle is needed.
    numbers = (pairs[:, :, :, 0] | (pairs[:, :, :, 1] << 4)).flatten(2)
    return torch.cat([numbers, per_tile(kept_NG), per_tile(least_NG)], dim=-1)


def _step(offsets_NGK: Tensor) -> Tensor:
    """[N, G] a step of which all offsets from a group's least weight are multiples, 15 at most; 0 where there is none.

    Q4_1 uses both ends of 0..15; others do mostly, and where they don't the range is fewer steps.
    """
    range_NG = offsets_NGK.amax(-1)
    step_NG = torch.where(_are_multiples(offsets_NGK, range_NG / 15), range_NG / 15, 0)
    left_NG = (step_NG == 0) & (range_NG > 0)
    if left_NG.sum() > _MOST_GROUPS_LEFT * left_NG.numel():
        return step_NG  # no such weights
    for most in range(14, 0, -1):
        if not left_NG.any():
            break
        steps = range_NG[left_NG] / most
        step_NG[left_NG] = torch.where(_are_multiples(offsets_NGK[left_NG], steps), steps, 0)
        left_NG &= step_NG == 0
    return step_NG


def _are_multiples(offsets_XK: Tensor, step_X: Tensor) -> Tensor:
    multiples_XK = offsets_XK / step_X[..., None]
    return ((multiples_XK - multiples_XK.round()).abs() < _NEAR).all(-1)


def _blocks8(groups_NGK: Tensor) -> Tensor | None:
    """Blocks of numbers of 8 bits; None where those would lose too much."""
    # Q8_0 puts the weight that is furthest from 0 at 127 or -127.
    step_NG = groups_NGK.abs().amax(-1) / 127
    kept_NG, numbers_NGK = to_half(step_NG), multiples(groups_NGK, step_NG)
    if _loses(groups_NGK, numbers_NGK * kept_NG[..., None]):
        return None
    return torch.cat([_tiles(numbers_NGK.to(torch.int8)).flatten(2).view(torch.uint8), per_tile(kept_NG)], dim=-1)


def multiples(offsets_NGK: Tensor, step_NG: Tensor) -> Tensor:
    """The nearest whole multiples of each group's step, which is not negative; 0 where it is 0."""
    return torch.where(step_NG[..., None] > 0, offsets_NGK / step_NG[..., None], 0).round()


def _loses(groups_NGK: Tensor, made_NGK: Tensor) -> bool:
    lost_NG = (made_NGK - groups_NGK).abs().amax(-1)
    # What is not finite is lost: it is no reason to call all other weights of the group near enough.
    kept_NG = lost_NG.isfinite() & (lost_NG <= _MOST_LOST * groups_NGK.abs().amax(-1))
    return not bool(kept_NG.all())


def to_half(x: Tensor) -> Tensor:
    """As fp16 holds it, in fp32."""
    return x.to(torch.float16).to(torch.float32)


def _tiles(numbers_NGK: Tensor) -> Tensor:
    """[J, G, 16 pairs of inputs, 16 outputs, 2]."""
    groups = numbers_NGK.shape[1]
    return numbers_NGK.view(-1, TILE, groups, GROUP // 2, 2).permute(0, 2, 3, 1, 4).contiguous()


def per_tile(parameter_NG: Tensor) -> Tensor:
    """[J, G, 32], the bytes of fp16."""
    halves = parameter_NG.to(torch.float16).view(-1, TILE, parameter_NG.shape[1]).transpose(1, 2)
    return halves.contiguous().view(torch.uint8)
