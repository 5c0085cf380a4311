"""The flags of commands that run a model: which one, in which form; and over a corpus: which text, cut how."""

import argparse
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from discovery.context_store import ContextStore, taken
from discovery.corpus import DEFAULTS, BosPolicy, Context, CorpusSettings, Split, read_contexts
from discovery.errors import ArgumentError
from discovery.hf_corpus import STREAM_PREFIX
from discovery.provenance import check_model
from monitors.monitor_spec import Role
from sae_runtime.checkpoint import LoadedSAE, Manifest, load_sae
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import EMBEDDED, DTypeName, LanguageModel, Quantization, load_language_model
from sae_runtime.reasoning import parse_delimiters

CORPUS_HELP = ".jsonl (text, messages or tokens), text files, either .gz, or hf:PATH_OR_NAME[:SPLIT[:COLUMN]]"

Group = argparse._ArgumentGroup | argparse.ArgumentParser


DEVICE_HELP = "cpu, cuda, cuda:N; auto: cuda if there is one"


def add_model_arguments(group: Group) -> None:
    """Which model reads, and where it is tapped. `--device` is the command's own."""
    _add_model(group)
    group.add_argument(
        "--hook-point", type=_hook_point, default=HookPoint(15), help="layers.N.output or layers.N.input"
    )
    group.add_argument("--batch-tokens", type=int, default=8192, help="of a forward pass")


def _hook_point(text: str) -> HookPoint:
    """ArgumentError, one line, where argparse would say no more than that the value is invalid."""
    try:
        return HookPoint.parse(text)
    except ValueError as error:
        raise ArgumentError(f"--hook-point: {error}") from None


def add_dictionary_model_arguments(group: Group) -> None:
    """Which model goes with the command's dictionary: see `load_dictionary_model`."""
    _add_model(group)
    group.add_argument("--device", default="auto", help=DEVICE_HELP)
    group.add_argument("--unverified", action="store_true", help="accept another model or place than the dictionary's")


def add_reading_arguments(group: Group) -> None:
    """Which model reads labelled conversations, and how."""
    _add_model(group)
    group.add_argument("--device", default="auto", help=DEVICE_HELP)
    group.add_argument("--batch-tokens", type=int, default=4096, help="of a forward pass")
    group.add_argument("--max-tokens", type=int, default=2048, help="conversations of more tokens are left out")
    group.add_argument("--cache", type=Path, help="folder to keep readings in; the same ones are never taken twice")
    group.add_argument("--dictionary", type=Path, help="for latents")
    group.add_argument("--unverified", action="store_true", help="accept another model than the dictionary's")


def add_reasoning_argument(group: Group) -> None:
    """What encloses reasoning, for monitors that score it by itself."""
    group.add_argument(
        "--reasoning-delimiters",
        type=_delimiters,
        default="auto",
        metavar="PAIRS",
        help="as of the server: auto, none, or 'OPENING CLOSING[,OPENING CLOSING...]'",
    )


def add_roles_argument(group: Group, default: tuple[Role, ...] | None, help: str) -> None:
    """Whose words a server scores with the monitor that is made."""
    group.add_argument("--roles", type=_roles, default=default, metavar="ROLE[,ROLE...]", help=help)


def _roles(text: str) -> tuple[Role, ...]:
    words, known = text.split(","), get_args(Role)
    if len(set(words)) < len(words) or not set(words) <= set(known):
        raise argparse.ArgumentTypeError(
            f"must be some of {', '.join(known)} with commas between, each once, got {text!r}"
        )
    return tuple(role for role in known if role in words)


def _delimiters(text: str) -> str:
    try:
        parse_delimiters(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _add_model(group: Group) -> None:
    group.add_argument("--model", default=EMBEDDED, help="embedded, a folder, a .gguf file or a hub name")
    group.add_argument(
        "--quantization",
        default="auto",
        choices=get_args(Quantization),
        help="auto: nf4 on CUDA, else none; GGUF: as it is",
    )
    group.add_argument(
        "--dtype", default="auto", choices=get_args(DTypeName), help="auto: bfloat16, or float32 where that is emulated"
    )


def add_corpus_arguments(group: Group, split: Split = "train") -> None:
    """How its files become contexts. `split` is what is read if nothing is said."""
    group.add_argument("--split", default=split, choices=["train", "held_out", "all"], help="which documents are read")
    group.add_argument(
        "--held-out-share", type=float, default=DEFAULTS.held_out_share, help="of documents, by a hash of their text"
    )
    group.add_argument(
        "--context-tokens",
        type=int,
        default=DEFAULTS.context_tokens,
        help="longest context; documents are cut into such",
    )
    group.add_argument(
        "--bos", default=DEFAULTS.bos, choices=get_args(BosPolicy), help="tokenizer: before documents, if it puts one"
    )


def add_limit_arguments(group: Group) -> None:
    """How many of the contexts: see `chosen_contexts`. `--seed` is the command's own."""
    group.add_argument("--max-tokens", type=int, help="take no more than this; contexts are shuffled first")
    group.add_argument(
        "--read-tokens", type=int, help="read no more than this of the corpus; default: all, of hf-stream: --max-tokens"
    )


def load_model(args: argparse.Namespace) -> LanguageModel:
    """The model asked for."""
    return load_language_model(
        args.model, quantization=args.quantization, dtype=args.dtype, device=args.device, progress=True
    )


def load_dictionary_model(args: argparse.Namespace, manifest: Manifest) -> LanguageModel:
    """The model asked for; FitError if it is not the dictionary's, unless `--unverified` was given."""
    lm = load_model(args)
    check_model(manifest, lm, unverified=args.unverified)
    return lm


def load_optional_dictionary(args: argparse.Namespace, lm: LanguageModel) -> LoadedSAE | None:
    """That of `--dictionary`, on the model's device; FitError if it is another model's, unless `--unverified`."""
    if args.dictionary is None:
        return None
    sae = load_sae(args.dictionary, device=lm.device)
    check_model(sae.manifest, lm, unverified=args.unverified)
    return sae


def contexts_of(args: argparse.Namespace, lm: LanguageModel) -> Generator[Context, None, None]:
    """The contexts of `--corpus`, with a progress bar, which ends where it is closed."""
    settings = CorpusSettings(context_tokens=args.context_tokens, held_out_share=args.held_out_share, bos=args.bos)
    read = read_contexts(args.corpus, lm.tokenizer, settings, args.split)
    yield from tqdm(read, desc="tokenising", unit="ctx", unit_scale=True, mininterval=5)


def chosen_contexts(args: argparse.Namespace, lm: LanguageModel) -> ContextStore:
    """Those contexts in an order that `--seed` and each of them decide, `--max-tokens` at most.

    CorpusError if there are some and none fits into that.
    """
    limit = read_limit(args.corpus, args.max_tokens, args.read_tokens)
    with closing(contexts_of(args, lm)) as contexts:
        read = taken(contexts, limit, "--max-tokens" if args.read_tokens is None else "--read-tokens")
    return read.shuffled(args.seed, args.max_tokens)


def read_limit(corpus: Iterable[str], max_tokens: int | None, read_tokens: int | None = None) -> int | None:
    """How much of the corpus is read. A stream from a hub may have no end that one would live to see."""
    has_stream = any(text.startswith(STREAM_PREFIX) for text in corpus)
    return max_tokens if has_stream and read_tokens is None else read_tokens
