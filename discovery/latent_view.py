"""One latent of an example file, in the terminal: figures, examples with coloured tokens, what it promotes.

telltale lab latent examples.sqlite 2242
telltale lab latent examples.sqlite 2242 --json
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.text import Text

from discovery.command_parser import command_parser
from discovery.example_store import ExampleStore
from discovery.latent_record import Example, Explanation, LatentRecord, TokenEffect
from discovery.reading_scale import ReadingScale
from discovery.tables import table_console
from discovery.token_text import printable


def as_json(record: LatentRecord, scale: ReadingScale | None) -> dict[str, Any]:
    """All of a record, with the names of its fields."""
    fields = record._asdict() | {"density": record.density, "reference_scale": scale.reference if scale else None}
    fields["top"] = [_example(example) for example in record.top]
    fields["quantiles"] = [[_example(example) for example in bin_] for bin_ in record.quantiles]
    for name in ("promoted", "suppressed"):
        fields[name] = [effect._asdict() for effect in fields[name]]
    fields["explanation"] = record.explanation._asdict() if record.explanation else None
    return fields


def _example(example: Example) -> dict[str, Any]:
    return example._asdict() | {"text": example.text}


def lines(
    record: LatentRecord, scale: ReadingScale | None, num_top: int, *, with_marks: bool = False
) -> Iterator[Text]:
    """For a person. `with_marks` where there are no colours: the token that was read is between » and «."""
    explanation = record.explanation
    yield Text(f"latent {record.latent}" + (f": {printable(explanation.title)}" if explanation else ""), "bold")
    if explanation and explanation.summary:
        yield Text(printable(explanation.summary))
    if explanation:
        yield Text(_scores(explanation), "dim")
    yield Text(
        f"active at {record.num_active:,} of {record.num_tokens:,} tokens ({record.density:.3%}), "
        f"mean {record.mean_active:.3f}, max {record.max:.3f}"
        + (f", 99.9th percentile about {scale.reference:.3g}" if scale else "")
    )
    if record.sources:
        yield Text("in " + ", ".join(f"{name} {share:.0%}" for name, share in record.sources.items()))
    for name, effects in (("promotes", record.promoted), ("suppresses", record.suppressed)):
        yield Text(f"{name} ", "bold").append(_tokens(effects), "not bold")
    yield from _section("largest readings", record.top[:num_top], record.max, with_marks)
    for number, examples in reversed(list(enumerate(record.quantiles, start=1))):
        yield from _section(f"random, bin {number} of {len(record.quantiles)}", examples[:2], record.max, with_marks)


def _scores(explanation: Explanation) -> str:
    """How far the title holds on windows that its author did not see."""
    parts = (
        ("detection", explanation.detection, explanation.detection_n),
        ("fuzzing", explanation.fuzzing, explanation.fuzzing_n),
    )
    said = [f"{name} {value:.2f} (n = {num})" for name, value, num in parts if value is not None]
    return f"by {explanation.model}; " + (", ".join(said) + "; chance is 0.50" if said else "not scored")


def _tokens(effects: tuple[TokenEffect, ...]) -> str:
    return ", ".join(f"{printable(effect.text)!r} {effect.logit:+.2f}" for effect in effects)


def _section(title: str, examples: tuple[Example, ...], scale: float, with_marks: bool) -> Iterator[Text]:
    if examples:
        yield Text(f"\n{title}", "bold")
    for example in examples:
        line = Text(f"{example.value:8.3f}  ")
        for index, (piece, reading) in enumerate(zip(example.pieces, example.readings, strict=True)):
            style = _colour(reading / scale if scale > 0 else 0)
            is_read = index == example.focus
            text = f"»{printable(piece)}«" if is_read and with_marks else printable(piece)
            line.append(text, f"{style} underline" if is_read else style)
        yield line.append(f"  {example.source}", "dim")


def _colour(share: float) -> str:
    """Background between white and orange; none where the latent is all but silent."""
    if share < 0.02:
        return ""
    share = min(share, 1.0)
    return f"black on #{255:02x}{int(235 - 110 * share):02x}{int(200 - 190 * share):02x}"


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("Show one latent of an example file.")
    parser.add_argument("store", type=Path, help="what `telltale lab examples` wrote")
    parser.add_argument("latent", type=int, help="its index")
    parser.add_argument("--top", type=int, default=10, help="largest readings to show")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON line")
    args = parser.parse_args(argv)
    with ExampleStore.open(args.store) as store:
        record, scale = store.latent(args.latent), store.scale(args.latent)
    if args.json:
        print(json.dumps(as_json(record, scale)))
    else:
        console, is_terminal = table_console(highlight=False), sys.stdout.isatty()
        for line in lines(record, scale, args.top, with_marks=not is_terminal):
            console.print(line, soft_wrap=not is_terminal)
    return 0


if __name__ == "__main__":
    sys.exit(main())
