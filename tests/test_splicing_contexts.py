"""splicing_contexts: each length has its share of the tokens, and batches have one length each."""

from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

from discovery.errors import HarvestError
from discovery.splicing_contexts import choose_contexts, even_batches, usual_batch_tokens

LENGTHS = [8, 20, 59] * 200


@pytest.fixture
def shards(tmp_path):
    """One context for each of `LENGTHS`, told apart by its first token."""
    behind = torch.tensor([length - 1 for length in LENGTHS])
    tensors = {
        "resid_ND": torch.zeros(int(behind.sum()), 1).bfloat16(),
        "token_ids_N": torch.full((int(behind.sum()),), 7, dtype=torch.int32),
        "positions_N": torch.cat([torch.arange(1, n + 1) for n in behind.tolist()]).int(),
        "contexts_N": torch.arange(len(behind)).repeat_interleave(behind).int(),
        "documents_N": torch.arange(len(behind)).repeat_interleave(behind),
        "first_ids_C": torch.arange(len(behind), dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "shard-00000.safetensors")
    return [tmp_path / "shard-00000.safetensors"]


def test_lengths_have_their_share_whatever_the_room(shards):
    chosen = choose_contexts(shards, max_tokens=sum(LENGTHS) // 2)
    counts = Counter(map(len, chosen.contexts))
    # 300 of 600 drawn, 100 of each length expected: 60 is seven standard deviations off.
    assert all(60 < counts[length] < 140 for length in (8, 20, 59))
    assert sum(LENGTHS) // 2 - 59 < sum(map(len, chosen.contexts)) <= sum(LENGTHS) // 2
    assert chosen.num_available == 600
    assert len({context[0] for context in chosen.contexts}) == len(chosen.contexts)
    assert chosen == choose_contexts(shards, max_tokens=sum(LENGTHS) // 2)
    assert chosen != choose_contexts(shards, max_tokens=sum(LENGTHS) // 2, seed=1)


def test_all_are_chosen_if_there_is_room_and_one_if_there_is_none(shards):
    everything = choose_contexts(shards, max_tokens=sum(LENGTHS)).contexts
    assert sorted(context[0] for context in everything) == list(range(600))
    assert len(choose_contexts(shards, max_tokens=1).contexts) == 1


def test_batches_have_one_length_and_hold_every_context():
    contexts = [[n] * length for n, length in enumerate([3, 5, 3, 9, 3, 5])]
    batches = list(even_batches(contexts, batch_tokens=6))
    assert sorted(row for batch in batches for row in batch.tolist()) == sorted(contexts)
    assert [tuple(batch.shape) for batch in batches] == [(1, 9), (1, 5), (1, 5), (2, 3), (1, 3)]


def test_contexts_that_predict_nothing_are_refused(tmp_path):
    with pytest.raises(HarvestError, match="3 tokens or more for predictions, got 2"):
        two = {"token_ids_N": [7], "positions_N": [1], "contexts_N": [0], "first_ids_C": [7]}
        tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in two.items()}
        tensors |= {"documents_N": torch.tensor([0]), "resid_ND": torch.zeros(1, 1).bfloat16()}
        save_file(tensors, tmp_path / "two.safetensors")
        choose_contexts([tmp_path / "two.safetensors"], max_tokens=10)


def test_logits_of_a_batch_take_half_a_gibibyte_at_most():
    for num_vocabulary in (259, 49_152, 128_256, 262_144):
        tokens = usual_batch_tokens(num_vocabulary)
        assert tokens * num_vocabulary * 4 <= 2**29 < (tokens + 1) * num_vocabulary * 4
