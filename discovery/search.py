"""Contrast search: which latents tell two kinds of text apart, and would that many have done so by luck?

Items are texts or conversations with a label and a group; what belongs together (the two answers to one question) is in
one group. Each item becomes one number per latent: its mean over the scored tokens, in the dictionary's own scale.

    selection half   AUROC of every latent; the best are the candidates
    held-out half    AUROC of the candidates, which is what is reported
    permutations     the same selection with labels shuffled among groups: the best of 8192 latents looks good by luck

    python -m discovery.search DICTIONARY contrast.jsonl --top 20 --json

Items are JSON lines: `text` or `messages` (the last one is scored, between the characters `score_from_char` and
`score_to_char`), `label` (1 or 0, others are skipped), `group`.

Shape suffixes: I items, P permutations, T tokens, F latents, D model width.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata  # type: ignore[import-untyped]
from torch import Tensor
from tqdm import tqdm

from discovery.corpus import Context, read_json_lines
from discovery.harvest import read_in_batches
from sae_runtime.checkpoint import load_sae
from sae_runtime.language_model import EMBEDDED, LanguageModel, load_language_model
from sae_runtime.sae import SAE
from sae_runtime.tap import Tap


class Item(NamedTuple):
    """A text as the model reads it, and which of its tokens count."""

    tokens: list[int]
    scored: list[int]
    """Positions, never 0."""
    label: int
    group: str
    name: str
    """For pages and messages."""


class ItemReadings(NamedTuple):
    """What the dictionary says of each item."""

    mean_IF: Tensor
    """Mean over the scored tokens, fp32."""
    max_IF: Tensor


@dataclass(frozen=True, slots=True)
class Candidate:
    """A latent and how well it tells the labels apart."""

    latent: int
    auroc_selection: float
    auroc_held_out: float
    mean_positive: float
    """Mean reading over the positive items of both halves."""
    mean_negative: float
    share_positive: float
    """Of positive items, the share on which it is active at all."""
    share_negative: float
    top_slice_positive: float
    """Share of positives among the tenth of items with the largest readings."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Candidates of one contrast, best first, and what luck would have given."""

    num_positive: int
    num_negative: int
    num_held_out: int
    candidates: list[Candidate]
    permuted_best_selection: list[float]
    """For each permutation of labels, the selection AUROC of the best of all latents."""
    permuted_best_held_out: list[float]
    """The held-out AUROC of that latent."""


# --- items ----------------------------------------------------------------------------------------------------------


def read_items(paths: Iterable[Path], tokenizer: Any, max_tokens: int = 512) -> Iterator[Item]:
    """The labelled items of the files that have a scored token within the first `max_tokens`."""
    for path in paths:
        for number, record in enumerate(read_json_lines(path)):
            if record.get("label") not in (0, 1):
                continue
            item = make_item(record, tokenizer, max_tokens, name=str(record.get("id", f"{path.stem}-{number}")))
            if item.scored:
                yield item


def make_item(record: dict[str, Any], tokenizer: Any, max_tokens: int, name: str) -> Item:
    """One record as tokens. Conversations go through the chat template; only the last message is scored."""
    if "messages" in record and record["messages"][-1]["role"] != "text":
        tokens, scored = tokenize_chat(record, tokenizer)
    else:
        text = record["text"] if "text" in record else record["messages"][-1]["content"]
        encoding = tokenizer(text, return_offsets_mapping=True)
        tokens = encoding["input_ids"]
        scored = _positions_within(encoding["offset_mapping"], *_score_range(record, len(text)))
    scored = [position for position in scored if 0 < position < max_tokens]
    return Item(tokens[:max_tokens], scored, int(record["label"]), str(record.get("group", name)), name)


def tokenize_chat(record: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and the positions of the last message's scored characters."""
    messages = record["messages"]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    content = messages[-1]["content"].strip()
    begin = text.rindex(content)
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    first, last = _score_range(record, len(content))
    return encoding["input_ids"], _positions_within(encoding["offset_mapping"], begin + first, begin + last)


def _score_range(record: dict[str, Any], length: int) -> tuple[int, int]:
    last = record.get("score_to_char")
    return record.get("score_from_char") or 0, length if last is None else min(last, length)


def _positions_within(offsets: list[tuple[int, int]], begin: int, end: int) -> list[int]:
    return [i for i, (first, last) in enumerate(offsets) if first >= begin and last <= end and last > first]


# --- readings -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def read_item_latents(
    lm: LanguageModel, tap: Tap, sae: SAE, items: list[Item], *, batch_tokens: int = 4096, precision: str = "highest"
) -> ItemReadings:
    """Mean and maximum of every latent over each item's scored tokens.

    With `precision` "medium" the encoder's products may run in bf16: enough for ranking latents, and much faster on a
    processor that has instructions for it.
    """
    mean_IF = torch.zeros(len(items), sae.num_latents)
    max_IF = torch.zeros(len(items), sae.num_latents)
    contexts = [Context(item.tokens, 0, 0, item.name) for item in items]
    bar = tqdm(total=len(items), desc="reading", unit="item", mininterval=5)
    with bar, _matmul_precision(precision):
        for index, resid_TD in read_in_batches(lm, tap, contexts, batch_tokens):
            f_TF = sae.encode(resid_TD[items[index].scored])
            mean_IF[index], max_IF[index] = f_TF.mean(0), f_TF.amax(0)
            bar.update()
    return ItemReadings(mean_IF, max_IF)


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# --- statistics -----------------------------------------------------------------------------------------------------


def auroc(scores_IF: Tensor, labels_PI: Tensor) -> Tensor:
    """[P, F] AUROC of every latent under every labelling: the chance that a positive scores above a negative.

    Ties count half (ranks are averaged). AUROC = (R - n+ (n+ + 1) / 2) / (n+ n-), R the sum of the positives' ranks
    (Mann and Whitney 1947).
    """
    ranks_IF = torch.from_numpy(rankdata(scores_IF.numpy(), axis=0).astype(np.float32))
    labels_PI = labels_PI.to(torch.float32)
    num_positive_P1 = labels_PI.sum(1, keepdim=True)
    num_negative_P1 = labels_PI.shape[1] - num_positive_P1
    rank_sum_PF = labels_PI @ ranks_IF
    return (rank_sum_PF - num_positive_P1 * (num_positive_P1 + 1) / 2) / (num_positive_P1 * num_negative_P1)


def split_groups(groups: list[str], seed: int) -> Tensor:
    """[I] mask of the selection half: whole groups, about half of them."""
    generator = np.random.default_rng(seed)
    names = sorted(set(groups))
    chosen = {names[i] for i in generator.permutation(len(names))[: len(names) // 2]}
    return torch.tensor([group in chosen for group in groups])


def permute_labels(labels_I: Tensor, groups: list[str], num: int, seed: int) -> Tensor:
    """[P, I] labellings as luck would have them.

    Where every group has both labels they are swapped within groups, all or none; else whole groups trade labels. So
    what items of a group have in common stays in common.
    """
    generator = np.random.default_rng(seed)
    names = sorted(set(groups))
    member_I = torch.tensor([names.index(group) for group in groups])
    positives_G = torch.bincount(member_I, weights=labels_I.double(), minlength=len(names))
    means = positives_G / torch.bincount(member_I, minlength=len(names))
    permuted = []
    for _ in range(num):
        if bool(((means > 0) & (means < 1)).all()):
            swap_G = torch.from_numpy(generator.integers(0, 2, len(names)))
            permuted.append(labels_I ^ swap_G[member_I])
        else:
            # A group's items share one label here; a mixed group takes its majority's.
            traded_G = (means >= 0.5).long()[torch.from_numpy(generator.permutation(len(names)))]
            permuted.append(traded_G[member_I])
    return torch.stack(permuted) if permuted else labels_I.new_empty(0, len(labels_I))


def search(
    scores_IF: Tensor,
    labels_I: Tensor,
    groups: list[str],
    *,
    top: int = 20,
    also: Iterable[int] = (),
    num_permutations: int = 50,
    seed: int = 0,
) -> SearchResult:
    """Find the latents that are larger on positive items: chosen on one half of the groups, measured on the other.

    Latents of `also` are measured whether they are among the best or not.
    """
    labels_I = labels_I.long()
    selection_I = split_groups(groups, seed)
    halves = [selection_I, ~selection_I]
    for half in halves:
        if len(set(labels_I[half].tolist())) < 2:
            raise ValueError("each half of the groups must have both labels: more groups are needed")
    permuted_PI = permute_labels(labels_I, groups, num_permutations, seed)
    # The first row holds the true labels.
    labels_PI = torch.cat([labels_I[None], permuted_PI])
    selection_PF, held_out_PF = (auroc(scores_IF[half], labels_PI[:, half]) for half in halves)
    # A permutation of few groups can leave a half with one label; its AUROC means nothing.
    usable_P = selection_PF.isfinite().all(1) & held_out_PF.isfinite().all(1)
    best_P = selection_PF.nan_to_num(0).argmax(1)
    rows = [p for p in range(1, len(labels_PI)) if usable_P[p]]
    chosen = selection_PF[0].topk(min(top, selection_PF.shape[1])).indices.tolist()
    return SearchResult(
        num_positive=int(labels_I.sum()),
        num_negative=int((1 - labels_I).sum()),
        num_held_out=int((~selection_I).sum()),
        candidates=[
            _describe(latent, scores_IF, labels_I, selection_PF[0], held_out_PF[0])
            for latent in [*chosen, *(latent for latent in also if latent not in chosen)]
        ],
        permuted_best_selection=[round(float(selection_PF[p, best_P[p]]), 4) for p in rows],
        permuted_best_held_out=[round(float(held_out_PF[p, best_P[p]]), 4) for p in rows],
    )


def _describe(latent: int, scores_IF: Tensor, labels_I: Tensor, selection_F: Tensor, held_out_F: Tensor) -> Candidate:
    score_I = scores_IF[:, latent]
    positive, negative = score_I[labels_I == 1], score_I[labels_I == 0]
    slice_size = max(1, len(score_I) // 10)
    return Candidate(
        latent=latent,
        auroc_selection=round(float(selection_F[latent]), 4),
        auroc_held_out=round(float(held_out_F[latent]), 4),
        mean_positive=round(float(positive.mean()), 4),
        mean_negative=round(float(negative.mean()), 4),
        share_positive=round(float((positive > 0).float().mean()), 4),
        share_negative=round(float((negative > 0).float().mean()), 4),
        top_slice_positive=round(float(labels_I[score_I.topk(slice_size).indices].float().mean()), 4),
    )


def format_table(result: SearchResult) -> str:
    """For a person."""
    lines = [
        f"{result.num_positive} positive, {result.num_negative} negative, {result.num_held_out} of them held out",
        " latent   AUROC  held out   mean +   mean -   on +   on -  top 10% +",
    ]
    for c in result.candidates:
        lines.append(
            f"{c.latent:7d} {c.auroc_selection:7.3f} {c.auroc_held_out:9.3f} {c.mean_positive:8.3f} "
            f"{c.mean_negative:8.3f} {c.share_positive:6.2f} {c.share_negative:6.2f} {c.top_slice_positive:10.2f}"
        )
    if result.permuted_best_selection:
        lines.append(
            f"labels permuted {len(result.permuted_best_selection)} times, best of all latents: selection "
            f"{max(result.permuted_best_selection):.3f} at most, held out {max(result.permuted_best_held_out):.3f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Find the latents that tell two kinds of text apart.")
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("items", type=Path, nargs="+", help="labelled JSON lines")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--statistic", choices=["mean", "max"], default="mean", help="of the scored tokens")
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--permutations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    args = parser.parse_args(argv)
    sae = load_sae(args.dictionary)
    lm = load_language_model(args.model, progress=True)
    items = list(read_items(args.items, lm.tokenizer))
    readings = read_item_latents(lm, Tap(lm.model, sae.manifest.hook, lm.d_model), sae, items, precision="medium")
    result = search(
        readings.mean_IF if args.statistic == "mean" else readings.max_IF,
        torch.tensor([item.label for item in items]),
        [item.group for item in items],
        top=args.top,
        num_permutations=args.permutations,
        seed=args.seed,
    )
    print(json.dumps(asdict(result)) if args.json else format_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
