"""Ships what is known of a dictionary's latents in one small file beside it: `telltale lab catalogue`.

    telltale lab catalogue DICTIONARY --store quotable.sqlite --quote-sources novels,chat \\
        --licence "novels=public domain" --licence "chat=written by the model itself"

Figures and examples come from an example file (`telltale lab examples`); only the text of the sources named is quoted,
and each needs its licence. Explanations come from the same file, or with `--explanations` from another one of the same
dictionary. That one may have been explained from text that can't be quoted, so a model's summary, which can hold some
of it, stays behind unless its own quotes are of the sources named; title, tokens and scores are taken.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.table import Table
from tqdm import tqdm

from discovery.catalogue_entry import BINS_PER_OCTAVE, Choice, entry_of, said_of, used_tokens
from discovery.catalogue_writer import CatalogueRow, write_catalogue
from discovery.command_parser import command_parser
from discovery.errors import ExampleError
from discovery.example_store import ExampleStore
from discovery.output_places import check_output, made_for
from discovery.tables import table_console
from monitors.latent_catalogue import CATALOGUE_FILE, LatentCatalogue
from monitors.latent_entry import Said
from sae_runtime.checkpoint import Manifest, load_manifest

_FACTS = ("model_name", "model_sha256", "quantization", "hook_point", "contexts_sha256")


def quotable(store: ExampleStore, wanted: Iterable[str]) -> frozenset[str]:
    """The sources to quote; ExampleError for one that the file does not know, or may not quote itself."""
    allowed = store.manifest.get("quote_sources") or store.sources
    unknown = [name for name in wanted if name not in allowed]
    if unknown:
        raise ExampleError(f"quote sources must be among {', '.join(allowed)}; got {', '.join(unknown)}")
    return frozenset(wanted)


def licences(words: Iterable[str], sources: frozenset[str]) -> dict[str, str]:
    """Licence of each source from words like `novels,plays=public domain`; ExampleError unless each has one."""
    found: dict[str, str] = {}
    for word in words:
        names, equals, licence = word.partition("=")
        for name in names.split(","):
            if not equals or not licence.strip() or name not in sources:
                wanted = f"NAME=WORDS with a source to quote ({', '.join(sorted(sources))})"
                raise ExampleError(f"licence must be {wanted}, got {word!r}")
            found[name] = licence.strip()
    if missing := sorted(sources - set(found)):
        raise ExampleError(f"each quoted source must have a --licence, got none for {', '.join(missing)}")
    return dict(sorted(found.items()))


def explanations(store: ExampleStore, sources: frozenset[str]) -> dict[int, Said]:
    """What is said of latents. Summaries are kept if all that the explainer can have seen may be quoted."""
    seen = store.manifest.get("quote_sources") or store.sources
    with_summary = set(seen) <= sources
    return {said.latent: said_of(said, with_summary=with_summary) for said in store.explanations()}


def make_rows(store: ExampleStore, choice: Choice, said: Mapping[int, Said]) -> list[CatalogueRow]:
    """All latents, by index."""
    rows = []
    for latent in tqdm(store.latents(), desc="latents", unit="latent", mininterval=5):
        record = store.latent(latent)
        rows.append(CatalogueRow(record.num_active, record.max, entry_of(record, choice, said.get(latent))))
    return rows


def make_manifest(
    dictionary: Manifest, store: ExampleStore, choice: Choice, quoted: Mapping[str, str], date: str | None
) -> dict[str, Any]:
    """Where it all comes from. Without a date the same input gives the same file."""
    facts = {name: store.manifest.get(name) for name in _FACTS}
    return facts | {
        "sae_name": dictionary.name,
        "sae_sha256": dictionary.sae_sha256,
        "num_tokens": store.num_tokens,
        "sources": list(store.sources),
        "quoted_sources": dict(quoted),
        "histogram_edges": list(store.histogram_edges)[::BINS_PER_OCTAVE],
        "examples_per_latent": choice.examples,
        "effects_per_latent": choice.effects,
        "date": date,
    }


def write(
    output: Path, store: ExampleStore, rows: Sequence[CatalogueRow], manifest: Mapping[str, Any]
) -> LatentCatalogue:
    """Write the catalogue and open it, which checks it."""
    tokens = store.token_bytes(used_tokens([row.entry for row in rows]))
    write_catalogue(output, rows, tokens, manifest)
    return LatentCatalogue.open(output)


def summary(output: Path, rows: Sequence[CatalogueRow]) -> dict[str, Any]:
    """Figures of what was written."""
    said = [row.entry.said for row in rows if row.entry.said]
    scores = [one.detection.balanced_accuracy for one in said if one.detection]
    return {
        "output": str(output),
        "file_bytes": output.stat().st_size,
        "latents": len(rows),
        "live": sum(row.num_active > 0 for row in rows),
        "with_examples": sum(bool(row.entry.examples) for row in rows),
        "examples": sum(len(row.entry.examples) for row in rows),
        "explained": len(said),
        "mean_detection": round(sum(scores) / len(scores), 4) if scores else None,
    }


# --- the command ----------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Write the latent catalogue that a server answers from.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("--store", type=Path, required=True, help="example file with figures and examples")
    parser.add_argument("--explanations", type=Path, metavar="STORE", help="example file with the explanations")
    parser.add_argument("--quote-sources", metavar="NAME,NAME", required=True, help="only these are quoted")
    parser.add_argument(
        "--licence", metavar="NAME,NAME=WORDS", action="append", default=[], help="of quoted sources; repeatable"
    )
    parser.add_argument("--examples", type=int, default=5, help="most of each latent")
    parser.add_argument(
        "--effects", type=int, default=8, help="most promoted and most suppressed tokens of each latent"
    )
    parser.add_argument(
        "--output", type=Path, help=f"unset: {CATALOGUE_FILE} in the dictionary's folder, if there is none yet"
    )
    parser.add_argument("--date", help="to be kept in the file, which is the same at any time without it")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    output = args.output or unused(args.dictionary / CATALOGUE_FILE)
    check_output("--output", output)
    dictionary = load_manifest(args.dictionary)
    with ExitStack() as stack:
        store = stack.enter_context(ExampleStore.open(args.store, sae_sha256=dictionary.sae_sha256))
        sources = quotable(store, args.quote_sources.split(","))
        quoted = licences(args.licence, sources)
        explained = store
        if args.explanations:
            explained = ExampleStore.open(args.explanations, sae_sha256=dictionary.sae_sha256)
            stack.enter_context(explained)
        choice = Choice(sources, _count("examples", args.examples), _count("effects", args.effects))
        rows = make_rows(store, choice, explanations(explained, sources))
        made = write(made_for(output), store, rows, make_manifest(dictionary, store, choice, quoted, args.date))
        made.check_binding(dictionary.sae_sha256, dictionary.num_latents)
        made.close()
    show(summary(output, rows), as_json=args.json)
    return 0


def unused(path: Path) -> Path:
    """`path`; ExampleError if there is a file already, which may be the one that came with the dictionary."""
    if path.exists():
        raise ExampleError(f"{path} is there already: give it as --output to replace it, or another name")
    return path


def _count(name: str, number: int) -> int:
    if number < 0:
        raise ExampleError(f"--{name} must be 0 or more, got {number}")
    return number


def show(figures: Mapping[str, Any], *, as_json: bool) -> None:
    """For a machine or a person."""
    if as_json:
        print(json.dumps(figures))
        return
    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    table_console().print(table)


if __name__ == "__main__":
    sys.exit(main())
