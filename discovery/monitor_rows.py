"""Which rows a monitor is fitted on: labelled conversations, by class and by arm.

With `--positive-class lie --negative-class told_to_lie_but_true` rows of these classes are the two labels and rows of
other classes are left out. Rows without a class keep their label: data that was not elicited has none.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from discovery.conversations import Conversation, by_dataset
from discovery.errors import LabelledDataError


def relabelled(
    conversations: Sequence[Conversation], positive: Sequence[str], negative: Sequence[str]
) -> list[Conversation]:
    """The rows that count, with the labels that they count as. All, as they are, if no class is given.

    LabelledDataError for a class that is on both sides, or that no row has.
    """
    if not positive and not negative:
        return list(conversations)
    if both := sorted(set(positive) & set(negative)):
        raise LabelledDataError(f"a class must be positive or negative, got both for {', '.join(both)}")
    there = Counter(conversation.class_name for conversation in conversations)
    if missing := [name for name in (*positive, *negative) if not there[name]]:
        known = ", ".join(sorted(name for name in there if name)) or "none"
        raise LabelledDataError(f"meta.class must have {', '.join(missing)} in some row; the data have: {known}")
    labels = dict.fromkeys(positive, 1) | dict.fromkeys(negative, 0)
    return [
        replace(conversation, label=labels.get(conversation.class_name, conversation.label))
        for conversation in conversations
        if not conversation.class_name or conversation.class_name in labels
    ]


def counts_by_set(conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    """What each data set brings, for records."""
    return [
        {
            "dataset": dataset,
            "num_positive": sum(conversations[index].label for index in indices),
            "num_negative": sum(1 - conversations[index].label for index in indices),
            "num_groups": len({conversations[index].group for index in indices}),
        }
        for dataset, indices in by_dataset(conversations).items()
    ]
