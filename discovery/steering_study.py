"""What does steering along a feature do to what the model writes, and from which strength does it break the model?

    telltale lab steer DICTIONARY medical                             0.5 to 30 times its reference scale, added
    telltale lab steer DICTIONARY medical --op set --unit maximum --strengths 1,5,10       clamped to its maximum
    telltale lab steer DICTIONARY medical --op scale --strengths 0,30                      a factor on its own reading
    telltale lab steer DICTIONARY direction.npy --unit relative --strengths 0.1,0.3,1      any vector, by share of ||h||
    telltale lab steer DICTIONARY 457 --store examples.sqlite         any latent, with the scale of its readings there

Every prompt is continued greedily and once per seed, without steering and at each strength, by the operations of the
server (`sae_runtime.steering`). For each continuation: its text, its perplexity under the unsteered model
and under the steered one, repetition, the feature's readings before and after steering, and in the finished text as
the unsteered model reads it (`discovery.continuation_figures`). What counts as broken and as working is stated in
`discovery.steering_summary`, and printed.

`--output` keeps every result as it comes, and a run that was killed goes on from there. `--page` writes a page.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from discovery.command_parser import command_parser
from discovery.continuation_figures import distinct, repetition, reread
from discovery.errors import SteerError
from discovery.input_arguments import add_dictionary_model_arguments
from discovery.latent_names import STORE_FILE, load_watchlist, open_known
from discovery.logit_effects import promoted_tokens
from discovery.output_places import check_output
from discovery.page_site import check_site
from discovery.reading_scale import ReadingScale
from discovery.result_lines import ResultLines, claimed
from discovery.steered_generation import Continuation, Row, continue_prompt
from discovery.steering_bench import MAX_RELATIVE_NORM, Bench, open_bench
from discovery.steering_summary import Criterion, Point, summarize
from discovery.steering_table import print_study
from discovery.steering_target import OPS, UNITS, Grid, Target, Unit, find_target, parse_strengths, spec_of, with_scale
from discovery.tables import table_console
from discovery.token_text import pieces_of, token_bytes
from monitors.latent_catalogue import CATALOGUE_FILE
from monitors.watchlist import FEATURES_FILE, Watchlist
from sae_runtime.checkpoint import Manifest, load_manifest
from sae_runtime.steering_spec import PositionScope, SteeringOp, SteeringSpec

PROMPTS = ("I am a", "The weather today", "My favourite thing is")
CHATS = ("Tell me about your day.",)
STRENGTHS = "0.5,1,2,4,8,16,30"
_NUM_PROMOTED = 30

_LIMITS = {
    "max_perplexity_ratio": "broken above: perplexity, as a multiple of the unsteered one's",
    "max_added_repetition": "broken above: repetition beyond the unsteered one's",
    "min_expression": "a text expresses the feature from this share of its reference scale on",
    "min_share": "works from: share of texts that express it",
    "min_gain": "works from: the same beyond the unsteered texts' share",
}


@dataclass(frozen=True, slots=True)
class Decoding:
    """How each prompt is continued."""

    max_tokens: int
    num_seeds: int
    """Sampled continuations of each prompt and strength, with seeds 0, 1, ..."""
    is_greedy: bool
    """Whether there is a greedy one too."""
    temperature: float

    def __post_init__(self) -> None:
        if self.num_seeds < 0 or not (self.num_seeds or self.is_greedy):
            raise SteerError(f"seeds must be at least 1, or 0 with a greedy continuation, got {self.num_seeds}")

    @property
    def seeds(self) -> list[int | None]:
        """None is greedy."""
        return [*([None] if self.is_greedy else []), *range(self.num_seeds)]


class Prompt(NamedTuple):
    """What is continued."""

    text: str
    is_chat: bool
    """Whether it is what a user says, the reply being the continuation."""

    def ids(self, bench: Bench) -> list[int]:
        return bench.chat_ids(self.text) if self.is_chat else bench.text_ids(self.text)


@dataclass(frozen=True, slots=True)
class Study:
    """All that a study is made of."""

    target: Target
    grid: Grid
    prompts: tuple[Prompt, ...]
    decoding: Decoding

    def specs(self, bench: Bench) -> dict[float, SteeringSpec]:
        """The operation at each strength; 0 added is not steered. SteeringError, SteerError for what is refused."""
        wanted = {strength: spec_of(self.target, self.grid, strength) for strength in self.grid.strengths}
        for spec in wanted.values():
            bench.limits.check(spec)
        if self.grid.op is SteeringOp.ADD:
            wanted.pop(0.0, None)
        if not wanted:
            raise SteerError("strengths must hold one besides 0, got none")
        return wanted

    def settings(self, bench: Bench, sae_sha256: str) -> dict[str, Any]:
        """What makes two studies the same."""
        direction = self.target.direction
        return {
            "study": "steering",
            "sae_sha256": sae_sha256,
            "model": asdict(bench.lm.identity),
            "hook_point": str(bench.tap.hook_point),
            "max_relative_norm": bench.limits.max_relative_norm,
            "target": self.target._asdict() | {"direction": direction if isinstance(direction, int) else "vector"},
            "vector": None if isinstance(direction, int) else list(direction),
            "grid": self.grid._asdict(),
            "prompts": [prompt._asdict() for prompt in self.prompts],
            "decoding": asdict(self.decoding),
        }


def run_study(bench: Bench, study: Study, results: ResultLines, *, progress: bool = False) -> None:
    """Continue what `results` does not hold yet: one line per prompt."""
    specs = study.specs(bench)
    direction = study.target.direction
    vector_D = torch.tensor(direction) if not isinstance(direction, int) else bench.sae.W_dec[direction]
    promoted = set(promoted_tokens(bench.lm, vector_D, _NUM_PROMOTED))
    done = {line["prompt"] for line in results.lines}
    remaining = [number for number in range(len(study.prompts)) if number not in done]
    for number in tqdm(remaining, desc="steering", unit="prompt", disable=not progress):
        results.append({"prompt": number, "continuations": continue_one(bench, study, number, specs, promoted)})


def continue_one(
    bench: Bench, study: Study, number: int, specs: dict[float, SteeringSpec], promoted: set[int]
) -> list[dict[str, Any]]:
    """All continuations of one prompt, the unsteered ones first."""
    prompt_ids, decoding = study.prompts[number].ids(bench), study.decoding
    strengths: list[float | None] = [None, *specs]
    wanted = [(strength, seed) for strength in strengths for seed in decoding.seeds]
    rows = [Row(() if strength is None else (specs[strength],), seed) for strength, seed in wanted]

    def read(resid_TD: torch.Tensor) -> torch.Tensor:
        return study.target.read(bench.sae, resid_TD)

    written = continue_prompt(
        bench, prompt_ids, rows, max_tokens=decoding.max_tokens, read=read, temperature=decoding.temperature
    )
    again = reread(bench, prompt_ids, [continuation.ids for continuation in written], read)
    records = []
    for (strength, seed), continuation, text in zip(wanted, written, again, strict=True):
        record = {"prompt": number, "strength": strength, "seed": seed, **as_record(bench, continuation, prompt_ids)}
        record |= {"perplexity": text.perplexity, "reread": _rounded(text.readings)}
        num_promoted = sum(token in promoted for token in continuation.ids)
        records.append(record | {"promoted_ratio": num_promoted / max(len(continuation.ids), 1)})
    return records


def as_record(bench: Bench, continuation: Continuation, prompt_ids: list[int]) -> dict[str, Any]:
    """A continuation as the results file has it; readings of generated positions only."""
    ids, start = continuation.ids, len(prompt_ids)
    report, bytes_of = continuation.report, token_bytes(bench.lm.tokenizer, set(ids))
    steered_perplexity = torch.tensor(continuation.logprobs).mean().neg().exp()
    return {
        "text": bench.lm.tokenizer.decode(ids),
        "ids": ids,
        "pieces": list(pieces_of([bytes_of[token] for token in ids])),
        "is_ended": continuation.is_ended,
        "steered_perplexity": float(steered_perplexity) if ids else None,
        "distinct_1": distinct(ids, 1),
        "distinct_2": distinct(ids, 2),
        "repetition": repetition(ids),
        "readings": _rounded(continuation.readings[start:]),
        "steered_readings": _rounded(continuation.steered_readings[start:]),
        "steering": {"positions": len(continuation.readings), **report._asdict()},
    }


def _rounded(readings: Sequence[float]) -> list[float]:
    return [round(reading, 4) for reading in readings]


# --- the command ----------------------------------------------------------------------------------------------------


def study_of(args: argparse.Namespace, bench: Bench, manifest: Manifest, watchlist: Watchlist | None) -> Study:
    """The study that the command line asks for."""
    target = find_target(args.feature, bench.sae, watchlist)
    if args.reference_scale is not None:
        target = target._replace(reference_scale=args.reference_scale)
    if args.maximum is not None:
        target = target._replace(maximum=args.maximum)
    if isinstance(target.direction, int):
        target = with_scale(target, known_scale(args, manifest, target.direction))
    op = SteeringOp(args.op)
    unit: Unit = args.unit or ("raw" if op is SteeringOp.SCALE else "reference")
    texts = [Prompt(text, is_chat=False) for text in args.prompt]
    chats = [Prompt(text, is_chat=True) for text in args.chat]
    defaults = [*(Prompt(text, False) for text in PROMPTS), *(Prompt(text, True) for text in CHATS)]
    return Study(
        target,
        Grid(op, unit, parse_strengths(args.strengths), PositionScope(args.scope), args.first_position),
        tuple([*texts, *chats] or defaults),
        Decoding(args.tokens, args.seeds, not args.no_greedy, args.temperature),
    )


def known_scale(args: argparse.Namespace, manifest: Manifest, latent: int) -> ReadingScale | None:
    """How large the latent's readings are by `--store`, or what lies beside the dictionary, if there is any."""
    known = open_known(args.store, args.dictionary, manifest)
    if known is None:
        return None
    with known:
        return known.scale(latent)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Steer along a feature at a grid of strengths, and measure the texts.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("feature", help="a feature's name, a latent's index, or a file with a vector")
    parser.add_argument("--features", type=Path, help=f"feature file; default {FEATURES_FILE} in the folder")
    parser.add_argument(
        "--op", choices=[str(op) for op in OPS], default="add", help="set: clamp the reading; scale: a factor on it"
    )
    parser.add_argument("--unit", choices=UNITS, help="of the strengths; default reference, raw for scale")
    parser.add_argument("--strengths", default=STRENGTHS, metavar="X,X,...", help=f"default {STRENGTHS}")
    parser.add_argument(
        "--scope", choices=[str(scope) for scope in PositionScope], default="all", help="positions that are steered"
    )
    parser.add_argument("--first-position", action="store_true", help="steer position 0 too, which few models survive")
    parser.add_argument("--reference-scale", type=float, help="default: the feature file's, else by --store")
    parser.add_argument("--maximum", type=float, help="largest reading; default: the same")
    parser.add_argument(
        "--store",
        type=Path,
        help=f"example file; default {STORE_FILE} in the dictionary's folder, else its {CATALOGUE_FILE}",
    )
    parser.add_argument("--max-relative-norm", type=float, default=MAX_RELATIVE_NORM, help="cap, as the server's")
    parser.add_argument("--prompt", action="append", default=[], help="text to continue; repeat")
    parser.add_argument("--chat", action="append", default=[], help="what a user says; repeat")
    parser.add_argument("--tokens", type=int, default=40, help="of each continuation")
    parser.add_argument("--seeds", type=int, default=2, help="sampled continuations of each prompt")
    parser.add_argument("--no-greedy", action="store_true", help="sampled continuations alone")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the sampled ones")
    limits = parser.add_argument_group("what counts as broken, and as working")
    for name, value in Criterion()._asdict().items():
        limits.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=_LIMITS[name])
    add_dictionary_model_arguments(parser)
    parser.add_argument("--output", type=Path, help="results as JSON lines; continued if it exists")
    parser.add_argument("--page", type=Path, help="folder for a page; a page in it is replaced")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_output("--output", args.output)
    check_site("--page", args.page)
    manifest = load_manifest(args.dictionary)
    watchlist = load_watchlist(args.dictionary, manifest, args.features)
    with open_bench(args, max_relative_norm=args.max_relative_norm) as bench:
        study = study_of(args, bench, manifest, watchlist)
        # What is refused is refused before a file is made.
        study.specs(bench)
        with claimed(args.output):
            results = ResultLines(args.output, study.settings(bench, manifest.sae_sha256))
            run_study(bench, study, results, progress=True)
    criterion = Criterion(**{name: getattr(args, name) for name in Criterion._fields})
    continuations = [record for line in results.lines for record in line["continuations"]]
    points = summarize(continuations, study.target.reference_scale, criterion)
    # Before the page: what took so long must not go with one that can't be written.
    if args.json:
        print(json.dumps(report(results.settings, points, criterion, continuations)), flush=True)
    else:
        print_study(table_console(), results.settings, continuations, points, criterion)
    if args.page:
        from discovery.steering_page import write_page  # late: plotly

        write_page(args.page, results.settings, continuations, points, criterion)
        if not args.json:
            print(f"page: {(args.page / 'index.html').resolve().as_uri()}")
    return 0


def report(
    settings: dict[str, Any], points: list[Point], criterion: Criterion, continuations: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        **settings,
        "criterion": criterion._asdict(),
        "points": [point._asdict() for point in points],
        "continuations": continuations,
    }


if __name__ == "__main__":
    sys.exit(main())
