"""What is asked, in two rounds: what the model knows; then the rest, under instructions to lie only where it knows.

With steering, all of the second round is steered, and what the model knows is asked for once more there, greedily and
whole whatever the share: so it shows whether the model still says what it knows where nobody tells it to lie.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from discovery.elicitation_arms import ARM_BY_NAME, ARMS, FORMATS, Arm, Format, arms_of, formats_of, messages_for
from discovery.errors import ElicitError
from discovery.grpc_endpoint import Sampling
from discovery.on_policy_classes import Knowledge
from discovery.question_set import Question
from discovery.reply_store import Inquiry


@dataclass(frozen=True, slots=True)
class ElicitSettings:
    """Which arms and formats, how many samples."""

    arms: tuple[str, ...] = tuple(arm.name for arm in ARMS)
    """Of those that do not ask for knowledge, which are asked; those that do always are."""
    formats: tuple[Format, ...] = tuple(FORMATS)
    num_samples: int = 0
    """Samples at `temperature` of every prompt that asks for knowledge, beside the greedy reply."""
    temperature: float = 0.7
    share: float = 1.0
    """Of what is asked in the second round, chosen by hash: a larger share contains a smaller one."""
    seed: int = 0
    steering: str = ""
    """Of the second round, as `discovery.steering_json` writes it; empty is none."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.arms if name not in ARM_BY_NAME]:
            raise ElicitError(f"arms must be among {', '.join(ARM_BY_NAME)}, got {', '.join(unknown)}")
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ElicitError(f"formats must be among {', '.join(FORMATS)}, got {', '.join(unknown)}")
        if self.num_samples < 0:
            raise ElicitError(f"samples must be 0 or more, got {self.num_samples}")
        if not 0 < self.temperature <= 100:
            raise ElicitError(f"temperature must lie in (0, 100], got {self.temperature:g}")
        if not 0 < self.share <= 1:
            raise ElicitError(f"share must lie in (0, 1], got {self.share:g}")


class Cell(NamedTuple):
    """One question, put in one way, once."""

    question: Question
    arm: Arm
    form: Format
    sample: int
    """0 is greedy."""
    is_steered: bool = False

    @property
    def id(self) -> str:
        return f"{self.question.id}/{self.arm.name}/{self.form}/{self.sample}"

    @property
    def shows_knowledge(self) -> bool:
        """Whether the reply counts for what the model knows."""
        return not self.is_steered and self.arm.asks_knowledge and self.form == formats_of(self.question)[0]

    def inquiry(self, settings: ElicitSettings) -> Inquiry:
        """How it is asked."""
        max_tokens = FORMATS[self.form][1]
        sampling = Sampling(max_tokens)
        if self.sample:
            sampling = Sampling(max_tokens, settings.temperature, seed=_number(f"{settings.seed}/{self.id}"))
        steering = settings.steering if self.is_steered else ""
        return Inquiry(messages_for(self.question, self.arm, self.form), sampling, steering)


def knowledge_cells(questions: Sequence[Question]) -> Iterator[Cell]:
    """The first round: every question under every arm that asks for knowledge, greedily."""
    for question in questions:
        form = formats_of(question)[0]
        yield from (Cell(question, arm, form, 0) for arm in arms_of(question, form) if arm.asks_knowledge)


def sampled_cells(
    questions: Sequence[Question], knowledge: Mapping[str, Knowledge], settings: ElicitSettings
) -> Iterator[Cell]:
    """More of the first round: samples, of what the greedy replies show as known. Others can't become known by them."""
    for question in questions:
        if knowledge[question.id] == "known":
            for cell in knowledge_cells([question]):
                yield from (cell._replace(sample=sample) for sample in range(1, 1 + settings.num_samples))


def other_cells(
    questions: Sequence[Question], knowledge: Mapping[str, Knowledge], settings: ElicitSettings
) -> Iterator[Cell]:
    """The second round. `knowledge` is by question's id: who does not know an answer can't lie about it."""
    if settings.steering:
        known = [question for question in questions if knowledge[question.id] == "known"]
        yield from (cell._replace(is_steered=True) for cell in knowledge_cells(known))
    for question in questions:
        for form in formats_of(question):
            for arm in arms_of(question, form) if form in settings.formats else ():
                cell = Cell(question, arm, form, 0)
                needs_knowledge = arm.instruction in ("lying", "incentive")
                if cell.shows_knowledge or arm.name not in settings.arms:
                    continue
                if needs_knowledge and knowledge[question.id] != "known":
                    continue
                if _number(f"{settings.seed}/{cell.id}") < settings.share * 2**32:
                    yield cell._replace(is_steered=bool(settings.steering))


def _number(text: str) -> int:
    """32 bits of hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
