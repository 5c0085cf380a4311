"""context_store: the contexts it was given, in the order asked for."""

from itertools import accumulate

import pytest
import torch

from discovery.context_store import ContextStore
from discovery.corpus import Context, shuffle_key

CONTEXTS = [
    Context(torch.randint(3, 200, (5 + n % 7,), generator=torch.Generator().manual_seed(n)).tolist(), n // 2, n, "made")
    for n in range(20)
]


def test_it_gives_back_what_it_was_given():
    store = ContextStore(CONTEXTS)
    assert list(store) == CONTEXTS and store[3:7] == CONTEXTS[3:7] and len(store) == 20
    total = sum(len(context.tokens) for context in CONTEXTS[:5])
    assert list(ContextStore(iter(CONTEXTS), max_tokens=total)) == CONTEXTS[:5]
    with pytest.raises(IndexError):
        store[20]


def test_it_stops_reading_at_the_limit():
    read = []
    store = ContextStore((read.append(context) or context for context in CONTEXTS), max_tokens=30)
    assert len(read) == len(store) + 1


@pytest.mark.parametrize("max_tokens", [None, 60])
def test_it_shuffles_as_a_list_is_shuffled(max_tokens):
    shuffled = sorted(CONTEXTS, key=lambda context: shuffle_key(3, context.document, context.start))
    ends = accumulate(len(context.tokens) for context in shuffled)
    wanted = [context for context, end in zip(shuffled, ends, strict=True) if max_tokens is None or end <= max_tokens]
    assert list(ContextStore(CONTEXTS).shuffled(3, max_tokens)) == wanted
    assert list(ContextStore(CONTEXTS[::-1]).shuffled(3, max_tokens)) == wanted
