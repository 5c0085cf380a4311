"""What a monitor was fitted on, as its pack says it: an evaluation and a calibration leave these rows out.

A pack has hashes of the names of groups, and of long scored texts: a file under another name has other groups, and the
same fact may stand in another data set.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from discovery.conversations import Conversation
from discovery.group_split import group_digest, long_text


class SeenRows(NamedTuple):
    """Rows that fitting has seen."""

    groups: frozenset[str] = frozenset()
    """Digests of `Conversation.full_group`."""
    texts: frozenset[str] = frozenset()
    """Digests of long scored texts."""

    @classmethod
    def of(cls, evidence: Mapping[str, Any]) -> "SeenRows":
        """What a pack's evidence says; packs of before texts were kept have groups alone."""
        fit = evidence.get("fit", {})
        return cls(frozenset(fit.get("seen_groups", [])), frozenset(fit.get("seen_texts", [])))

    def has(self, conversation: Conversation) -> bool:
        """Whether the conversation's group was seen, or its text if that is long."""
        text = long_text(conversation)
        return group_digest(conversation.full_group) in self.groups or (
            text is not None and group_digest(text) in self.texts
        )


def text_digests(conversations: Iterable[Conversation]) -> list[str]:
    """Of the long ones among their scored texts, each once."""
    return sorted({group_digest(text) for row in conversations if (text := long_text(row)) is not None})
