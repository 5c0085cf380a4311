"""Search results for a person: tables in a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from discovery.contrast_search import SearchResult
from discovery.latent_names import LatentNames
from discovery.latent_record import Match
from discovery.latent_search import Sentence, Strongest
from discovery.token_text import printable

_LATENTS_PER_TOKEN = 4


def contrast_table(result: SearchResult, names: LatentNames, left_out: str = "") -> Table:
    """Candidates of a contrast, what luck would have given, and what was not read."""
    held_out = f", {result.num_held_out} of them held out" if result.num_held_out else ""
    table = Table(title=f"{result.num_positive} positive, {result.num_negative} negative items{held_out}")
    for heading in ("latent", "AUROC", "p", "held out", "p", "d", "mean +", "mean -", "on +", "on -", "top 10% +"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("name, or largest reading", overflow="fold")
    for c in result.candidates:
        held = "" if c.auroc_held_out is None else f"{c.auroc_held_out:.3f}"
        p_value, p_held_out = ("" if p is None else f"{p:.3f}" for p in (c.p_value, c.p_held_out))
        figures = [f"{c.auroc_selection:.3f}", p_value, held, p_held_out, f"{c.difference:.2f}"]
        figures += [f"{c.mean_positive:.3f}", f"{c.mean_negative:.3f}"]
        figures += [f"{share:.2f}" for share in (c.share_positive, c.share_negative, c.top_slice_positive)]
        table.add_row(str(c.latent), *figures, _words(names, c.latent))
    if result.permuted_best_selection:
        held = ""
        if result.permuted_top_held_out:
            num = len(result.candidates)
            held = f"; best of {num} chosen, held out: {max(result.permuted_top_held_out):.3f} at most"
        table.caption = (
            f"labels permuted {len(result.permuted_best_selection)} times, best of all latents: AUROC "
            f"{max(result.permuted_best_selection):.3f} at most{held}"
        )
    if left_out:
        table.caption = f"{table.caption}\n{left_out}" if table.caption else left_out
    return table


def match_table(matches: Sequence[Match], query: str) -> Table:
    """Latents found by text."""
    table = Table(title=f"latents with {query!r}")
    table.add_column("latent", justify="right", no_wrap=True)
    table.add_column("name")
    table.add_column("in", no_wrap=True)
    table.add_column("text", overflow="fold")
    for match in matches:
        text = Text(printable(match.text))
        text.highlight_words(query.split(), "bold yellow", case_sensitive=False)
        table.add_row(str(match.latent), printable(match.title or ""), match.where, text)
    return table


def similar_table(found: Sequence[tuple[int, float]], names: LatentNames, title: str) -> Table:
    """Latents by cosine."""
    table = Table(title=title)
    for heading in ("latent", "cosine"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("name, or largest reading")
    for latent, cosine in found:
        table.add_row(str(latent), f"{cosine:.3f}", _words(names, latent))
    return table


def strongest_table(sentence: Sentence, found: Sequence[Strongest], names: LatentNames) -> Table:
    """The latents that read most in a sentence."""
    table = Table(title="strongest latents")
    for heading in ("latent", "max", "of its max", "mean", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("largest at", no_wrap=True)
    table.add_column("name, or largest reading elsewhere")
    for one in found:
        share = "" if one.share is None else f"{one.share:.0%}"
        figures = [f"{one.max:.3f}", share, f"{one.mean:.3f}", str(one.num_active)]
        place = f"{one.position}: {printable(sentence.pieces[one.position])}"
        table.add_row(str(one.latent), *figures, place, _words(names, one.latent))
    return table


def token_table(sentence: Sentence, names: LatentNames) -> Table:
    """What reads most at each token."""
    table = Table(title="token by token")
    table.add_column("position", justify="right", no_wrap=True)
    table.add_column("token", no_wrap=True)
    table.add_column("latents")
    for position, pairs in enumerate(sentence.by_token(_LATENTS_PER_TOKEN)):
        shown = [f"{latent}{_in_brackets(names.of(latent))} {value:.2f}" for latent, value in pairs]
        read = ", ".join(shown) if sentence.read_T[position] else "not read"
        table.add_row(str(position), printable(sentence.pieces[position]), read)
    return table


def _words(names: LatentNames, latent: int) -> Text:
    """The name, else the example."""
    if name := names.of(latent):
        return Text(printable(name), "bold")
    return Text(printable(names.example(latent)), "dim")


def _in_brackets(name: str) -> str:
    return f" ({printable(name)})" if name else ""
