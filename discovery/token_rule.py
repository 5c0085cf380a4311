"""The explanation without a model: "fires on these tokens", and a detector that follows it to the letter.

The tokens are those that carry most of the latent's readings in the shown windows, as many as tell shown active from
shown silent windows best. It is scored on the same held-out windows as a model's explanation, so that a title by a
model can be compared with it: a title that scores below it has added words, not knowledge.
"""

from collections import defaultdict
from collections.abc import Sequence

from discovery.example_split import LatentExamples, Window
from discovery.explanation import one_line
from discovery.explanation_score import Judge, Labels, Question
from discovery.latent_record import Explanation

TOKEN_RULE = "token rule"
"""Stands where explanations by models have the model's name."""

MAX_TOKENS = 8


def normalised(piece: str) -> str:
    """A token without case and without the space before it; white space alone stays as it is."""
    return piece.strip().lower() or piece


def ranked_tokens(windows: Sequence[Window]) -> list[str]:
    """Normalised tokens that the latent fires on, by their share of its readings, largest first."""
    mass: dict[str, float] = defaultdict(float)
    for window in windows:
        for index in window.firing:
            if token := normalised(window.pieces[index]):  # empty where a character goes on in the next token
                mass[token] += window.readings[index]
    return sorted(mass, key=lambda token: -mass[token])


def fit_tokens(examples: LatentExamples) -> tuple[str, ...]:
    """The tokens of the rule, the most important first; none if no shown window is active."""
    ranked = ranked_tokens(examples.shown)[:MAX_TOKENS]

    def accuracy(num: int) -> float:
        chosen = frozenset(ranked[:num])
        found = sum(_fires(window, chosen) for window in examples.shown) / max(len(examples.shown), 1)
        wrong = sum(_fires(window, chosen) for window in examples.shown_silent) / max(len(examples.shown_silent), 1)
        return found - wrong

    # Of equally good ones max takes the first, which has the fewest tokens.
    return tuple(ranked[: max(range(1, len(ranked) + 1), key=accuracy)]) if ranked else ()


def _fires(window: Window, tokens: frozenset[str]) -> bool:
    return any(normalised(piece) in tokens for piece in window.pieces)


def rule_judge(tokens: Sequence[str]) -> Judge:
    """Detection: any token is one of `tokens`. Fuzzing: at least half of the marked ones are."""
    chosen = frozenset(tokens)

    def label(question: Question) -> bool:
        if not question.marked:
            return _fires(question.window, chosen)
        hits = sum(normalised(question.window.pieces[i]) in chosen for i in question.marked)
        return 2 * hits >= len(question.marked)

    async def judge(questions: Sequence[Question]) -> Labels:
        return [1 if label(question) else 0 for question in questions]

    return judge


def rule_explanation(latent: int, tokens: Sequence[str], created: str) -> Explanation:
    """The rule in the form that models' explanations have."""
    if not tokens:
        return Explanation(
            latent=latent,
            title="Inside a character",
            summary="Fires where a character goes on in the next token.",
            model=TOKEN_RULE,
            created=created,
        )
    quoted = ", ".join(f"“{one_line(token)}”" for token in tokens)
    return Explanation(
        latent=latent,
        title=f"Token {quoted}" if len(tokens) == 1 else f"Tokens {quoted}",
        summary=f"Fires on {quoted}.",
        pattern="The tokens that carry most of its readings; found by counting, not by a model.",
        dominant_tokens=tuple(tokens),
        model=TOKEN_RULE,
        created=created,
    )
