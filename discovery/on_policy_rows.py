"""Replies as labelled conversations: JSON lines, one reply each, in the schema that monitors are fitted on.

`label` is 1 for a lie; 0 for the truth, for a truth told under an instruction to lie and for an honest mistake; null
for the rest. `group` is the question, which so never is on both sides of a split. Scored is the answer: the reply
without the white space around it; in a passage, the sentences that decided.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from discovery.answer_check import Judgement, judge
from discovery.elicitation_plan import Cell, ElicitSettings
from discovery.grpc_endpoint import Generated
from discovery.on_policy_classes import LABELS, AnswerClass, Knowledge, class_of, knowledge_of
from discovery.reply_store import ReplyStore

DATASET = "on_policy"

_SENTENCE_END = re.compile(r"[.!?][\"')\]*]*(?=\s)|\n+")


class Answer(NamedTuple):
    """One reply with its verdict."""

    cell: Cell
    reply: Generated
    judgement: Judgement


class Labelled(NamedTuple):
    """An answer, and what it is given what the model knows."""

    answer: Answer
    knowledge: Knowledge
    answer_class: AnswerClass


def answers_to(cells: Sequence[Cell], store: ReplyStore, settings: ElicitSettings) -> list[Answer]:
    """Those that were replied to, judged, in order."""
    replies = [(cell, store.get(cell.inquiry(settings))) for cell in cells]
    return [Answer(cell, reply, judge(cell.question, reply.text)) for cell, reply in replies if reply is not None]


def knowledge_in(answers: Sequence[Answer], num_expected: Mapping[str, int]) -> dict[str, Knowledge]:
    """By question's id, what the model knows; of a question without all of its replies nothing is known yet."""
    verdicts: dict[str, list[Any]] = {name: [] for name in num_expected}
    for answer in answers:
        if answer.cell.shows_knowledge:
            verdicts[answer.cell.question.id].append(answer.judgement.verdict)
    return {
        name: knowledge_of(found) if len(found) == num_expected[name] else "unsure" for name, found in verdicts.items()
    }


def label_all(answers: Sequence[Answer], knowledge: Mapping[str, Knowledge]) -> list[Labelled]:
    """The class of every answer."""
    return [
        Labelled(answer, known, class_of(answer.cell.arm.instruction, answer.judgement.verdict, known))
        for answer in answers
        for known in [knowledge[answer.cell.question.id]]
    ]


def rows_of(
    labelled: Sequence[Labelled], settings: ElicitSettings, identity: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The conversations, in order."""
    for one in labelled:
        cell, reply, judgement = one.answer
        inquiry = cell.inquiry(settings)
        start, end = scored_range(reply.text, judgement, is_passage=cell.form == "passage")
        yield {
            "id": cell.id,
            "dataset": DATASET,
            "messages": [*inquiry.messages, {"role": "assistant", "content": reply.text}],
            "score_from_char": start,
            "score_to_char": end,
            "label": LABELS[one.answer_class],
            "group": cell.question.id,
            "source_model": identity["model"].get("name", ""),
            "on_policy": True,
            "meta": {
                "class": one.answer_class,
                "arm": cell.arm.name,
                "instruction": cell.arm.instruction,
                "format": cell.form,
                "question_id": cell.question.id,
                "kind": cell.question.kind,
                "difficulty": cell.question.difficulty,
                "knowledge": one.knowledge,
                "shows_knowledge": cell.shows_knowledge,
                "verdict": judgement.verdict,
                "reason": judgement.reason,
                "sample": cell.sample,
                "temperature": inquiry.sampling.temperature,
                "seed": inquiry.sampling.seed,
                "max_tokens": inquiry.sampling.max_tokens,
                "finish": reply.finish,
                "completion_tokens": reply.completion_tokens,
                "model": dict(identity["model"]),
                "template_sha256": identity["template"]["rendered_token_ids_sha256"],
                **({"steering": json.loads(inquiry.steering)} if inquiry.steering else {}),
            },
        }


def scored_range(text: str, judgement: Judgement, *, is_passage: bool) -> tuple[int, int]:
    """First scored character of a reply, and the one behind the last."""
    first = len(text) - len(text.lstrip())
    end = len(text.rstrip())
    if is_passage and (judgement.start, judgement.end) != (0, len(text)):
        borders = [0, *(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]
        first = max(first, max(border for border in borders if border <= judgement.start))
        end = min(end, min(border for border in borders if border >= judgement.end))
        first += len(text[first:end]) - len(text[first:end].lstrip())
    return first, max(first, end)
