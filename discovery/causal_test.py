"""Do named features do what their names say? Each is taken out, and pinned, beside controls, with intervals.

    telltale lab causal DICTIONARY --pool pool.jsonl --contrast lying_instructed=pairs.jsonl --output causal.jsonl
    telltale lab causal DICTIONARY --pool pool.jsonl --feature medical --write

The texts for and against a feature are those of the contrast that its evidence names. A feature *passes* if

    ablation   taking it out where it is active on texts of its topic raises the cross-entropy of what follows:
               the interval lies above 0, and the mean above the 95th percentile of controls that take another latent
               out at the same positions, of similar size and rarity;
               and the tokens typical of the topic lose probability: the interval of that lies above 0
    pinning    holding it at a share of the residual's norm raises the likelihood of texts of its topic against others
               behind a neutral opening: the interval of the difference lies above 0, and the difference above the 95th
               percentile of random latents held at the same share

and both hold (`discovery.causal_ablation`, `discovery.causal_pinning`; intervals over whole documents,
`discovery.group_bootstrap`). The rules were fixed before the features were measured, but for what counts
as a token typical of a topic: docs/steering.md. A feature that fails may still *read* its topic well: the test asks
whether the model makes use of the direction, not whether it is a good detector.

Results come line by line into `--output`, and a run that was killed goes on. `--write` puts each record into the
feature file's evidence under `causal`, and changes nothing else.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from discovery.causal_record import causal_table
from discovery.causal_run import CausalSettings, Subject, contrast_name, records_of, run
from discovery.causal_texts import choose, file_contrast, pool_contrasts
from discovery.command_parser import command_parser
from discovery.contrasts import CONTRASTS, read_pool
from discovery.errors import SteerError
from discovery.input_arguments import add_dictionary_model_arguments
from discovery.output_places import check_output
from discovery.result_lines import ResultLines, claimed
from discovery.steering_bench import Bench, open_bench
from discovery.tables import table_console
from monitors.watchlist import FEATURES_FILE, Watchlist
from sae_runtime.checkpoint import load_manifest


def subject_of(args: argparse.Namespace, watchlist: Watchlist, tokenizer: Any, settings: CausalSettings) -> Subject:
    """The features asked for, and their texts. SteerError for an unknown feature or a contrast without texts."""
    features = list(watchlist.features)
    if args.feature:
        unknown = [name for name in args.feature if name not in watchlist.by_name]
        if unknown:
            raise SteerError(f"feature must be one of {', '.join(sorted(watchlist.by_name))}, got {unknown[0]!r}")
        features = [watchlist.by_name[name] for name in args.feature]
    wanted = dict.fromkeys(map(contrast_name, features))
    known = {contrast.name for contrast in CONTRASTS}
    found = {}
    if args.pool:
        found = pool_contrasts(read_pool(args.pool), [name for name in wanted if name in known], tokenizer, args.tokens)
    for text in args.contrast:
        name, equals, files = text.partition("=")
        if not equals:
            raise SteerError(f"--contrast must be NAME=FILE[,FILE...], got {text!r}")
        found[name] = file_contrast([Path(file) for file in files.split(",")], tokenizer, args.item_tokens)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SteerError(
            f"contrast {missing[0]} must be in --pool or given by --contrast {missing[0]}=FILE, got neither"
        )
    return Subject(features, {name: choose(found[name], settings.num_texts, name) for name in wanted})


def run_settings(bench: Bench, subject: Subject, settings: CausalSettings, sae_sha256: str) -> dict[str, Any]:
    """What makes two runs the same."""
    texts = {
        name: [[text._asdict() for text in side] for side in contrast] for name, contrast in subject.contrasts.items()
    }
    return {
        "test": "causal",
        "equal_prefixes": "of the first text",
        "sae_sha256": sae_sha256,
        "model": asdict(bench.lm.identity),
        "hook_point": str(bench.tap.hook_point),
        "max_relative_norm": bench.limits.max_relative_norm,
        "features": [
            {"name": feature.name, "index": feature.index, "contrast": contrast_name(feature)}
            for feature in subject.features
        ],
        "settings": asdict(settings),
        "texts_sha256": sha256(json.dumps(texts).encode()).hexdigest(),
    }


def write_evidence(path: Path, records: dict[str, Any]) -> None:
    """Put each record into its feature's evidence; all else stays."""
    watchlist = Watchlist.load(path)
    features = tuple(
        replace(feature, evidence={**feature.evidence, "causal": records[feature.name]})
        if feature.name in records
        else feature
        for feature in watchlist.features
    )
    replace(watchlist, features=features).save(path)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("Test whether named features do what their names say.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("--features", type=Path, help=f"feature file; default {FEATURES_FILE} in the folder")
    parser.add_argument(
        "--feature", action="append", default=[], metavar="NAME", help="one of them; repeat; default all"
    )
    parser.add_argument("--pool", type=Path, help="what `telltale lab contrasts` wrote")
    parser.add_argument("--contrast", action="append", default=[], help="NAME=FILE[,FILE...] of labelled items; repeat")
    parser.add_argument("--item-tokens", type=int, default=192, help="of each labelled item, instructions included")
    defaults = CausalSettings()
    parser.add_argument("--texts", type=int, default=defaults.num_texts, help="of each side of a contrast to read")
    parser.add_argument("--ablated", type=int, default=defaults.num_ablated, help="of them to take the latent out of")
    parser.add_argument("--pinned", type=int, default=defaults.num_pinned, help="of them to pin the latent on")
    parser.add_argument("--tokens", type=int, default=defaults.max_tokens, help="of each text")
    parser.add_argument("--pinned-tokens", type=int, default=defaults.pinned_tokens, help="of each text, to pin on")
    parser.add_argument("--controls", type=int, default=defaults.num_controls, help="other latents, for comparison")
    parser.add_argument("--pin", type=float, default=defaults.pin, help="share of the residual's norm")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of texts and controls")
    add_dictionary_model_arguments(parser)
    parser.add_argument("--output", type=Path, help="results as JSON lines; continued if it exists")
    parser.add_argument("--write", action="store_true", help="put the results into the feature file's evidence")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    settings = CausalSettings(
        num_texts=args.texts,
        num_ablated=args.ablated,
        num_pinned=args.pinned,
        max_tokens=args.tokens,
        pinned_tokens=args.pinned_tokens,
        num_controls=args.controls,
        pin=args.pin,
        seed=args.seed,
    )
    path = args.features or args.dictionary / FEATURES_FILE
    check_output("--output", args.output)
    check_output("--write", path if args.write else None)
    manifest, watchlist = load_manifest(args.dictionary), Watchlist.load(path)
    watchlist.check_binding(manifest.sae_sha256, manifest.num_latents)
    with open_bench(args) as bench:
        subject = subject_of(args, watchlist, bench.lm.tokenizer, settings)
        with claimed(args.output):
            results = ResultLines(args.output, run_settings(bench, subject, settings, manifest.sae_sha256))
            run(bench, subject, settings, results, progress=True)
        records = records_of(subject, settings, results, bench)
    if args.write:
        write_evidence(path, records)
    if args.json:
        print(json.dumps({**results.settings, "records": records}))
    else:
        table_console().print(causal_table(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
