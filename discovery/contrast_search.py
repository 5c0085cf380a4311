"""Which latents tell two kinds of items apart, and would that many have done so by luck?

    selection half   every latent is ranked, by AUROC or another statistic; the best are the candidates
    held-out half    AUROC of the candidates, which is what is reported
    permutations     the same with labels shuffled among groups: the best of 8192 latents looks good by luck

A candidate's p-value is the share of labellings, the true one among them, under which the best AUROC of all latents is
as large as its own (a max-statistic permutation test: it holds for all latents together). `p_held_out` is the same on
the held-out half, the best being that of as many latents as were chosen, chosen anew under each labelling.

Shape suffixes: I items, P permutations, G groups, F latents.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy.stats import rankdata  # type: ignore[import-untyped]
from torch import Tensor

from discovery.errors import SearchError

Ranking = Literal["auroc", "difference", "top-slice"]
RANKINGS: tuple[str, ...] = get_args(Ranking)

_SLICE = 10
_RANKS_PER_CHUNK = 2**24


@dataclass(frozen=True, slots=True)
class Candidate:
    """A latent and how well it tells the labels apart."""

    latent: int
    auroc_selection: float
    auroc_held_out: float | None
    """None where nothing was held out."""
    mean_positive: float
    """Mean reading over the positive items of both halves."""
    mean_negative: float
    difference: float
    """Difference of the two in pooled standard deviations (Cohen's d), so that latents of any size compare."""
    share_positive: float
    """Of positive items, the share on which it is active at all."""
    share_negative: float
    top_slice_positive: float
    """Positives on which it is active, among the tenth of items with the largest readings, as a share of the tenth."""
    p_value: float | None
    """On the selection half, against the best of all latents; None without permutations."""
    p_held_out: float | None
    """On the held-out half, against the best of the latents chosen; None where nothing was held out."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Candidates of one contrast, best first, and what luck would have given."""

    num_positive: int
    num_negative: int
    num_held_out: int
    candidates: list[Candidate]
    permuted_best_selection: list[float]
    """For each permutation of labels, the selection AUROC of the latent ranked best."""
    permuted_best_held_out: list[float]
    """The held-out AUROC of that latent. Empty where nothing was held out."""
    permuted_top_held_out: list[float]
    """The largest held-out AUROC of the as many latents that rank best: what the best of the candidates has by luck."""


# --- statistics -----------------------------------------------------------------------------------------------------


def auroc(scores_IF: Tensor, labels_PI: Tensor) -> Tensor:
    """[P, F] AUROC of every latent under every labelling: the chance that a positive scores above a negative.

    Ties count half (ranks are averaged). AUROC = (R - n+ (n+ + 1) / 2) / (n+ n-), R the sum of the positives' ranks
    (Mann and Whitney 1947).
    """
    labels_PI = labels_PI.to(torch.float32)
    num_positive_P1 = labels_PI.sum(1, keepdim=True)
    num_negative_P1 = labels_PI.shape[1] - num_positive_P1
    # Some latents at a time: ranking all of a wide dictionary's would take several times the memory of their readings.
    chunks = torch.split(scores_IF, max(1, _RANKS_PER_CHUNK // len(scores_IF)), dim=1)
    rank_sum_PF = torch.cat([labels_PI @ _ranks(chunk_IF) for chunk_IF in chunks], dim=1)
    return (rank_sum_PF - num_positive_P1 * (num_positive_P1 + 1) / 2) / (num_positive_P1 * num_negative_P1)


def _ranks(scores_IF: Tensor) -> Tensor:
    return torch.from_numpy(rankdata(scores_IF.numpy(), axis=0).astype(np.float32))


def mean_difference(scores_IF: Tensor, labels_PI: Tensor) -> Tensor:
    """[P, F] difference of the labels' means in pooled standard deviations; 0 where a latent does not vary."""
    labels_PI = labels_PI.to(torch.float32)
    num_positive_P1 = labels_PI.sum(1, keepdim=True)
    num_negative_P1 = labels_PI.shape[1] - num_positive_P1
    positive_PF = labels_PI @ scores_IF / num_positive_P1
    negative_PF = (1 - labels_PI) @ scores_IF / num_negative_P1
    within_PF = scores_IF.square().sum(0) - num_positive_P1 * positive_PF**2 - num_negative_P1 * negative_PF**2
    deviation_PF = (within_PF / max(labels_PI.shape[1] - 2, 1)).clamp(min=0).sqrt()
    # Rounding leaves a deviation of about this much where there is none.
    floor_F = 1e-3 * scores_IF.abs().mean(0) + 1e-6
    return (positive_PF - negative_PF) / deviation_PF.clamp(min=floor_F)


def top_slice(scores_IF: Tensor, labels_PI: Tensor) -> Tensor:
    """[P, F] positives among the tenth of items with the largest readings above 0, as a share of the tenth."""
    size = max(1, len(scores_IF) // _SLICE)
    top = scores_IF.topk(size, dim=0)
    mask_IF = torch.zeros_like(scores_IF).scatter_(0, top.indices, (top.values > 0).to(scores_IF.dtype))
    return labels_PI.to(torch.float32) @ mask_IF / size


_STATISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auroc": auroc,
    "difference": mean_difference,
    "top-slice": top_slice,
}


# --- halves and permutations ----------------------------------------------------------------------------------------


def split_groups(groups: list[str], seed: int) -> Tensor:
    """[I] mask of the selection half: whole groups, about half of them."""
    generator = np.random.default_rng(seed)
    names = sorted(set(groups))
    chosen = {names[i] for i in generator.permutation(len(names))[: len(names) // 2]}
    return torch.tensor([group in chosen for group in groups])


def permute_labels(
    labels_I: Tensor, groups: list[str], num: int, seed: int, *, sets: list[str] | None = None
) -> Tensor:
    """[P, I] labellings as luck would have them.

    Groups that have both labels swap them or don't, all of a group's items together; the others, of one label each,
    trade labels among themselves. So what items of a group have in common stays in common. With the data set of each
    item, groups trade with those of the same set alone (or of the same sets, if they reach over several).
    """
    generator = np.random.default_rng(seed)
    names = sorted(set(groups))
    number = {name: index for index, name in enumerate(names)}
    member_I = torch.tensor([number[group] for group in groups])
    positives_G = torch.bincount(member_I, weights=labels_I.double(), minlength=len(names))
    means_G = positives_G / torch.bincount(member_I, minlength=len(names))
    has_both_G = (means_G > 0) & (means_G < 1)
    label_G = means_G.long()  # of a group of one label
    trading = [places_G & ~has_both_G for places_G in _places(member_I, sets or [""] * len(groups))]
    permuted = []
    for _ in range(num):
        swap_G, traded_G = torch.zeros_like(label_G), label_G.clone()
        swap_G[has_both_G] = torch.from_numpy(generator.integers(0, 2, int(has_both_G.sum())))
        for some_G in trading:
            order = torch.from_numpy(generator.permutation(int(some_G.sum())))
            traded_G[some_G] = label_G[some_G][order]
        permuted.append(torch.where(has_both_G[member_I], labels_I ^ swap_G[member_I], traded_G[member_I]))
    return torch.stack(permuted) if permuted else labels_I.new_empty(0, len(labels_I))


def _places(member_I: Tensor, sets: list[str]) -> list[Tensor]:
    """[G] mask of the groups of each set, and of each several sets that some group reaches over."""
    sets_of: dict[int, set[str]] = {}
    for group, name in zip(member_I.tolist(), sets, strict=True):
        sets_of.setdefault(group, set()).add(name)
    places = [tuple(sorted(sets_of[group])) for group in range(len(sets_of))]
    return [torch.tensor([place == one for place in places]) for one in sorted(set(places))]


# --- the search -----------------------------------------------------------------------------------------------------


def search(
    scores_IF: Tensor,
    labels_I: Tensor,
    groups: list[str],
    *,
    top: int = 20,
    also: Iterable[int] = (),
    num_permutations: int = 50,
    seed: int = 0,
    rank_by: Ranking = "auroc",
    hold_out: bool = True,
) -> SearchResult:
    """Find the latents that are larger on positive items: chosen on one half of the groups, measured on the other.

    Latents of `also` are measured whether they are among the best or not. Without `hold_out` they are chosen on all
    items, and only the permutations say what luck would have given.
    """
    labels_I = labels_I.long()
    selection_I = split_groups(groups, seed) if hold_out else torch.ones(len(labels_I), dtype=torch.bool)
    for half in (selection_I, ~selection_I) if hold_out else (selection_I,):
        if len(set(labels_I[half].tolist())) < 2:
            raise SearchError("each half of the groups must have both labels: more groups are needed")
    # The first row holds the true labels.
    labels_PI = torch.cat([labels_I[None], permute_labels(labels_I, groups, num_permutations, seed)])
    selection_PF = auroc(scores_IF[selection_I], labels_PI[:, selection_I])
    held_out_PF = auroc(scores_IF[~selection_I], labels_PI[:, ~selection_I]) if hold_out else None
    ranking_PF = selection_PF
    if rank_by != "auroc":
        # Shares of a small slice are often equal; AUROC decides then.
        ranking_PF = _STATISTICS[rank_by](scores_IF[selection_I], labels_PI[:, selection_I]) + 1e-4 * selection_PF
    luck = _luck(ranking_PF[1:], selection_PF[1:], None if held_out_PF is None else held_out_PF[1:], top)
    chosen = ranking_PF[0].topk(min(top, ranking_PF.shape[1])).indices.tolist()
    latents = [*chosen, *(latent for latent in also if latent not in chosen)]
    held_out_C = None if held_out_PF is None else held_out_PF[0, latents]
    return SearchResult(
        num_positive=int(labels_I.sum()),
        num_negative=int((1 - labels_I).sum()),
        num_held_out=int((~selection_I).sum()),
        candidates=_describe(latents, scores_IF[:, latents], labels_I, selection_PF[0, latents], held_out_C, luck),
        permuted_best_selection=luck.best_selection,
        permuted_best_held_out=luck.best_held_out,
        permuted_top_held_out=[round(value, 4) for value in luck.largest_held_out_P.tolist()],
    )


class _Luck(NamedTuple):
    """What permuted labels give."""

    best_selection: list[float]
    """Selection AUROC of the latent ranked best."""
    best_held_out: list[float]
    largest_P: Tensor
    """Largest selection AUROC of all latents."""
    largest_held_out_P: Tensor
    """Largest held-out AUROC of the latents ranked best; empty where nothing was held out."""


def _luck(ranking_PF: Tensor, selection_PF: Tensor, held_out_PF: Tensor | None, top: int) -> _Luck:
    # A permutation of few groups can leave a half with one label; its AUROC means nothing.
    usable_P = selection_PF.isfinite().all(1)
    if held_out_PF is not None:
        usable_P &= held_out_PF.isfinite().all(1)
        held_out_PF = held_out_PF[usable_P]
    selection_PF = selection_PF[usable_P]
    chosen_PC = ranking_PF[usable_P].topk(min(top, ranking_PF.shape[1])).indices

    def of_best(auroc_PF: Tensor) -> list[float]:
        return [round(value, 4) for value in auroc_PF.gather(1, chosen_PC[:, :1])[:, 0].tolist()]

    return _Luck(
        of_best(selection_PF),
        [] if held_out_PF is None else of_best(held_out_PF),
        selection_PF.amax(1),
        torch.empty(0) if held_out_PF is None else held_out_PF.gather(1, chosen_PC).amax(1),
    )


def _describe(
    latents: list[int],
    scores_IC: Tensor,
    labels_I: Tensor,
    selection_C: Tensor,
    held_out_C: Tensor | None,
    luck: _Luck,
) -> list[Candidate]:
    positive, negative = scores_IC[labels_I == 1], scores_IC[labels_I == 0]
    columns = {
        "auroc_selection": selection_C,
        "mean_positive": positive.mean(0),
        "mean_negative": negative.mean(0),
        "difference": mean_difference(scores_IC, labels_I[None])[0],
        "share_positive": (positive > 0).float().mean(0),
        "share_negative": (negative > 0).float().mean(0),
        "top_slice_positive": top_slice(scores_IC, labels_I[None])[0],
    }
    if held_out_C is not None:
        columns["auroc_held_out"] = held_out_C
    if len(luck.largest_P):
        columns["p_value"] = _share_as_large(luck.largest_P, selection_C)
    if held_out_C is not None and len(luck.largest_held_out_P):
        columns["p_held_out"] = _share_as_large(luck.largest_held_out_P, held_out_C)
    values = [[round(value, 4) for value in column.tolist()] for column in columns.values()]
    missing = {"auroc_held_out": None, "p_value": None, "p_held_out": None}
    return [
        Candidate(latent=latent, **(missing | dict(zip(columns, row, strict=True))))
        for latent, row in zip(latents, zip(*values, strict=True), strict=True)
    ]


def _share_as_large(largest_P: Tensor, auroc_C: Tensor) -> Tensor:
    """[C] share of labellings whose largest is as large, the true labelling among them."""
    return (1 + (largest_P[:, None] >= auroc_C - 1e-6).sum(0)) / (1 + len(largest_P))
