"""What a model is asked about a latent: dominant tokens, pattern, summary, context, title.

It sees windows in which the tokens that the latent fires on stand between << and >>, each window with how strongly, on
a scale from 0 to 10. Showing it that way is from Paulo et al., "Automatically Interpreting Millions of Features in
Large Language Models" (2024, arXiv:2410.13928), who ask for one sentence; the five fields are our own.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from discovery.chat_model import ChatModel, Message, ask
from discovery.example_split import LatentExamples, Window
from discovery.latent_record import Explanation

OPEN, CLOSE = "<<", ">>"
_SCALE = 10

_TASK = f"""\
You study one feature inside a language model. It fires on some tokens of a text and is silent on all others.
You are shown texts. The tokens that the feature fires on stand between {OPEN} and {CLOSE}; under each text is how \
strongly, from 1 (faintly) to {_SCALE}. Find what those tokens and the texts around them have in common. Be specific: \
say what is there, not that there is a variety. Answer with one JSON object with these keys, in this order:
dominant_tokens: up to 8 tokens or words that the feature fires on most, as a list of strings
pattern: one sentence on what the marked tokens have in common
summary: one or two sentences on what the feature stands for
context: a few words on the kind of text it fires in
title: a name of at most 8 words"""

Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=400)]
Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
Token = Annotated[str, StringConstraints(min_length=1, max_length=40)]


class Account(BaseModel):
    """The answer asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dominant_tokens: list[Token] = Field(max_length=8)
    pattern: Line
    summary: Line
    context: Line
    title: Title

    def as_explanation(self, latent: int, model: str, created: str) -> Explanation:
        """As it is stored, without scores."""
        return Explanation(
            latent=latent,
            title=self.title,
            summary=self.summary,
            pattern=self.pattern,
            dominant_tokens=tuple(self.dominant_tokens),
            context=self.context,
            model=model,
            created=created,
        )


async def explain_latent(model: ChatModel, examples: LatentExamples, *, max_tokens: int) -> Account:
    """Ask for an account of a latent. ReplyError if no answer has the right shape."""
    asked = await ask(model, explanation_prompt(examples), Account, max_tokens=max_tokens)
    return asked.answer


def explanation_prompt(examples: LatentExamples) -> list[Message]:
    """The conversation that asks for an account of a latent. Holds shown windows alone."""
    shown = "\n\n".join(
        f"Text {number}: {mark(window, window.firing)}\nStrengths: {_strengths(window, examples.max_reading)}"
        for number, window in enumerate(examples.shown, start=1)
    )
    return [{"role": "system", "content": _TASK}, {"role": "user", "content": shown}]


def mark(window: Window, indices: Iterable[int]) -> str:
    """The window's text on one line, the tokens of `indices` between << and >>, neighbours together."""
    marked, parts = set(indices), []
    for index, piece in enumerate(window.pieces):
        opening = OPEN if index in marked and index - 1 not in marked else ""
        closing = CLOSE if index in marked and index + 1 not in marked else ""
        parts.append(opening + one_line(piece) + closing)
    return "".join(parts)


def one_line(text: str) -> str:
    """`text` with line ends spelt out, and with none of our marks in it."""
    return text.replace("\n", "⏎").replace(OPEN, "< <").replace(CLOSE, "> >")


def _strengths(window: Window, max_reading: float) -> str:
    return ", ".join(
        f'"{one_line(window.pieces[i]).strip()}" {max(1, round(_SCALE * window.readings[i] / max(max_reading, 1e-9)))}'
        for i in window.firing
    )
