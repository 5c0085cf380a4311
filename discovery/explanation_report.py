"""What a run of `telltale lab explain` prints: titles beside the token rule's scores, and what it took."""

import json
import sys
from typing import Any

from rich.table import Table

from discovery.call_limits import Meter
from discovery.explain_run import Outcome
from discovery.explanation_book import ExplanationBook
from discovery.tables import table_console
from discovery.token_rule import TOKEN_RULE

ROWS_SHOWN = 20


def row_of(book: ExplanationBook, latent: int) -> dict[str, Any] | None:
    """An explanation with its scores and the token rule's; None if there is none."""
    explanation = book.store.explanation(latent)
    if explanation is None:
        return None
    rule, own = book.scores(latent, TOKEN_RULE), book.scores(latent, explanation.model)
    return explanation._asdict() | {
        "scores": {"detection": own.detection, "fuzzing": own.fuzzing, "settings": own.settings} if own else None,
        "token_rule": rule._asdict() if rule else None,
    }


def summary_of(rows: list[dict[str, Any]], outcome: Outcome, meter: Meter) -> dict[str, Any]:
    """Means over the latents that both the explanation and the token rule have a score for on the same windows, and
    what it took."""
    means = {}
    for test in ("detection", "fuzzing"):
        pairs = [
            (row[test], row["token_rule"][test]["balanced_accuracy"])
            for row in rows
            if row[test] is not None and row["token_rule"] and row["token_rule"][test] and _same_windows(row)
        ]
        means[test] = {
            "num_latents": len(pairs),
            "mean": round(sum(own for own, _ in pairs) / len(pairs), 4) if pairs else None,
            "token_rule_mean": round(sum(rule for _, rule in pairs) / len(pairs), 4) if pairs else None,
        }
    return means | {
        "explained": outcome.explained,
        "scored": outcome.scored,
        "kept": outcome.kept,
        "silent": outcome.silent,
        "unparseable": outcome.unparseable,
        "lost": outcome.lost,
        "stopped": str(outcome.stopped) if outcome.stopped else None,
        "calls": meter.calls,
        "prompt_tokens": meter.prompt_tokens,
        "completion_tokens": meter.completion_tokens,
        "calls_estimated": meter.num_estimated,
        "cost": round(meter.cost, 6),
    }


def _same_windows(row: dict[str, Any]) -> bool:
    """Whether an explanation and the token rule were scored on the same questions."""
    own, rule = row["scores"] and row["scores"]["settings"], row["token_rule"]["settings"]
    return bool(own) and all(own.get(name) == rule.get(name) for name in ("seed", "num_shown", "num_scored"))


def print_table(rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """For a person: the first rows, and the means of all. The token rule stands beside explanations of others."""
    beside_rule = any(row["model"] != TOKEN_RULE for row in rows)
    table = Table("latent", "title", "detection", "fuzzing", box=None)
    for name in ("token rule", "tokens of the rule") if beside_rule else ():
        table.add_column(name)
    for row in rows[:ROWS_SHOWN]:
        rule = row["token_rule"] or {"detection": None, "fuzzing": None, "title": ""}
        own = [_figure(row["scores"] and row["scores"][test]) for test in ("detection", "fuzzing")]
        figures = f"{_figure(rule['detection'])} / {_figure(rule['fuzzing'])}"
        tokens = rule["title"].removeprefix("Tokens ").removeprefix("Token ")
        table.add_row(str(row["latent"]), row["title"], *own, *([figures, tokens] if beside_rule else []))
    console = table_console(markup=False, highlight=False)
    console.print(table)
    if len(rows) > ROWS_SHOWN:
        console.print(f"... and {len(rows) - ROWS_SHOWN:,} more: --json prints all, `telltale lab latent` one")
    for test in ("detection", "fuzzing"):
        if (means := summary[test])["num_latents"]:
            console.print(
                f"{test}: {means['mean']:.3f} on average over {means['num_latents']} latents, "
                f"token rule {means['token_rule_mean']:.3f}; 0.5 is guessing"
            )


def _figure(score: dict[str, Any] | None) -> str:
    if not score:
        return "-"
    n = score["num_positive"] + score["num_negative"]
    return f"{score['balanced_accuracy']:.2f} (n={n})"


def report(book: ExplanationBook, latents: list[int], outcome: Outcome, meter: Meter, *, as_json: bool) -> int:
    """Print the results; the exit code is 1 if something is left to do."""
    rows = [row for latent in latents if (row := row_of(book, latent)) is not None]
    summary = summary_of(rows, outcome, meter)
    if as_json:
        for row in rows:
            print(json.dumps(row))
        print(json.dumps(summary))
    else:
        print_table(rows, summary)
    print(
        f"explained {outcome.explained}, scored {outcome.scored}, kept {outcome.kept}, silent {outcome.silent}, lost "
        f"{len(outcome.lost)}; {outcome.unparseable} answers unparseable; {meter.calls} calls, "
        f"{meter.used.total} tokens, cost {meter.cost:.4g}",
        file=sys.stderr,
    )
    for latent, reason in outcome.lost.items():
        print(f"latent {latent}: {reason}", file=sys.stderr)
    if outcome.stopped is not None:
        print(f"telltale lab explain: {outcome.stopped}; the same command goes on from here", file=sys.stderr)
    return 1 if outcome.stopped or outcome.lost else 0
