"""What is lost when one latent is taken out of the residual where it is active, beside other latents taken out there.

    h' = h - f_k d_k                        SET to 0: the latent's own part alone, at positions where f_k > 0
    cross_entropy  CE'(next token) - CE     at those positions, in nats: above 0, what follows got less likely
    kl             KL(p || p')              at those positions
    topic_tokens   log P(S) - log P'(S)     S: the tokens typical of the contrast's positive texts

A *control* takes another latent out at the same positions. At each, the candidates are the eight latents active there
that are nearest in the length of what they add (f ||d||) and, at half weight, in how often they fire; a control has an
order of preference over all latents, drawn once, and takes the candidate that comes first in it. So a control removes
as much as the latent does, of what the model did compute there, and as few different latents as possible.

Shape suffixes: B rows (unsteered, ablated, then controls), T positions, D width, F latents, P positions measured,
V vocabulary, C controls.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from discovery.causal_texts import Text
from discovery.resumed_pass import second_half
from discovery.steering_bench import Bench
from sae_runtime.steering import relative_moves
from sae_runtime.steering_spec import ALL_BUT_FIRST, SteeringOp, SteeringSpec

NUM_CANDIDATES = 8


class Read(NamedTuple):
    """A text as the model and the dictionary read it, without steering."""

    text: Text
    resid_TD: Tensor
    sparse_f_TF: Tensor

    def latents(self) -> Tensor:
        """[T, F] readings."""
        return self.sparse_f_TF.to_dense()


class Effects(NamedTuple):
    """Effects at P positions; row 0 is the latent, the others are the controls."""

    cross_entropy: NDArray[np.float64]
    """[1 + C, P]"""
    kl: NDArray[np.float64]
    topic_tokens: NDArray[np.float64]
    """NaN without typical tokens."""
    relative_norm: NDArray[np.float64]
    """||h' - h|| / ||h||"""
    groups: list[str]
    lost_V: Tensor
    """Probability that the tokens lost by ablating the latent, summed over positions."""


class Draws(NamedTuple):
    """What all controls of one latent share."""

    density_F: Tensor
    """Share of tokens at which each latent is active."""
    orders_CF: Tensor
    """[C, F] each control's rank of every latent; the lowest is taken."""

    @classmethod
    def of(cls, density_F: Tensor, num: int, seed: int) -> "Draws":
        generator = torch.Generator().manual_seed(seed)
        orders_CF = torch.stack([torch.randperm(len(density_F), generator=generator) for _ in range(num)])
        return cls(density_F, orders_CF.to(density_F.device))


def active_positions(read: Read, latent: int) -> list[int]:
    """Scored positions where `latent` is active, another latent is too, and a token follows."""
    f_TF = read.latents()
    is_usable_T = (f_TF[:, latent] > 0) & ((f_TF > 0).sum(-1) > 1)
    last = len(read.text.tokens) - 1
    return [position for position in read.text.scored if position < last and is_usable_T[position]]


def thinned(positions: list[int], num: int) -> list[int]:
    """At most `num` of them, evenly taken."""
    if len(positions) <= num:
        return positions
    return [positions[i * len(positions) // num] for i in range(num)]


@torch.inference_mode()
def ablate(
    bench: Bench,
    read: Read,
    latent: int,
    positions: list[int],
    *,
    measured: list[int],
    typical: Sequence[int],
    draws: Draws | None,
) -> Effects:
    """Take `latent`, and each control in its place, out of one text at `positions`; measure at some of them.

    Without `draws` there are no controls. What lies behind the last measured position cannot matter and is left out.
    """
    end = measured[-1] + 1
    resid_TD, f_TF = read.resid_TD[:end], read.latents()[:end]
    positions = [position for position in positions if position < end]
    rows = [resid_TD, _remove_at(bench, resid_TD, positions, [latent] * len(positions))]
    if draws is not None:
        chosen_CP = choose_controls(bench, f_TF, latent, positions, draws)
        rows += [_remove_at(bench, resid_TD, positions, chosen_P) for chosen_P in chosen_CP.tolist()]
    resid_BTD = torch.stack(rows)
    logprobs_BPV = second_half(bench, resid_BTD, measured)
    return _effects(logprobs_BPV, resid_BTD, read.text, measured, typical)


def remove(bench: Bench, resid_TD: Tensor, latent: int) -> Tensor:
    """The residuals without what `latent` adds to them, position 0 left alone. Where it is silent nothing changes."""
    spec = SteeringSpec(latent, SteeringOp.SET, 0.0, window=ALL_BUT_FIRST)
    return bench.steering([spec], len(resid_TD)).apply(resid_TD, 0)


def _remove_at(bench: Bench, resid_TD: Tensor, positions: list[int], latents: list[int]) -> Tensor:
    """The residuals without `latents[i]` at `positions[i]`."""
    changed_TD = resid_TD.clone()
    for latent in set(latents):
        mine = [position for position, other in zip(positions, latents, strict=True) if other == latent]
        changed_TD[mine] = remove(bench, resid_TD, latent)[mine]
    return changed_TD


def choose_controls(bench: Bench, f_TF: Tensor, latent: int, positions: list[int], draws: Draws) -> Tensor:
    """[C, P] the latent that each control takes out at each position."""
    length_F = bench.sae.W_dec.norm(dim=-1)
    log_density_F = draws.density_F.clamp(min=1e-6).log2()
    chosen = []
    for position in positions:
        f_F = f_TF[position]
        active = (f_F > 0).nonzero()[:, 0]
        others = active[active != latent]
        size = (f_F[others] * length_F[others] / (f_F[latent] * length_F[latent])).log2().abs()
        rarity = (log_density_F[others] - log_density_F[latent]).abs()
        near = others[(size + 0.5 * rarity).topk(min(NUM_CANDIDATES, len(others)), largest=False).indices]
        chosen.append(near[draws.orders_CF[:, near].argmin(1)])
    return torch.stack(chosen, dim=1)


def _effects(
    logprobs_BPV: Tensor, resid_BTD: Tensor, text: Text, positions: list[int], typical: Sequence[int]
) -> Effects:
    next_P = torch.tensor([text.tokens[position + 1] for position in positions], device=logprobs_BPV.device)
    clean_PV = logprobs_BPV[0]
    target_BP = logprobs_BPV.gather(2, next_P.expand(len(logprobs_BPV), -1)[..., None])[..., 0]
    kl_BP = torch.stack([(clean_PV.exp() * (clean_PV - row_PV)).sum(-1) for row_PV in logprobs_BPV])
    topic_BP = torch.full_like(target_BP, torch.nan)
    if typical:
        topic_BP = logprobs_BPV[..., list(typical)].logsumexp(-1)
    moved_BP = torch.stack([relative_moves(resid_BTD[0], row_TD)[positions] for row_TD in resid_BTD])
    return Effects(
        _array(target_BP[0] - target_BP[1:]),
        _array(kl_BP[1:]),
        _array(topic_BP[0] - topic_BP[1:]),
        _array(moved_BP[1:]),
        [text.group] * len(positions),
        (clean_PV.exp() - logprobs_BPV[1].exp()).sum(0),
    )


def _array(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.double().cpu().numpy()
    return array


def joined(parts: Iterable[Effects]) -> Effects | None:
    """The effects over several texts; None if there are none."""
    parts = list(parts)
    if not parts:
        return None

    def all_of(name: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(part, name) for part in parts], axis=1)

    return Effects(
        all_of("cross_entropy"),
        all_of("kl"),
        all_of("topic_tokens"),
        all_of("relative_norm"),
        [group for part in parts for group in part.groups],
        torch.stack([part.lost_V for part in parts]).sum(0),
    )
