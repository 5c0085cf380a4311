"""A folder of pages about a dictionary, to be opened in any browser, without a network.

    telltale lab pages DICTIONARY --store examples.sqlite --output pages
    telltale lab pages DICTIONARY --store examples.sqlite --output pages --latents all --log runs/train/first

    index.html       the latents, searched and sorted in the page; `index.html#q=whale` opens a search
    latents/N.html   one latent: coloured examples, histogram, effects, neighbours, explanation, evidence
    map.html         all live latents on a plane
    training.html    the curves of `--log`
    results.html     searches: what `telltale lab search --json` printed, given by `--results`

Without `--latents`, pages are made for the named latents, and for the `--num-top` best explained and those with the
largest readings: the token rule explains thousands.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from tqdm import tqdm

from discovery.command_parser import command_parser
from discovery.decoder_map import METHODS, decoder_map, density_exponents
from discovery.errors import PageError
from discovery.example_store import ExampleStore
from discovery.latent_names import LatentNames, load_names, open_store
from discovery.latent_record import LatentRecord
from discovery.latent_search import neighbours
from discovery.page_site import Link, Site, SiteFacts, check_site
from discovery.page_views import NeighbourView, example_view, latent_view, visible
from discovery.result_views import found_latents, read_result, result_view
from discovery.training_log import TrainingRun, read_log
from sae_runtime.checkpoint import LoadedSAE, Manifest, load_sae

_NEIGHBOURS = 8
_PART = re.compile(r"(\d+)(?:-(\d+))?")


class Subject(NamedTuple):
    """What the pages are about."""

    sae: LoadedSAE
    store: ExampleStore
    names: LatentNames


class Extras(NamedTuple):
    """What is asked for beside the latents."""

    runs: list[TrainingRun]
    results: list[dict[str, Any]]
    map_method: str
    """`none` for no map."""


def choose_latents(text: str | None, subject: Subject, num_top: int, results: Sequence[dict[str, Any]]) -> list[int]:
    """The latents that get a page, in the order of the index. PageError for what is no list of latents."""
    store, names = subject.store, subject.names
    if text == "all":
        ranked = store.latents("max")
    elif text is not None:
        ranked = _parse(text, subject.sae.num_latents)
    else:
        ranked = store.latents("max")[:num_top]
    found = [latent for record in results for latent in found_latents(record)]
    # Named ones first, then what is explained, best explanation first.
    explained = [e.latent for e in sorted(store.explanations(), key=lambda e: (-(e.detection or 0), e.latent))]
    first = [*names.features, *explained]
    wanted = {*ranked, *found, *([] if text is not None else [*names.features, *explained[:num_top]])}
    order = [latent for latent in dict.fromkeys([*first, *ranked, *found]) if latent in wanted]
    if wrong := [latent for latent in order if not 0 <= latent < subject.sae.num_latents]:
        raise PageError(f"latents must lie in 0..{subject.sae.num_latents - 1}, got {wrong[0]}")
    return order


def _parse(text: str, num_latents: int) -> list[int]:
    chosen: list[int] = []
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise PageError(
                f"latents must be `all`, or numbers and ranges in 0..{num_latents - 1} with commas, got {text!r}"
            )
        chosen += range(first, last + 1) if last < num_latents else [last]  # which the caller names
    return chosen


def write_pages(folder: Path, subject: Subject, latents: list[int], extras: Extras, *, progress: bool = False) -> Site:
    """Write everything to `folder`."""
    with Site(folder, site_facts(subject, extras)) as site:
        entries = list(write_latents(site, subject, latents, progress=progress))
        site.write_data("assets/latents.js", "LATENTS", entries)
        site.write_page("index.html", "index.html", overview=overview(subject, len(latents)))
        if extras.map_method != "none" or extras.runs:
            site.write_plotly()
        if extras.map_method != "none":
            write_map(site, subject, latents, extras.map_method, progress=progress)
        if extras.runs:
            write_training(site, extras.runs)
        if extras.results:
            paged = set(latents)
            views = [result_view(record, subject.names, paged) for record in extras.results]
            site.write_page("results.html", "results.html", results=views)
    return site


def site_facts(subject: Subject, extras: Extras) -> SiteFacts:
    """What stands at the top and bottom of every page."""
    manifest = subject.sae.manifest
    links = [Link("index.html", "Latents")]
    links += [Link("map.html", "Map")] if extras.map_method != "none" else []
    links += [Link("training.html", "Training")] if extras.runs else []
    links += [Link("results.html", "Searches")] if extras.results else []
    footer = f"Dictionary {manifest.sae_sha256} for {manifest.model_name} at {manifest.hook_point}."
    return SiteFacts(manifest.name, footer, links)


# --- latents --------------------------------------------------------------------------------------------------------


def write_latents(site: Site, subject: Subject, latents: list[int], *, progress: bool) -> Iterator[dict[str, Any]]:
    """Write each latent's page; yields its entry in the index."""
    paged, edges = set(latents), subject.store.histogram_edges
    near = neighbours(subject.sae, latents, _NEIGHBOURS) if latents else None
    for place, latent in enumerate(tqdm(latents, desc="pages", unit="page", mininterval=5, disable=not progress)):
        assert near is not None
        pairs = zip(near.latents_NN[place].tolist(), near.cosines_NN[place].tolist(), strict=True)
        record = subject.store.latent(latent)
        view = latent_view(
            record,
            subject.names,
            edges,
            neighbours=[neighbour_view(other, cosine, subject.names, other in paged) for other, cosine in pairs],
            before=latents[place - 1] if place else None,
            after=latents[place + 1] if place + 1 < len(latents) else None,
        )
        site.write_page(f"latents/{latent}.html", "latent.html", latent=view)
        yield index_entry(record, subject.names)


def neighbour_view(latent: int, cosine: float, names: LatentNames, linked: bool) -> NeighbourView:
    """A latent as one of another's neighbours."""
    name = names.of(latent)
    return NeighbourView(latent, name, "" if name else visible(names.example(latent)), cosine, linked)


def index_entry(record: LatentRecord, names: LatentNames) -> dict[str, Any]:
    """What the index shows of a latent, and the words by which it is found."""
    feature, explanation = names.features.get(record.latent), record.explanation
    runs = example_view(record.top[0], record.max).runs if record.top else []
    focused = {example.pieces[example.focus].strip() for example in record.top}
    about = [feature.description] if feature else []
    about += [explanation.summary or "", explanation.pattern or "", explanation.context or ""] if explanation else []
    return {
        "latent": record.latent,
        "name": feature.name if feature else "",
        "title": explanation.title if explanation else "",
        "about": " ".join(about),
        "density": float(f"{record.density:.4g}"),
        "max": round(record.max, 3),
        "score": explanation.detection if explanation else None,
        "tokens": " ".join(sorted(focused)),
        "example": [[run.text, run.level, run.is_focus] for run in runs],
        "more": "\n".join(visible(example.text) for example in record.top[1:3]),
    }


def overview(subject: Subject, num_pages: int) -> dict[str, Any]:
    """The top of the index."""
    manifest, store = subject.sae.manifest, subject.store
    sentence = (
        f"A sparse autoencoder of {manifest.num_latents:,} latents for the residual of {manifest.model_name} at "
        f"{manifest.hook_point}, and what each latent fires on in {store.num_tokens:,} tokens of text."
    )
    tiles = [
        ("latents", f"{manifest.num_latents:,}"),
        ("of them live", f"{store.num_live:,}"),
        ("with a page", f"{num_pages:,}"),
        ("explained", f"{len(store.explanations()):,}"),
        *_metrics(manifest),
    ]
    return {"sentence": sentence, "tiles": [{"name": name, "value": value} for name, value in tiles]}


def _metrics(manifest: Manifest) -> list[tuple[str, str]]:
    figures = manifest.metrics.get("all") or next(iter(manifest.metrics.values()), None)
    if not isinstance(figures, dict):
        return []
    # Evaluations that don't measure dense latents yet are of the time when the mean was the training data's.
    mean = "the mean of the text measured" if "dense_ratio" in figures else "the training data's mean"
    shown = [
        (f"variance explained, against {mean}", "variance_explained", "{:.3f}"),
        ("latents active at a token", "l0", "{:.1f}"),
    ]
    return [(name, form.format(figures[key])) for name, key, form in shown if isinstance(figures.get(key), float)]


# --- plots ----------------------------------------------------------------------------------------------------------


def write_map(site: Site, subject: Subject, latents: list[int], method: str, *, progress: bool) -> None:
    """All live latents on a plane."""
    records = subject.store.glances()
    live = [record.latent for record in records]
    places_N2 = decoder_map(subject.sae.W_dec[live], method, progress=progress)  # type: ignore[arg-type]
    num_tokens = max(subject.store.num_tokens, 1)
    data = {
        "latents": live,
        "names": [visible(subject.names.of(latent)) for latent in live],
        "texts": [visible(record.text) for record in records],
        "density": density_exponents([record.num_active / num_tokens for record in records]),
        "featured": [latent in subject.names.features for latent in live],
        "x": [round(float(x), 3) for x in places_N2[:, 0]],
        "y": [round(float(y), 3) for y in places_N2[:, 1]],
        "paged": sorted(latents),
    }
    site.write_data("assets/map-data.js", "MAP", data)
    site.write_page("map.html", "map.html", method=method.upper())


def write_training(site: Site, runs: list[TrainingRun]) -> None:
    """The curves of each run."""
    site.write_data(
        "assets/training-data.js",
        "TRAINING",
        [{"steps": run.steps, "curves": [curve._asdict() for curve in run.curves]} for run in runs],
    )
    views = [
        {
            "name": run.name,
            "number": number,
            "sentence": f"{len(run.steps):,} points up to step {run.steps[-1]:,}.",
            "curves": run.curves,
        }
        for number, run in enumerate(runs, start=1)
    ]
    site.write_page("training.html", "training.html", runs=views)


# --- the command ----------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Write pages about a dictionary's latents.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("--store", type=Path, help="example file; default examples.sqlite in the dictionary's folder")
    parser.add_argument("--output", type=Path, required=True, help="folder; pages in it are replaced")
    parser.add_argument("--latents", metavar="all|N,N-M,...", help="default: the named ones and --num-top")
    parser.add_argument("--num-top", type=int, default=200, help="so many best explained and largest ones, by default")
    parser.add_argument("--log", type=Path, action="append", default=[], help="a run's folder or log.csv; repeat")
    parser.add_argument("--results", type=Path, action="append", default=[], help="a search's JSON; repeat")
    parser.add_argument("--map", choices=[*METHODS, "none"], default="umap", help="umap takes minutes, pca a second")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a sentence")
    args = parser.parse_args(argv)
    if args.num_top < 0:
        raise PageError(f"--num-top must not be negative, got {args.num_top}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_site("--output", args.output)
    begun = time.monotonic()
    torch.manual_seed(0)
    sae = load_sae(args.dictionary)
    store = open_store(args.store, args.dictionary, sae.manifest)
    if store is None:
        raise PageError(f"pages need an example file: give --store, or put one into {args.dictionary}")
    with store:
        subject = Subject(sae, store, load_names(args.dictionary, sae.manifest, store))
        extras = Extras(list(map(read_log, args.log)), list(map(read_result, args.results)), args.map)
        latents = choose_latents(args.latents, subject, args.num_top, extras.results)
        site = write_pages(args.output, subject, latents, extras, progress=True)
    index = (args.output / "index.html").resolve()
    figures = {
        "index": str(index),
        "pages": len(latents),
        "bytes": site.num_bytes,
        "seconds": round(time.monotonic() - begun, 1),
    }
    if args.json:
        print(json.dumps(figures))
    else:
        size = f"{figures['pages']} latents, {site.num_bytes / 1e6:.1f} MB, {figures['seconds']} s"
        Console(soft_wrap=True).print(f"{size}: open {index.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
