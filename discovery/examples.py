"""Top examples of every latent, in one pass over a text, into one SQLite file.

The text is a harvest (`--harvest`), or corpus files that the model reads now (`--corpus`): the two give the same file.
A harvest says where each context is from. With one of before it did, or for other names, `--corpus` beside it gives the
files behind it, which are read for the sources of documents alone.

    telltale lab examples DICTIONARY --harvest runs/harvest/held-out --output examples.sqlite
    telltale lab latent examples.sqlite 2242

The state is saved beside the output every few shards. A run that was killed goes on from there when it is started with
the same words, and its file is the same as if it had not been killed; with other words it is refused.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from discovery.argument_checks import check_counts, check_reading
from discovery.command_parser import command_parser
from discovery.errors import ExampleError, FitError
from discovery.example_collector import Collector, ExampleSettings
from discovery.example_store import ExampleStore
from discovery.example_writer import write_store
from discovery.hf_corpus import STREAM_PREFIX
from discovery.input_arguments import (
    CORPUS_HELP,
    add_corpus_arguments,
    add_dictionary_model_arguments,
    add_limit_arguments,
    chosen_contexts,
    load_dictionary_model,
)
from discovery.logit_effects import logit_effects, promoted_tokens
from discovery.named_features import document_sources
from discovery.output_places import check_output
from discovery.provenance import check_provenance, model_facts
from discovery.residuals import tapped
from discovery.result_lines import claimed
from discovery.tables import table_console
from discovery.text_pieces import UNKNOWN_SOURCE, HarvestedText, ModelText, Text, harvest_facts
from discovery.token_text import vocabulary_sha256
from sae_runtime.checkpoint import LoadedSAE, load_sae
from sae_runtime.errors import plain_reason
from sae_runtime.language_model import LanguageModel
from sae_runtime.whole_files import whole_file

_EFFECTS = 10
_NO_SOURCES = (
    f"--harvest was made before harvests said where their documents are from: the source of each is {UNKNOWN_SOURCE}; "
    "--corpus, the files behind the harvest, tells them"
)


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: what is read, with what, and what is kept."""

    sae: LoadedSAE
    text: Text
    lm: LanguageModel
    """Whose logits and whose tokens the file tells of: the text's own model."""
    settings: ExampleSettings
    quote_sources: tuple[str, ...] | None = None
    """Sources that examples may come from; None is all."""

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for a pass to be continued; part of the file's manifest."""
        facts = {
            "sae_sha256": self.sae.manifest.sae_sha256,
            "sae_name": self.sae.manifest.name,
            **self.text.facts,
            "sources": list(self.text.sources),
            "quote_sources": None if self.quote_sources is None else sorted(self.quote_sources),
            **asdict(self.settings),
            "logits_of": {
                **model_facts(self.lm),
                "dtype": self.lm.identity.dtype,
                "vocabulary_sha256": vocabulary_sha256(self.lm.tokenizer),
            },
        }
        return dict(json.loads(json.dumps(facts)))

    def collector(self) -> Collector:
        """An empty one."""
        quotable = [self.quote_sources is None or source in self.quote_sources for source in self.text.sources]
        if not any(quotable):
            wanted = ", ".join(self.text.sources)
            raise ExampleError(f"quote sources must be among {wanted}; got {', '.join(self.quote_sources or ())}")
        return Collector(self.sae.num_latents, self.settings, quotable)


def state_path(output: Path) -> Path:
    """Where a pass that is not finished is kept."""
    return output.with_name(output.name + ".state")


def collect(this: Pass, output: Path, *, checkpoint_pieces: int = 8, progress: bool = False) -> Collector:
    """Run `this` pass, or the rest of it. The state lies at `state_path(output)` until `finish`.

    FitError, before anything is read, for a model whose logit effects `finish` could not tell.
    """
    promoted_tokens(this.lm, this.sae.W_dec[0], 1)
    collector, identity = this.collector(), this.identity
    done = _load_state(state_path(output), identity, collector)
    bar = tqdm(
        total=sum(map(this.text.num_tokens, range(len(this.text)))),
        initial=sum(map(this.text.num_tokens, range(done))),
        desc="examples",
        unit="tok",
        unit_scale=True,
        mininterval=0.1 if sys.stderr.isatty() else 5,
        disable=not progress,
    )
    with bar:
        for index in range(done, len(this.text)):
            collector.add(this.sae, this.text.piece(index))
            if (index + 1) % checkpoint_pieces == 0 or index + 1 == len(this.text):
                _save_state(state_path(output), identity, collector, index + 1)
            bar.update(this.text.num_tokens(index))
    return collector


def _save_state(path: Path, identity: dict[str, Any], collector: Collector, pieces_done: int) -> None:
    arrays = collector.arrays()
    metadata = {"identity": json.dumps(identity), "pieces_done": str(pieces_done), "sha256": _digest(arrays)}
    try:
        with whole_file(path) as partial:
            save_file(arrays, partial, metadata)
    except (OSError, SafetensorError) as error:
        kept = "the one before it is kept, and the same command goes on"
        kept = kept if path.exists() else "there is none before it, and the same command begins anew"
        raise ExampleError(f"state {path} can't be written: {plain_reason(error)}; {kept}") from error


def _load_state(path: Path, identity: dict[str, Any], collector: Collector) -> int:
    """Go on from the state at `path` if there is one. Returns the number of pieces that are done."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        arrays = load_file(path)
        before, pieces_done = json.loads(metadata["identity"]), int(metadata["pieces_done"])
        if metadata["sha256"] != _digest(arrays):
            raise ValueError("its contents have another digest than when it was written")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ExampleError(f"state {path} can't be read; delete it to begin again: {error}") from None
    _refuse_other(path, before, identity)
    collector.load(arrays)
    return pieces_done


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _refuse_other(path: Path, before: dict[str, Any], identity: dict[str, Any]) -> None:
    differing = [name for name, value in identity.items() if before.get(name) != value]
    if differing:
        changes = "; ".join(f"{name} was {before.get(name)}, is {identity[name]}" for name in differing)
        raise ExampleError(f"{path} belongs to another pass: {changes}")


def finish(this: Pass, collector: Collector, output: Path, *, progress: bool = False) -> None:
    """Write the example file and remove the state. ExampleError if the disk is full; then the state is kept."""
    write_store(
        output,
        collector,
        logit_effects(this.lm, this.sae, _EFFECTS, progress=progress),
        sources=this.text.sources,
        tokenizer=this.lm.tokenizer,
        manifest=this.identity,
        progress=progress,
    )
    state_path(output).unlink(missing_ok=True)


def is_finished(this: Pass, output: Path) -> bool:
    """Whether `output` is this pass's file; ExampleError if it is another's."""
    if not output.exists():
        return False
    with ExampleStore.open(output) as store:
        _refuse_other(output, store.manifest, this.identity)
    state_path(output).unlink(missing_ok=True)
    return True


# --- the command ----------------------------------------------------------------------------------------------------


@contextmanager
def opened_text(args: argparse.Namespace, sae: LoadedSAE, lm: LanguageModel) -> Iterator[Text]:
    """What the arguments say is to be read, for the time of the block."""
    if args.harvest:
        text = HarvestedText(args.harvest, document_sources(args.corpus) if args.corpus else None)
        if not text.knows_sources and not args.corpus:
            print(_NO_SOURCES, file=sys.stderr)
        yield text
        return
    contexts = chosen_contexts(args, lm)
    with tapped(lm, sae.manifest.hook) as tap:
        size = {"contexts_per_piece": args.contexts_per_shard, "batch_tokens": args.batch_tokens}
        yield ModelText(lm, tap, contexts, **size)


def check_text(sae: LoadedSAE, lm: LanguageModel, text: Text) -> None:
    """FitError if the text was not read by the dictionary's model, or by another than the one at hand.

    That one gives the tokens and the logit effects. Of an imported dictionary the model is often unknown: then only
    the second check says anything.
    """
    facts, got = text.facts, model_facts(lm)
    check_provenance(sae.manifest, facts, "the text")
    for name in sorted(got.keys() & facts.keys()):
        if got[name] != facts[name]:
            raise FitError(
                f"{name} of model {lm.identity.name} must be the text's {facts[name]}, got {got[name]} "
                "(--unverified goes on)"
            )


def summary(output: Path) -> dict[str, Any]:
    """Figures of a finished file."""
    with ExampleStore.open(output) as store:
        return {
            "output": str(output),
            "file_bytes": output.stat().st_size,
            "latents": store.num_latents,
            "live": store.num_live,
            "tokens": store.num_tokens,
            "massive_left_out": store.manifest["num_massive"],
            "examples": store.num_examples,
        }


def print_summary(figures: dict[str, Any]) -> None:
    """For a person."""
    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    table_console().print(table)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Collect top examples of every latent.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("--output", type=Path, required=True, help="SQLite file; a killed run goes on")
    parser.add_argument(
        "--harvest",
        type=Path,
        nargs="+",
        help="harvest folders; --corpus beside them only says where documents are from",
    )
    parser.add_argument("--corpus", nargs="+", help=f"what the model reads without --harvest: {CORPUS_HELP}")
    parser.add_argument("--quote-sources", metavar="NAME,NAME", help="only these may be quoted; all are counted")
    add_dictionary_model_arguments(parser)
    defaults = ExampleSettings()
    kept = parser.add_argument_group("what is kept of each latent")
    kept.add_argument("--top", type=int, default=defaults.num_top, help="largest readings")
    kept.add_argument("--bins", type=int, default=defaults.num_bins, help="quantile bins")
    kept.add_argument("--per-bin", type=int, default=defaults.per_bin, help="random examples in each bin")
    kept.add_argument("--before", type=int, default=defaults.before, help="tokens before the focus")
    kept.add_argument("--after", type=int, default=defaults.after, help="tokens behind it")
    kept.add_argument("--backgrounds", type=int, default=defaults.num_backgrounds, help="random windows")
    kept.add_argument("--seed", type=int, default=0, help="of random examples and of the order of contexts")
    read = parser.add_argument_group("how corpus files are read (without --harvest)")
    add_corpus_arguments(read, split="all")
    add_limit_arguments(read)
    read.add_argument("--batch-tokens", type=int, default=8192, help="of a forward pass")
    read.add_argument("--contexts-per-shard", type=int, default=128, help="contexts counted together")
    parser.add_argument("--checkpoint-shards", type=int, default=8, help="save the state every so many shards")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    args = parser.parse_args(argv)
    if not args.harvest and not args.corpus:
        parser.error("one of --harvest and --corpus is needed")
    streams = [text for text in args.corpus or () if text.startswith(STREAM_PREFIX)]
    if args.harvest and streams:  # they are read to the end, to know where each document of the harvest is from
        parser.error(f"with --harvest, --corpus must be files or hf: datasets, got {streams[0]}")
    check_counts(args, "checkpoint_shards")
    check_reading(args)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    settings = ExampleSettings(
        num_top=args.top,
        num_bins=args.bins,
        per_bin=args.per_bin,
        before=args.before,
        after=args.after,
        num_backgrounds=args.backgrounds,
        seed=args.seed,
    )
    check_output("--output", args.output)
    if args.harvest:
        harvest_facts(args.harvest)  # what is refused is refused before a model is loaded
    sae = load_sae(args.dictionary)
    lm = load_dictionary_model(args, sae.manifest)
    quote = tuple(args.quote_sources.split(",")) if args.quote_sources else None
    with claimed(args.output), opened_text(args, sae, lm) as text:
        this = Pass(sae.to(lm.device), text, lm, settings, quote)
        if not args.unverified:
            check_text(sae, lm, text)
        if not is_finished(this, args.output):
            collector = collect(this, args.output, checkpoint_pieces=args.checkpoint_shards, progress=True)
            finish(this, collector, args.output, progress=True)
    figures = summary(args.output)
    if args.json:
        print(json.dumps(figures))
    else:
        print_summary(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
