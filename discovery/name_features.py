"""Makes the feature file of a dictionary, `features.json`, and beside it packs of the monitors asked for.

Without `--choices` it prints the best latents of each contrast with the texts they are largest on, to be looked at.
With it, the file is written: a choice is a name with its contrast, and optionally the latent and words for the page.
Without a latent the best one of the selection half that is active on at most 5 % of tokens is taken. Every figure is
measured anew.

    python -m discovery.name_features DICTIONARY --pool pool.jsonl --corpus corpus/*.jsonl.gz chat.jsonl \\
        --held-out runs/harvest/held-out --contrast lying=pairs.jsonl --choices choices.json --benign replies.jsonl

Shape suffixes: I items, N held-out tokens, D model width, F latents.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.command_parser import command_parser
from discovery.contrast_search import Candidate, SearchResult, auroc, search
from discovery.contrasts import CONTRASTS, Passage, read_pool
from discovery.input_arguments import add_dictionary_model_arguments, add_roles_argument, load_dictionary_model
from discovery.item_readings import ItemReadings, read_item_latents
from discovery.named_features import (
    HeldOutReadings,
    document_sources,
    evidence_of,
    read_held_out,
    reference_scale,
)
from discovery.output_places import check_output, made_for
from discovery.provenance import check_harvest
from discovery.quantile_monitor import monitor_of, wrong_firings
from discovery.quantile_threshold import read_replies
from discovery.residuals import tapped
from discovery.search_items import Item, make_item, read_items
from discovery.shards import load_manifest as load_harvest_manifest
from discovery.steering_bench import Bench
from discovery.steering_trial import try_steering
from monitors.pack import PACK_SUFFIX, MonitorPack
from monitors.watchlist import FEATURES_FILE, NamedFeature, Watchlist
from sae_runtime.checkpoint import LoadedSAE, load_manifest, load_sae
from sae_runtime.language_model import LanguageModel
from sae_runtime.tap import Tap
from sae_runtime.whole_files import whole_file

MAX_DENSITY = 0.05

_CANDIDATES = 12
_STEERING_PROMPT = "Tell me about your day."
_STEERING_MULTIPLES = (2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Lab:
    """What every measurement needs."""

    lm: LanguageModel
    tap: Tap
    sae: LoadedSAE


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out text as all candidates read it."""

    readings: HeldOutReadings
    sources: dict[int, str]
    lab: Lab
    results: dict[str, SearchResult]

    def decode(self, token_ids: list[int]) -> str:
        return str(self.lab.lm.tokenizer.decode(token_ids))

    def evidence(self, latent: int) -> dict[str, Any]:
        return evidence_of(self.readings, latent, self.sources, self.decode)


@dataclass(frozen=True, slots=True)
class ContrastReadings:
    """One contrast's items as they were read."""

    description: str
    scores_IF: Tensor
    labels_I: Tensor
    groups: list[str]

    def search(self, also: list[int]) -> SearchResult:
        """The best latents, and those of `also`."""
        return search(self.scores_IF, self.labels_I, self.groups, top=_CANDIDATES, also=also, num_permutations=20)


# --- contrasts ------------------------------------------------------------------------------------------------------


def say_left_out(name: str, readings: ItemReadings) -> None:
    """On stderr, what of the items was not read."""
    if readings.num_massive:
        print(f"{name}: {readings.left_out()}", file=sys.stderr)


def read_pool_contrasts(lab: Lab, pool: list[Passage]) -> dict[str, ContrastReadings]:
    """Read the pool once and lay it out for each contrast."""
    items = [
        make_item({"text": passage.text, "label": 0, "group": passage.group}, lab.lm.tokenizer, 256, passage.source)
        for passage in pool
    ]
    kept = [index for index, item in enumerate(items) if item.scored]
    readings = read_item_latents(lab.lm, lab.tap, lab.sae, [items[index] for index in kept], precision="medium")
    say_left_out("pool", readings)
    kept = [index for index, is_read in zip(kept, readings.is_read_I.tolist(), strict=True) if is_read]
    mean_IF = readings.mean_IF[readings.is_read_I]
    contrasts = {}
    for contrast in CONTRASTS:
        labels = [contrast.label(pool[index]) for index in kept]
        rows = [row for row, label in enumerate(labels) if label is not None]
        contrasts[contrast.name] = ContrastReadings(
            contrast.description,
            mean_IF[rows],
            torch.tensor([labels[row] for row in rows]),
            [items[kept[row]].group for row in rows],
        )
    return contrasts


def read_item_contrast(lab: Lab, items: list[Item], description: str) -> ContrastReadings:
    """A contrast whose items come from labelled files."""
    readings = read_item_latents(lab.lm, lab.tap, lab.sae, items, precision="medium")
    say_left_out(description, readings)
    readings, items = readings.of_read(items)
    # Groups of different files must not be taken for one.
    groups = [f"{item.name.rsplit('-', 1)[0]}/{item.group}" for item in items]
    return ContrastReadings(description, readings.mean_IF, torch.tensor([item.label for item in items]), groups)


def read_contrasts(lab: Lab, args: argparse.Namespace) -> dict[str, ContrastReadings]:
    """All contrasts, from `args.cache` if it is there: looking and building read the same."""
    binding = lab.sae.manifest.sae_sha256
    if args.cache and args.cache.exists():
        cached = torch.load(args.cache, weights_only=True)
        if cached["sae_sha256"] != binding:
            raise ValueError(f"{args.cache} holds readings of another dictionary")
        return {name: ContrastReadings(*parts) for name, parts in cached["contrasts"].items()}
    contrasts = read_pool_contrasts(lab, read_pool(args.pool))
    for text in args.contrast:
        name, _, files = text.partition("=")
        items = list(read_items([Path(file) for file in files.split(",")], lab.lm.tokenizer))
        contrasts[name] = read_item_contrast(lab, items, name)
    if args.cache:
        parts = {name: (c.description, c.scores_IF, c.labels_I, c.groups) for name, c in contrasts.items()}
        with whole_file(made_for(args.cache)) as partial:
            torch.save({"sae_sha256": binding, "contrasts": parts}, partial)
    return contrasts


def chosen_latents(choices: dict[str, Any], contrast: str) -> list[int]:
    """Latents that choices name for a contrast."""
    features = choices["features"].values()
    return [choice["latent"] for choice in features if choice["contrast"] == contrast and "latent" in choice]


def choose(result: SearchResult, readings: HeldOutReadings, latent: int | None) -> Candidate:
    """The candidate asked for, else the best one on the selection half that is not dense."""
    if latent is not None:
        return next(candidate for candidate in result.candidates if candidate.latent == latent)
    sparse = [c for c in result.candidates if float((readings.column(c.latent) > 0).float().mean()) <= MAX_DENSITY]
    return max(sparse or result.candidates, key=lambda candidate: candidate.auroc_selection)


# --- features and monitors ------------------------------------------------------------------------------------------


def steering_evidence(lab: Lab, latent: int, scale: float) -> list[dict[str, Any]]:
    """Continuations at a few multiples of the reference scale."""
    bench = Bench.of(lab.lm, lab.tap, lab.sae)
    return [asdict(try_steering(bench, latent, multiple * scale, _STEERING_PROMPT)) for multiple in _STEERING_MULTIPLES]


def transfer(latent: int, contrasts: dict[str, ContrastReadings], names: list[str]) -> dict[str, Any]:
    """AUROC of a latent on contrasts it was not chosen on."""
    return {
        name: {
            "auroc": round(float(auroc(contrast.scores_IF[:, [latent]], contrast.labels_I[None])), 4),
            "num_positive": int(contrast.labels_I.sum()),
            "num_negative": int((1 - contrast.labels_I).sum()),
        }
        for name, contrast in ((name, contrasts[name]) for name in names)
    }


def feature_of(
    name: str, choice: dict[str, Any], contrasts: dict[str, ContrastReadings], held_out: HeldOut
) -> NamedFeature:
    """A named feature with all of its evidence."""
    contrast, result = contrasts[choice["contrast"]], held_out.results[choice["contrast"]]
    candidate = choose(result, held_out.readings, choice.get("latent"))
    scale = round(reference_scale(held_out.readings.column(candidate.latent)), 4)
    evidence = {
        "method": choice.get("method", "contrast of each text's mean reading; chosen on half of the groups"),
        "contrast": choice["contrast"],
        "num_positive": result.num_positive,
        "num_negative": result.num_negative,
        "num_held_out": result.num_held_out,
        "auroc_selection": candidate.auroc_selection,
        "auroc_heldout": candidate.auroc_held_out,
        "permuted_best_auroc_heldout": max(result.permuted_best_held_out, default=None),
        "mean_positive": candidate.mean_positive,
        "mean_negative": candidate.mean_negative,
        **held_out.evidence(candidate.latent),
        "transfer": transfer(candidate.latent, contrasts, choice.get("transfer", [])),
        "fires_wrongly_on": choice.get("fires_wrongly_on", []),
        "steering": steering_evidence(held_out.lab, candidate.latent, scale),
    }
    return NamedFeature(
        index=candidate.latent,
        name=name,
        description=choice.get("description", contrast.description),
        reference_scale=scale,
        validated=False,
        default_watched=True,
        evidence=evidence,
    )


# --- the command ----------------------------------------------------------------------------------------------------


def print_candidates(results: dict[str, SearchResult], held_out: HeldOut) -> None:
    """For a person who is to choose."""
    for name, result in results.items():
        luck = max(result.permuted_best_held_out, default=float("nan"))
        print(f"\n## {name}: {result.num_positive} positive, {result.num_negative} negative; luck {luck:.2f}")
        for candidate in result.candidates[:6]:
            evidence = held_out.evidence(candidate.latent)
            print(
                f"  {candidate.latent}: AUROC {candidate.auroc_selection:.3f} held out {candidate.auroc_held_out:.3f} "
                f"density {evidence['density']:.4f} mean {candidate.mean_positive:.2f}/{candidate.mean_negative:.2f} "
                f"{evidence['top_200_by_source']}"
            )
            for hit in evidence["fires_on"][:4]:
                print(f"      {hit['value']:6.2f} {hit['source']}: {hit['text']}")


def build(
    lab: Lab, choices: dict[str, Any], contrasts: dict[str, ContrastReadings], held_out: HeldOut, args: Any
) -> tuple[Watchlist, list[MonitorPack]]:
    """All chosen features, and the monitors asked for."""
    features = []
    for name, choice in tqdm(choices["features"].items(), desc="features", unit="feature"):
        features.append(feature_of(name, choice, contrasts, held_out))
    by_name = {feature.name: feature for feature in features}
    watched = [by_name[name] for name in choices["monitors"]]
    indices = [feature.index for feature in watched]
    replies = read_replies(lab.lm, lab.tap, lab.sae, list(read_items(args.benign, lab.lm.tokenizer)), indices)
    hard = read_replies(lab.lm, lab.tap, lab.sae, list(read_items(args.hard_negative, lab.lm.tokenizer)), indices)
    monitors = []
    for column, feature in enumerate(watched):
        monitors.append(
            monitor_of(feature, replies, column, lab.sae.manifest, choices["benign_sources"], roles=args.roles)
        )
        if hard:
            level = monitors[-1].spec().thresholds.levels.warning
            assert level is not None
            wrong = wrong_firings(hard, level.offset, column, feature.reference_scale)
            feature.evidence["hard_negative_replies"] = wrong  # type: ignore[index]
    return Watchlist(lab.sae.manifest.sae_sha256, tuple(features)), monitors


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Find latents for names, and write the feature file.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("--pool", type=Path, required=True, help="what discovery.contrasts wrote")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="files behind the held-out harvests")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="harvest folders")
    parser.add_argument("--contrast", action="append", default=[], help="NAME=FILE[,FILE...] of labelled items; repeat")
    parser.add_argument("--choices", type=Path, help="write the feature file from these choices")
    parser.add_argument("--benign", type=Path, nargs="*", default=[], help="replies to set thresholds by")
    parser.add_argument("--hard-negative", type=Path, nargs="*", default=[], help="replies to test wrong alarms on")
    add_roles_argument(parser, ("assistant",), "whose words a server scores with the monitors; default: assistant")
    parser.add_argument("--cache", type=Path, help="file to keep the contrasts' readings in")
    parser.add_argument(
        "--output", type=Path, help=f"default {FEATURES_FILE} beside the dictionary; packs go there too"
    )
    add_dictionary_model_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_output("--cache", args.cache)
    check_output("--output", (args.output or args.dictionary / FEATURES_FILE) if args.choices else None)
    manifest = load_manifest(args.dictionary)
    for folder in () if args.unverified else args.held_out:
        check_harvest(manifest, load_harvest_manifest(folder)["settings"], folder)
    lm = load_dictionary_model(args, manifest)
    sae = load_sae(args.dictionary, device=lm.device)
    with tapped(lm, sae.manifest.hook) as tap:
        name_features(Lab(lm, tap, sae), args)
    return 0


def name_features(lab: Lab, args: argparse.Namespace) -> None:
    """Print candidates, or with `--choices` write the feature file."""
    sae, contrasts = lab.sae, read_contrasts(lab, args)
    choices = json.loads(args.choices.read_text()) if args.choices else {"features": {}}
    results = {name: contrast.search(chosen_latents(choices, name)) for name, contrast in contrasts.items()}
    latents = sorted({candidate.latent for result in results.values() for candidate in result.candidates})
    readings = read_held_out(sae, args.held_out, latents)
    held_out = HeldOut(readings, document_sources(args.corpus), lab, results)
    if args.choices is None:
        print_candidates(results, held_out)
        return
    watchlist, packs = build(lab, choices, contrasts, held_out, args)
    watchlist.check_binding(sae.manifest.sae_sha256, sae.num_latents)
    output = args.output or args.dictionary / FEATURES_FILE
    watchlist.save(made_for(output))
    for pack in packs:
        pack.save(output.with_name(pack.name + PACK_SUFFIX))
    print(json.dumps({"features": len(watchlist.features), "monitors": len(packs)}))


if __name__ == "__main__":
    sys.exit(main())
