"""Splits that keep together what belongs together.

Groups of the data are joined where their scored texts are the same and long: the same fact under two templates must not
be learned on one side and measured on the other. (Short answers, "Paris", are the same by chance.) A group's part
depends on its name, the seed and the shares alone, not on who else is there.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from discovery.conversations import Conversation
from discovery.errors import MonitorLabError

Indices = NDArray[np.int64]

LONG_TEXT = 40
"""Characters from which two equal texts are no coincidence."""


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the conversations on each side."""

    train: Indices
    development: Indices
    """Whole groups on which windows are chosen."""
    held_out: Indices
    """Whole groups, and arms held out by name, that nothing is fitted or chosen on."""


def long_text(conversation: Conversation) -> str | None:
    """What is scored, blanks evened out; None if it is so short that others may say the same by chance."""
    text = " ".join(conversation.scored_text.split())
    return text if len(text) >= LONG_TEXT else None


def joined_groups(conversations: Sequence[Conversation]) -> list[str]:
    """Each conversation's group after joining: of those that hang together the first name in order of the alphabet."""
    names = sorted({conversation.full_group for conversation in conversations})
    number = {name: index for index, name in enumerate(names)}
    first_with: dict[str, int] = {}
    edges = []
    for conversation in conversations:
        group, text = number[conversation.full_group], long_text(conversation)
        if text is not None:
            edges.append((group, first_with.setdefault(text, group)))
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(names), len(names)))
    component_G = connected_components(graph, directed=False)[1]
    first_name: dict[int, str] = {}
    for name, component in zip(names, component_G.tolist(), strict=True):
        first_name.setdefault(component, name)
    return [first_name[int(component_G[number[c.full_group]])] for c in conversations]


def split_groups(
    conversations: Sequence[Conversation],
    groups: Sequence[str],
    *,
    development_share: float = 0.2,
    held_out_share: float = 0.3,
    held_out_arms: Sequence[str] = (),
    seed: int = 0,
) -> Split:
    """Whole groups into three parts. What an arm held out by name said is held out, in whichever group.

    MonitorLabError if a share is none, or training or development gets only one of the labels.
    """
    if not (held_out_share >= 0 and development_share > 0 and held_out_share + development_share < 1):
        raise MonitorLabError(
            "shares must leave something for training: 0 <= held-out share, 0 < development share, together below 1, "
            f"got {held_out_share} and {development_share}"
        )
    parts: dict[str, list[int]] = {"train": [], "development": [], "held_out": []}
    for index, (conversation, group) in enumerate(zip(conversations, groups, strict=True)):
        place = _place(group, seed)
        if conversation.arm in held_out_arms or place < held_out_share:
            parts["held_out"].append(index)
        else:
            parts["development" if place < held_out_share + development_share else "train"].append(index)
    for name in ("train", "development"):
        labels = {conversations[index].label for index in parts[name]}
        if labels != {0, 1}:
            raise MonitorLabError(
                f"{name} groups must have both labels, got {sorted(labels) or 'none'} in {len(parts[name])} "
                "conversations: give more groups, or another --seed"
            )
    return Split(**{name: np.array(indices, np.int64) for name, indices in parts.items()})


def _place(group: str, seed: int) -> float:
    """A number in [0, 1) that depends on both alone."""
    text = f"{seed}/{group}".encode("utf-8", "surrogatepass")
    return float(int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48)


def folds(
    labels_I: NDArray[np.int64], groups: Sequence[str], num_folds: int, seed: int
) -> Iterator[tuple[Indices, Indices]]:
    """(fitting, validation) indices: whole groups, labels in like shares (scikit-learn's StratifiedGroupKFold).

    MonitorLabError if there are fewer groups with one of the labels than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    for label in (0, 1):
        of_label = {group for group, value in zip(groups, labels_I, strict=True) if value == label}
        if len(of_label) < num_folds:
            raise MonitorLabError(
                f"cross-validation needs at least {num_folds} training groups with label {label}, got {len(of_label)}"
            )
    made = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    for fitting, validation in made.split(np.zeros(len(labels_I)), labels_I, list(groups)):
        # With lopsided groups a fold can still be of one label: nothing can be said of it then.
        if len(set(labels_I[fitting].tolist())) == 2 and len(set(labels_I[validation].tolist())) == 2:
            yield fitting, validation


def group_digest(full_group: str) -> str:
    """A group's (or text's) short name in packs, which need not quote the data: 12 hex digits of its sha256."""
    return hashlib.sha256(full_group.encode("utf-8", "surrogatepass")).hexdigest()[:12]
