"""Find latents: by contrast, by text, by direction, or by what a sentence activates.

    telltale lab search DICTIONARY contrast.jsonl                                labelled items (discovery.search_items)
    telltale lab search DICTIONARY --positive "I lied." --negative "It rained."  prompts; or --positive-file FILE
    telltale lab search DICTIONARY --text "whale ship"                           explanations, else examples
    telltale lab search DICTIONARY --like 2242                                   cosine of decoder rows; or a file
    telltale lab search DICTIONARY --sentence "Call me Ishmael."                 strongest latents, token by token

A contrast ranks latents on half of the items and measures them on the other, beside permuted labels
(`discovery.contrast_search`). With few prompts nothing can be held out: they are ranked on all, and the p-value says
whether the best of so many latents would have looked as good by luck.

Words, names and largest readings come from `--store`, an example file, or from the dictionary's catalogue.
"""

import argparse
import json
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType

from discovery.command_parser import command_parser
from discovery.contrast_search import RANKINGS, search
from discovery.errors import SearchError
from discovery.input_arguments import add_dictionary_model_arguments, load_dictionary_model
from discovery.item_readings import read_item_latents
from discovery.latent_names import STORE_FILE, LatentNames, load_names, open_known
from discovery.latent_search import read_direction, read_sentence, similar
from discovery.residuals import tapped
from discovery.search_items import Item, prompt_items, read_items, read_prompts
from discovery.search_tables import contrast_table, match_table, similar_table, strongest_table, token_table
from discovery.tables import table_console
from monitors.latent_catalogue import CATALOGUE_FILE
from sae_runtime.checkpoint import LoadedSAE, Manifest, load_manifest, load_sae

_LEAST_TO_HOLD_OUT = 8
"""Groups with each label that it takes to leave half of them out."""

Found = tuple[dict[str, Any], list[RenderableType]]
"""What a search found, as JSON and as tables."""


def find_contrast(args: argparse.Namespace, sae: LoadedSAE, names: LatentNames) -> Found:
    """By labelled items or prompts."""
    lm = load_dictionary_model(args, sae.manifest)
    items = list(read_items(args.items, lm.tokenizer)) if args.items else prompts_of(args, lm.tokenizer)
    if not items:
        raise SearchError(f"{', '.join(map(str, args.items))} must have items with label 1 or 0, got none")
    with tapped(lm, sae.manifest.hook) as tap:
        readings = read_item_latents(lm, tap, sae.to(lm.device), items, precision="medium")
    said, num_items = readings.left_out(), len(items)
    readings, items = readings.of_read(items)
    result = search(
        readings.mean_IF if args.statistic == "mean" else readings.max_IF,
        torch.tensor([item.label for item in items]),
        [item.group for item in items],
        top=args.top,
        num_permutations=args.permutations,
        seed=args.seed,
        rank_by=args.rank_by,
        hold_out=bool(args.items) or can_hold_out(items),
    )
    record = asdict(result) | {"massive_left_out": readings.num_massive, "items_left_out": num_items - len(items)}
    for candidate in record["candidates"]:
        candidate |= words(names, candidate["latent"])
    return record, [contrast_table(result, names, said)]


def words(names: LatentNames, latent: int) -> dict[str, str]:
    """What is known of a latent in words."""
    return {"name": names.of(latent), "example": names.example(latent)}


def prompts_of(args: argparse.Namespace, tokenizer: Any) -> list[Item]:
    """The prompts of the command line and its files."""
    positive = [*args.positive, *(text for path in args.positive_file for text in read_prompts(path))]
    negative = [*args.negative, *(text for path in args.negative_file for text in read_prompts(path))]
    return prompt_items(positive, negative, tokenizer)


def can_hold_out(items: list[Item]) -> bool:
    """Whether there are enough groups for two halves."""
    groups = Counter(label for label, _ in {(item.label, item.group) for item in items})
    return min(groups[0], groups[1]) >= _LEAST_TO_HOLD_OUT


def find_text(args: argparse.Namespace, names: LatentNames) -> Found:
    """By words of explanations and examples."""
    if args.opened is None:
        raise SearchError(f"--text needs an example file or a catalogue: {_where(args)}")
    matches = args.opened.search(args.text, args.top)
    matches = [match._replace(title=names.of(match.latent) or None) for match in matches]
    return {"query": args.text, "latents": [match._asdict() for match in matches]}, [match_table(matches, args.text)]


def _where(args: argparse.Namespace) -> str:
    return f"give --store, got neither {STORE_FILE} nor {CATALOGUE_FILE} in {args.dictionary}"


def find_similar(args: argparse.Namespace, sae: LoadedSAE, names: LatentNames) -> Found:
    """By cosine with a latent's decoder row or with a vector."""
    named = names.index(args.like)
    like = args.like if named is None else str(named)
    if not (like.isdecimal() or Path(like).is_file()):
        named_ones = ", ".join(sorted(feature.name for feature in names.features.values()))
        known = f"a feature ({named_ones}), " if named_ones else ""
        raise SearchError(f"--like must be {known}a latent in 0..{sae.num_latents - 1} or a vector file, got {like!r}")
    direction_D = read_direction(like, sae)
    latents_NN, cosines_NN = similar(sae, direction_D[None], args.top + like.isdecimal())
    pairs = zip(latents_NN[0].tolist(), cosines_NN[0].tolist(), strict=True)
    found = [(latent, cosine) for latent, cosine in pairs if str(latent) != like][: args.top]
    what = f"latent {like} {names.of(int(like))}".strip() if like.isdecimal() else like
    record = [{"latent": latent, "cosine": round(cosine, 4), **words(names, latent)} for latent, cosine in found]
    return {"like": like, "latents": record}, [similar_table(found, names, f"decoder rows like {what}")]


def find_in_sentence(args: argparse.Namespace, sae: LoadedSAE, names: LatentNames) -> Found:
    """By what a sentence activates."""
    lm = load_dictionary_model(args, sae.manifest)
    with tapped(lm, sae.manifest.hook) as tap:
        sentence = read_sentence(lm, tap, sae.to(lm.device), args.sentence)
    maxima_F = torch.tensor(args.opened.maxima()) if args.opened else None
    if args.by_share and maxima_F is None:
        raise SearchError(f"--by-share needs an example file or a catalogue: {_where(args)}")
    strongest = sentence.strongest(args.top, maxima_F, by_share=args.by_share)
    latents = [{**_rounded(found._asdict()), **words(names, found.latent)} for found in strongest]
    tokens = [
        {
            "position": position,
            "id": sentence.token_ids[position],
            "text": sentence.pieces[position],
            "read": bool(sentence.read_T[position]),
            "latents": [{"latent": latent, "value": round(value, 4)} for latent, value in pairs],
        }
        for position, pairs in enumerate(sentence.by_token(args.top))
    ]
    tables: list[RenderableType] = [strongest_table(sentence, strongest, names), token_table(sentence, names)]
    return {"sentence": args.sentence, "latents": latents, "tokens": tokens}, tables


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Find latents by contrast, text, direction or sentence.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("items", type=Path, nargs="*", help="labelled JSON lines")
    prompts = parser.add_argument_group("by prompts")
    for label in ("positive", "negative"):
        prompts.add_argument(f"--{label}", action="append", default=[], metavar="TEXT", help="a prompt; repeat")
        prompts.add_argument(
            f"--{label}-file",
            action="append",
            default=[],
            type=Path,
            metavar="FILE",
            help="a prompt per line, or .jsonl",
        )
    prompts.add_argument("--statistic", choices=["mean", "max"], default="mean", help="of an item's scored tokens")
    prompts.add_argument("--rank-by", choices=RANKINGS, default="auroc", help="what latents are chosen by")
    prompts.add_argument("--permutations", type=int, default=50, help="of labels, for what luck gives")
    prompts.add_argument("--seed", type=int, default=0, help="of halves and permutations")
    other = parser.add_argument_group("by something else")
    other.add_argument("--text", metavar="WORDS", help="latents whose explanation or examples have these words")
    other.add_argument(
        "--like",
        metavar="LATENT|NAME|FILE",
        help="latents that write the same: an index, a feature's name, or a vector file",
    )
    other.add_argument("--sentence", metavar="TEXT", help="latents that fire in it")
    other.add_argument("--by-share", action="store_true", help="of a sentence: order by share of each latent's maximum")
    parser.add_argument(
        "--store",
        type=Path,
        help=f"example file; default {STORE_FILE} in the dictionary's folder, else its {CATALOGUE_FILE}",
    )
    add_dictionary_model_arguments(parser.add_argument_group("the model that reads prompts and sentences"))
    parser.add_argument("--top", type=int, default=20, help="latents to show")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    args = parser.parse_args(argv)
    prompted = bool(args.positive or args.negative or args.positive_file or args.negative_file)
    asked = [bool(args.items), prompted, args.text is not None, args.like is not None, args.sentence is not None]
    if sum(asked) != 1:
        parser.error("ask for one thing: labelled items, --positive and --negative, --text, --like or --sentence")
    if args.top < 1:
        parser.error(f"--top must be 1 or more, got {args.top}")
    return args


def find(args: argparse.Namespace) -> Found:
    """Whatever search was asked for."""
    manifest = load_manifest(args.dictionary)
    with ExitStack() as stack:
        known = open_known(args.store, args.dictionary, manifest)
        args.opened = None if known is None else stack.enter_context(known)
        return find_in(args, manifest)


def find_in(args: argparse.Namespace, manifest: Manifest) -> Found:
    """The same, with the example file or catalogue, if there is one, open as `args.opened`."""
    names = load_names(args.dictionary, manifest, args.opened)
    if args.text is not None:
        return find_text(args, names)
    sae = load_sae(args.dictionary)
    if args.like is not None:
        return find_similar(args, sae, names)
    return find_in_sentence(args, sae, names) if args.sentence is not None else find_contrast(args, sae, names)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    record, tables = find(args)
    if args.json:
        print(json.dumps(record))
    else:
        table_console().print(*tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
