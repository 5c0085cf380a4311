"""What `telltale lab search --json` printed, as tables for a page."""

import json
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from discovery.errors import PageError
from discovery.latent_names import LatentNames
from discovery.page_views import level_of, visible


class Cell(NamedTuple):
    """One figure or text."""

    text: str
    is_number: bool


class Column(NamedTuple):
    """A heading."""

    name: str
    is_number: bool


class Row(NamedTuple):
    """One latent that was found."""

    latent: int
    name: str
    linked: bool
    cells: list[Cell]


class TokenView(NamedTuple):
    """One token of a sentence."""

    text: str
    level: int
    label: str


class ResultView(NamedTuple):
    """One search."""

    title: str
    sentence: str
    columns: list[Column]
    rows: list[Row]
    note: str = ""
    tokens: Sequence[TokenView] = ()


_COLUMNS = {
    "auroc_selection": "AUROC",
    "p_value": "p",
    "auroc_held_out": "held out",
    "p_held_out": "p held out",
    "difference": "d",
    "mean_positive": "mean +",
    "mean_negative": "mean -",
    "share_positive": "on +",
    "share_negative": "on -",
    "top_slice_positive": "top 10 % +",
    "cosine": "cosine",
    "max": "max",
    "share": "of its max",
    "mean": "mean",
    "num_active": "tokens",
    "where": "found in",
    "text": "text",
    "example": "largest reading",
}

_IN_WORDS = ("where", "text", "example")


def read_result(path: Path) -> dict[str, Any]:
    """The last line of a file as one search's JSON; PageError if it is none."""
    try:
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        record = json.loads(lines[-1]) if lines else None
    except (OSError, ValueError) as error:
        raise PageError(f"search result {path} can't be read: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("candidates", record.get("latents")), list):
        raise PageError(f"search result {path} must be what `telltale lab search --json` prints, got something else")
    return record


def found_latents(record: dict[str, Any]) -> list[int]:
    """The latents a search found, best first."""
    return [int(row["latent"]) for row in record.get("candidates", record.get("latents", []))]


def result_view(record: dict[str, Any], names: LatentNames, paged: Container[int]) -> ResultView:
    """A search as a page shows it; latents in `paged` are links."""
    found = record.get("candidates", record.get("latents", []))
    keys = [key for key in _COLUMNS if any(row.get(key) is not None for row in found)]
    columns = [Column(_COLUMNS[key], key not in _IN_WORDS) for key in keys]
    rows = [
        Row(latent, names.of(latent), latent in paged, [_cell(row.get(key)) for key in keys])
        for latent, row in zip(found_latents(record), found, strict=True)
    ]
    for key, words in _KINDS.items():
        if key in record:
            title, sentence, note = words(record)
            return ResultView(title, sentence, columns, rows, note, _tokens(record))
    return ResultView("Latents", "", columns, rows)


def _cell(value: Any) -> Cell:
    if isinstance(value, float):
        return Cell(f"{value:.3f}", True)
    return Cell("" if value is None else visible(str(value)), isinstance(value, int))


def _tokens(record: dict[str, Any]) -> list[TokenView]:
    tokens = record.get("tokens", [])
    scale = max((pair["value"] for token in tokens for pair in token["latents"]), default=0.0)
    views = []
    for token in tokens:
        pairs = token["latents"]
        words = ", ".join(f"{pair['latent']} {pair['value']:.2f}" for pair in pairs[:5])
        label = words if token["read"] else "not read"
        views.append(TokenView(visible(token["text"]), level_of(pairs[0]["value"] if pairs else 0, scale), label))
    return views


def _contrast(record: dict[str, Any]) -> tuple[str, str, str]:
    held_out = f", {record['num_held_out']} of them held out" if record["num_held_out"] else ""
    sentence = f"{record['num_positive']} positive and {record['num_negative']} negative items{held_out}."
    best = record.get("permuted_best_selection")
    note = f"Labels permuted {len(best)} times: the best of all latents reached AUROC {max(best):.3f}." if best else ""
    if held := record.get("permuted_top_held_out"):
        note += f" The best of as many as are listed here reached {max(held):.3f} where they were not chosen."
    return "Contrast", sentence, note


_KINDS: dict[str, Callable[[dict[str, Any]], tuple[str, str, str]]] = {
    "candidates": _contrast,
    "query": lambda record: (f"Text: {record['query']}", "Latents whose explanation or examples have these words.", ""),
    "like": lambda record: (f"Like {record['like']}", "Latents by the cosine of their decoder rows.", ""),
    "sentence": lambda _: ("Sentence", "The latents that read most in it.", ""),
}
