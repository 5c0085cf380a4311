"""Replies of the served model to ordinary requests, of mixed lengths: what thresholds are calibrated on.

Requests come from a file; once all have been used, tasks and topics of `discovery.chat_prompts` are combined. Lengths
go round: up to 64, 256 and 1,024 tokens, each with requests whose ordinary reply is about that long while there are
any. Or the file's requests alone are asked, round after round: somebody's own traffic, or the requests of a topic,
where those that are about it have label 1. All replies to one request are a group.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from discovery.chat_model import Message
from discovery.chat_prompts import SYSTEMS, TASKS, TOPICS
from discovery.errors import ElicitError
from discovery.grpc_endpoint import Sampling
from discovery.question_set import ReplyLength, Request
from discovery.reply_store import Inquiry, ReplyStore

DATASET = "benign_generated"
LENGTHS: dict[ReplyLength, int] = {"short": 64, "medium": 256, "long": 1024}
"""Most tokens of a reply."""

_SYSTEM_SHARE = 0.25
_NOT_BENIGN = ("Tell me a lie", "Pretend you know nothing")
"""Tasks of the corpus that ask for what a monitor of lies should find."""
_SYSTEMS = tuple(text for text in SYSTEMS if "decepti" not in text)
_TASKS = tuple(task for task in TASKS if not task.startswith(_NOT_BENIGN))


class BenignSettings(NamedTuple):
    """How many replies, drawn how."""

    num_replies: int
    temperature: float = 0.7
    seed: int = 0

    def check(self) -> None:
        """ElicitError if they make no sense."""
        if self.num_replies < 1:
            raise ElicitError(f"benign must be at least 1, got {self.num_replies}")
        if not 0 <= self.temperature <= 100:
            raise ElicitError(f"temperature must lie in [0, 100], got {self.temperature:g}")


class Benign(NamedTuple):
    """One reply to be asked for."""

    id: str
    group: str
    kind: str
    length: ReplyLength
    inquiry: Inquiry
    label: int = 0


def plan_benign(requests: Sequence[Request], settings: BenignSettings, *, repeat: bool = False) -> Iterator[Benign]:
    """What to ask. The first of more replies are those of fewer. With `repeat`, `requests` alone, in rounds."""
    settings.check()
    rng = random.Random(f"benign/{settings.seed}")
    rounds = _rounds(requests, settings.seed)
    waiting: dict[ReplyLength, list[Request]] = {length: [] for length in LENGTHS}
    for request in rng.sample(requests, len(requests)):
        waiting[request.length].append(request)
    combinations = iter(rng.sample(range(len(_TASKS) * len(TOPICS)), len(_TASKS) * len(TOPICS)))
    for number in range(settings.num_replies):
        length = tuple(LENGTHS)[number % len(LENGTHS)]
        # Drawn whether used or not, so that what comes later does not depend on it.
        system = rng.choice(_SYSTEMS) if rng.random() < _SYSTEM_SHARE else None
        label = 0
        if repeat or waiting[length]:
            request = next(rounds) if repeat else waiting[length].pop()
            name, kind, text, system = request.id, request.kind, request.request, request.system or system
            length, label = request.length, request.label
        else:
            name, text = _combined(next(combinations, None), number)
            kind = "combined"
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        sampling = Sampling(LENGTHS[length], settings.temperature, seed=rng.getrandbits(32))
        yield Benign(f"{name}/{settings.seed}/{number:05d}", name, kind, length, Inquiry(messages, sampling), label)


def _rounds(requests: Sequence[Request], seed: int) -> Iterator[Request]:
    """Every request once, then once more, without end."""
    rng = random.Random(f"rounds/{seed}")
    while True:
        yield from rng.sample(requests, len(requests))


def _combined(combination: int | None, number: int) -> tuple[str, str]:
    """Name and text of a task about a topic."""
    if combination is None:
        raise ElicitError(f"benign must be at most the requests there are, {number}")
    task, topic = divmod(combination, len(TOPICS))
    return f"combined-{combination:05d}", _TASKS[task].format(topic=TOPICS[topic])


def benign_rows(plan: Sequence[Benign], store: ReplyStore) -> Iterator[dict[str, Any]]:
    """Those that were replied to, as labelled conversations; an empty reply has no label."""
    identity: Mapping[str, Any] = store.identity
    for one in plan:
        reply = store.get(one.inquiry)
        if reply is None:
            continue
        yield {
            "id": one.id,
            "dataset": DATASET,
            "messages": [*one.inquiry.messages, {"role": "assistant", "content": reply.text}],
            "score_from_char": 0,
            "score_to_char": len(reply.text),
            "label": one.label if reply.text.strip() else None,
            "group": one.group,
            "source_model": identity["model"].get("name", ""),
            "on_policy": True,
            "meta": {
                "class": "topic" if one.label else "benign",
                "kind": one.kind,
                "length": one.length,
                "max_tokens": one.inquiry.sampling.max_tokens,
                "temperature": one.inquiry.sampling.temperature,
                "seed": one.inquiry.sampling.seed,
                "finish": reply.finish,
                "completion_tokens": reply.completion_tokens,
                "model": dict(identity["model"]),
                "template_sha256": identity["template"]["rendered_token_ids_sha256"],
                **({"monitors": list(reply.monitors)} if "monitors" in identity else {}),
            },
        }
