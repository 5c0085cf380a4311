"""Replies of one served model, kept as they come: one line each, behind a first line that says which model it was.

A reply is found by what was asked: messages, sampling and steering, by their hash. So a run that is killed and started
again asks only what it has no reply to, and a question that was reworded is asked anew. Another model, quantisation or
chat template than the file's is refused.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from discovery.chat_model import Message
from discovery.errors import ElicitError
from discovery.grpc_endpoint import Generated, GrpcEndpoint, Sampling
from discovery.result_lines import ResultLines, read_results
from discovery.steering_json import steering_messages

FORMAT_VERSION = 1
_WANTED = [name for name in Generated._fields if name not in Generated._field_defaults]

_PROBES: tuple[list[Message], ...] = (
    [{"role": "user", "content": "U"}],
    [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
    [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "V"}],
)
"""What is rendered to know the chat template, and any system message that it puts in by itself."""


class Inquiry(NamedTuple):
    """One thing to ask."""

    messages: list[Message]
    sampling: Sampling
    steering: str = ""
    """As `discovery.steering_json` writes it; empty is none."""

    @property
    def key(self) -> str:
        """Hash of what was asked, of the model and under the steering of the file's first line."""
        steered = [self.steering] if self.steering else []
        asked = json.dumps([self.messages, asdict(self.sampling), *steered], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(asked.encode()).hexdigest()


async def identify(
    endpoint: GrpcEndpoint, *, label: str, monitors: Sequence[str] = (), steering: str = ""
) -> dict[str, Any]:
    """Which model answers, and what its chat template makes of a conversation. Where it runs is not part of it.

    `monitors` are there with the hashes of their packs; ElicitError if the server has no such monitor. `steering` is
    there with the dictionary it is of and the place where it acts; ReplyError if the server refuses it.
    """
    packs = await endpoint.packs() if monitors else {}
    if unknown := set(monitors) - set(packs):
        known = ", ".join(sorted(packs)) or "none"
        raise ElicitError(f"monitors must be among the server's, {known}, got {', '.join(sorted(unknown))}")
    facts = await endpoint.facts()
    model = {name: value for name, value in facts.model.items() if name != "device"}
    rendered = [await endpoint.render(probe, label=label) for probe in _PROBES]
    ids = json.dumps([list(prompt.token_ids) for prompt in rendered])
    template = {
        "rendered_token_ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "rendered": [prompt.text for prompt in rendered],
    }
    identity = {"format_version": FORMAT_VERSION, "model": model, "template": template}
    if steering:
        await endpoint.generate(_PROBES[0], Sampling(1), label=label, steering=steering_messages(steering))
        identity["steering"] = {"operations": json.loads(steering), **facts.steering}
    return identity | ({"monitors": {name: packs[name] for name in sorted(monitors)}} if monitors else {})


class ReplyStore:
    """The replies in `path`, and more to come."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """LabError if `path` holds replies of another model, or something else."""
        self._lines = ResultLines(path, identity)
        self.identity = identity
        self._replies = dict(map(_parse, self._lines.lines))

    @classmethod
    def reopen(cls, path: Path) -> "ReplyStore":
        """The replies of a run that was made before, whichever model's. ElicitError if there are none."""
        if not path.exists():
            raise ElicitError(f"{path} must have the replies of an earlier run, or a target must be given, got none")
        return cls(path, read_results(path).settings)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, inquiry: Inquiry) -> Generated | None:
        """The reply; None if it was not asked for yet."""
        return self._replies.get(inquiry.key)

    def take_over(self, inquiries: Iterable[Inquiry], other: "ReplyStore") -> None:
        """Keep the replies that `other` has to what this store has none to. ElicitError if they are another model's."""
        for name in ("model", "template"):
            if self.identity[name] != other.identity[name]:
                raise ElicitError(f"replies to take over must be of the same {name}, got another")
        for inquiry in self.missing(inquiries):
            reply = other.get(inquiry)
            if reply is not None:
                self.add(inquiry, reply)

    def missing(self, inquiries: Iterable[Inquiry]) -> list[Inquiry]:
        """Those without a reply, each once."""
        return list({inquiry.key: inquiry for inquiry in inquiries if inquiry.key not in self._replies}.values())

    def add(self, inquiry: Inquiry, reply: Generated) -> None:
        """Keep `reply`; it is on disk when this returns."""
        self._lines.append({"key": inquiry.key, **reply._asdict()})
        self._replies[inquiry.key] = reply


def _parse(line: dict[str, Any]) -> tuple[str, Generated]:
    try:
        return str(line["key"]), Generated(*(line[name] for name in _WANTED))._replace(
            monitors=tuple(line.get("monitors", ())), steering=line.get("steering")
        )
    except KeyError as error:
        raise ElicitError(f"a reply must have {', '.join(_WANTED)} and key, got none as {error}") from None
