"""Buffers straight from the model: what it reads in a few hundred contexts, shuffled together, never on disk.

The corpus is tokenised once and kept as one array. Each pass over it takes all contexts in a new order; buffer n is
made of places n * C to (n + 1) * C of that endless sequence. A run that goes on computes the buffer it was in again, so
at most one buffer of the model's work is done twice.

Shape suffixes: N tokens of a buffer, T positions, D model width.
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.buffers import IDENTIFYING, generator_for
from discovery.context_store import taken
from discovery.corpus import BosPolicy, Context
from discovery.harvest import harvest_settings
from discovery.input_arguments import CORPUS_HELP, add_corpus_arguments, add_model_arguments, contexts_of, load_model
from discovery.residuals import as_stored, read_in_batches, tapped
from discovery.shards import ordinary
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel


class LiveBuffers:
    """Buffers of `contexts_per_buffer` contexts each, read by `lm` at `hook_point`."""

    def __init__(
        self,
        lm: LanguageModel,
        hook_point: HookPoint,
        contexts: Sequence[Context],
        *,
        contexts_per_buffer: int = 512,
        batch_tokens: int = 8192,
        bos_policy: BosPolicy = "tokenizer",
        progress: bool = False,
    ) -> None:
        self.lm, self.hook_point, self.contexts = lm, hook_point, contexts
        self.contexts_per_buffer, self.batch_tokens = contexts_per_buffer, batch_tokens
        self.progress = progress
        self.settings = asdict(harvest_settings(lm, hook_point, contexts, contexts_per_buffer, bos_policy))
        self._kept: tuple[tuple[int, int], Tensor] | None = None

    def load(self, number: int, seed: int) -> Tensor:
        """[N, D] bf16 residuals of buffer `number`, shuffled. The last one asked for is kept."""
        if self._kept is None or self._kept[0] != (number, seed):
            self._kept = (number, seed), self._read(number, seed)
        return self._kept[1]

    def identity(self) -> list[dict[str, Any]]:
        facts = {name: self.settings[name] for name in IDENTIFYING}
        return [facts | {"contexts_per_buffer": self.contexts_per_buffer, "batch_tokens": self.batch_tokens}]

    def harvest_settings(self) -> dict[str, Any]:
        return self.settings

    def record(self) -> list[dict[str, Any]]:
        fields = ("num_contexts", "contexts_sha256", "contexts_per_shard")
        kept = {name: self.settings[name] for name in fields}
        return [{"sources": sorted(self.settings["sources"]), "on_the_fly": True, **kept}]

    def _read(self, number: int, seed: int) -> Tensor:
        places = range(number * self.contexts_per_buffer, (number + 1) * self.contexts_per_buffer)
        contexts = [self._context_at(place, seed) for place in places]
        pieces: list[Tensor] = [torch.empty(0)] * len(contexts)
        with tapped(self.lm, self.hook_point) as tap:
            read = read_in_batches(self.lm, tap, contexts, self.batch_tokens)
            bar = tqdm(
                read, f"reading buffer {number}", len(contexts), unit="ctx", leave=False, disable=not self.progress
            )
            for index, resid_TD in bar:
                pieces[index] = as_stored(resid_TD, contexts[index], f"from the model in buffer {number}")
        resid_ND = torch.cat(pieces)
        resid_ND = resid_ND[ordinary(resid_ND)]
        return resid_ND[torch.randperm(len(resid_ND), generator=generator_for(seed, "buffer", number))]

    def _context_at(self, place: int, seed: int) -> Context:
        epoch, offset = divmod(place, len(self.contexts))
        if self._order_of != (epoch, seed):
            generator = generator_for(seed, "contexts", epoch)
            self._order = torch.randperm(len(self.contexts), generator=generator).tolist()
            self._order_of = (epoch, seed)
        return self.contexts[self._order[offset]]

    _order: list[int]
    _order_of: tuple[int, int] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say what the model reads."""
    group = parser.add_argument_group("on the fly", "with --corpus, the model is run while training, without a harvest")
    group.add_argument("--corpus", nargs="+", help=CORPUS_HELP)
    add_model_arguments(group)
    add_corpus_arguments(group)
    group.add_argument("--max-tokens", type=int, help="of the corpus, from its beginning")
    group.add_argument("--contexts-per-buffer", type=int, default=512, help="read and shuffled together")


def from_arguments(args: argparse.Namespace) -> LiveBuffers:
    """Load the model and tokenise the corpus."""
    lm = load_model(args)
    with tapped(lm, args.hook_point):  # a place that the model has not got is refused before the text is read
        pass
    with closing(contexts_of(args, lm)) as read:
        contexts = taken(read, args.max_tokens, "--max-tokens")
    return LiveBuffers(
        lm,
        args.hook_point,
        contexts,
        contexts_per_buffer=args.contexts_per_buffer,
        batch_tokens=args.batch_tokens,
        bos_policy=args.bos,
        progress=True,
    )
