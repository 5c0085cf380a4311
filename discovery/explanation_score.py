"""Whether an explanation tells what a latent does: detection and fuzzing, on windows its author has not seen.

    detection   told the explanation, in which of these texts does the latent fire? Half of them have it, weak readings
                among them; the others are random texts in which it is silent at every token
    fuzzing     told the explanation, in which of these texts are the right tokens marked? The latent fires in all of
                them; in half, as many tokens are marked that it is silent on

    balanced accuracy = (share of positives found + share of negatives left alone) / 2: 0.5 is guessing

Both are from Paulo et al., "Automatically Interpreting Millions of Features in Large Language Models" (2024,
arXiv:2410.13928), with several texts to a prompt as there. Answers are read strictly and asked for
once: one that is not a list of as many 0s and 1s as there are texts counts as wrong on every one of them.
"""

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from discovery.chat_model import ChatModel, Message, ask
from discovery.errors import ReplyError
from discovery.example_split import LatentExamples, Window
from discovery.explanation import CLOSE, OPEN, mark, one_line
from discovery.latent_record import Explanation

Label = Literal[0, 1]
Labels = list[Label]

MIN_EACH = 4
"""Positives and negatives below which there is no score: it could be anything."""

_DETECTION = """\
You are told what one feature inside a language model is about, and are given numbered texts. For each text say \
whether the feature fires at any token in it: 1 if it does, 0 if not. About half do. Answer with one JSON object \
{"labels": [...]}, with exactly one number for each text, in their order."""
_FUZZING = f"""\
You are told what one feature inside a language model is about, and are given numbered texts in which some tokens \
stand between {OPEN} and {CLOSE}. For each text say whether those are the tokens that the feature fires on: 1 if they \
are, 0 if other tokens are marked instead. About half are right. Answer with one JSON object {{"labels": [...]}}, with \
exactly one number for each text, in their order."""


class Question(NamedTuple):
    """A text to judge, and what is true of it."""

    window: Window
    marked: tuple[int, ...]
    """Indices of the tokens marked; none in detection."""
    truth: Label


@dataclass(frozen=True, slots=True)
class Score:
    """How a judge did."""

    num_positive: int
    num_negative: int
    found: int
    """Of the positives."""
    left_alone: int
    """Of the negatives."""
    unparseable: int = 0
    """Of all, those whose answer could not be read; each counts as wrong."""

    @property
    def n(self) -> int:
        return self.num_positive + self.num_negative

    @property
    def balanced_accuracy(self) -> float:
        return (self.found / self.num_positive + self.left_alone / self.num_negative) / 2

    @property
    def standard_error(self) -> float:
        """Of the balanced accuracy; each share is drawn to the middle by one right and one wrong answer, so that a
        perfect one does not look certain (Agresti and Caffo 2000)."""
        shares = ((self.found, self.num_positive), (self.left_alone, self.num_negative))
        variances = ((k + 1) * (n - k + 1) / (n + 2) ** 3 for k, n in shares)
        return math.sqrt(sum(variances)) / 2

    def as_dict(self) -> dict[str, Any]:
        figures = {
            "balanced_accuracy": round(self.balanced_accuracy, 4),
            "standard_error": round(self.standard_error, 4),
        }
        return figures | asdict(self)


Judge = Callable[[Sequence[Question]], Awaitable[Labels]]
"""Answers some questions at once; ReplyError if there is no reading its answer."""


# --- questions ------------------------------------------------------------------------------------------------------


def detection_questions(examples: LatentExamples, seed: int = 0) -> list[Question]:
    """As many silent windows as active ones, where there are as many; in random order."""
    num = min(len(examples.held_out), len(examples.held_out_silent))
    questions = [Question(window, (), 1) for window in examples.held_out[:num]]
    questions += [Question(window, (), 0) for window in examples.held_out_silent[:num]]
    random.Random(f"detection/{seed}/{examples.latent}").shuffle(questions)
    return questions


def fuzzing_questions(examples: LatentExamples, seed: int = 0) -> list[Question]:
    """The held-out active windows, every second one with as many tokens marked that the latent is silent on."""
    rng = random.Random(f"fuzzing/{seed}/{examples.latent}")
    able, questions = [], []
    for window in examples.held_out:
        silent = [i for i, reading in enumerate(window.readings) if reading <= 0 and window.pieces[i].strip()]
        if len(silent) >= len(window.firing):
            able.append((window, tuple(sorted(rng.sample(silent, len(window.firing))))))
    rng.shuffle(able)  # else right and wrong marks would go with the windows' strengths, which come in turn
    for number, (window, wrong) in enumerate(able[: len(able) // 2 * 2]):
        questions.append(Question(window, wrong, 0) if number % 2 else Question(window, window.firing, 1))
    rng.shuffle(questions)
    return questions


# --- judging --------------------------------------------------------------------------------------------------------


async def score(questions: Sequence[Question], judge: Judge, batch_size: int) -> Score | None:
    """Ask `judge`, `batch_size` questions at a time. None if there are too few questions for a score."""
    num_positive = sum(question.truth for question in questions)
    num_negative = len(questions) - num_positive
    if min(num_positive, num_negative) < MIN_EACH:
        return None
    found = left_alone = unparseable = 0
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        try:
            labels = await judge(batch)
        except ReplyError:
            unparseable += len(batch)
            continue
        found += sum(q.truth == 1 and label == 1 for q, label in zip(batch, labels, strict=True))
        left_alone += sum(q.truth == 0 and label == 0 for q, label in zip(batch, labels, strict=True))
    return Score(num_positive, num_negative, found, left_alone, unparseable)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    labels: Labels


def model_judge(model: ChatModel, explanation: Explanation, *, max_tokens: int) -> Judge:
    """A judge that knows the explanation, title and all, and nothing else of the latent."""

    async def judge(questions: Sequence[Question]) -> Labels:
        messages = judge_prompt(explanation, questions)
        schema = _labels_schema(len(questions))
        asked = await ask(model, messages, _Answer, max_tokens=max_tokens, num_repairs=0, schema=schema)
        if len(asked.answer.labels) != len(questions):
            raise ReplyError(f"labels must be {len(questions)}, got {len(asked.answer.labels)}")
        return asked.answer.labels

    return judge


def judge_prompt(explanation: Explanation, questions: Sequence[Question]) -> list[Message]:
    """The conversation that asks for labels: for marked tokens if any question has some, else for whole texts."""
    task = _FUZZING if any(question.marked for question in questions) else _DETECTION
    about = [
        f"The feature: {explanation.title}",
        f"What it stands for: {explanation.summary}",
        f"What it fires on: {explanation.pattern}",
        f"Tokens: {', '.join(repr(token) for token in explanation.dominant_tokens)}",
        f"Where: {explanation.context}",
    ]
    texts = (
        f"{number}. {mark(q.window, q.marked) if q.marked else one_line(q.window.text)}"
        for number, q in enumerate(questions, start=1)
    )
    return [
        {"role": "system", "content": task},
        {"role": "user", "content": "\n".join([*about, "", f"{len(questions)} texts:", *texts])},
    ]


def _labels_schema(num: int) -> dict[str, Any]:
    labels = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": num, "maxItems": num}
    return {
        "type": "object",
        "properties": {"labels": labels},
        "required": ["labels"],
        "additionalProperties": False,
    }
