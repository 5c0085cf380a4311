"""Slots with positions of their own against the plain thing: one growing cache per row."""

import pytest
import torch
from transformers import DynamicCache

from sae_runtime.cache_argument import cache_argument
from service.slot_cache import SlotCache

S, H, L, D_HEAD, NUM_LAYERS = 4, 2, 32, 8, 3
CPU = torch.device("cpu")


def cache(dtype=torch.float32):
    return SlotCache(
        num_layers=NUM_LAYERS, num_slots=S, num_heads=H, num_positions=L, head_dim=D_HEAD, dtype=dtype, device=CPU
    )


def random_kv(generator, rows, tokens):
    return (torch.randn(rows, H, tokens, D_HEAD, generator=generator) for _ in range(2))


@pytest.mark.parametrize("slots", [[0], [2], [0, 1], [1, 2, 3], [0, 2], [3, 0, 1], [1, 0]])
def test_what_is_written_is_what_is_read(slots):
    """Every row reads its own keys and values up to its own position, whoever is beside it."""
    ours, generator = cache(), torch.Generator().manual_seed(0)
    written = {slot: [torch.zeros(H, 0, D_HEAD)] * 2 for slot in slots}
    starts = {slot: 0 for slot in slots}

    def run(rows, num_tokens):
        positions_BT, mask_B1TL = ours.begin(rows, [starts[slot] for slot in rows], num_tokens)
        assert positions_BT.tolist() == [[starts[s] + t for t in range(num_tokens)] for s in rows]
        for layer in range(NUM_LAYERS):
            new = list(random_kv(generator, len(rows), num_tokens))
            live = ours.update(*new, layer)
            for b, slot in enumerate(rows):
                for which in range(2):
                    if layer == 0:
                        written[slot][which] = torch.cat([written[slot][which], new[which][b]], dim=1)
                        end = starts[slot] + num_tokens
                        assert torch.equal(live[which][b, :, :end], written[slot][which])
                    # All later layers have the same shape; the first stands for them.
                    assert live[which].shape == (len(rows), H, mask_B1TL.shape[-1], D_HEAD)
        for slot in rows:
            starts[slot] += num_tokens

    for i, slot in enumerate(slots):  # prompts of different lengths, in chunks
        run([slot], 3 + 2 * i)
        run([slot], 2)
    for _ in range(4):
        run(slots, 1)


@pytest.mark.parametrize(("starts", "num_tokens"), [([0], 5), ([7], 3), ([0, 4, 9], 1), ([5, 5], 2)])
def test_the_mask_lets_a_token_look_at_itself_and_what_came_before(starts, num_tokens):
    slots = list(range(len(starts)))
    _, mask_B1TL = cache().begin(slots, starts, num_tokens)
    assert mask_B1TL.dtype == torch.bool
    assert mask_B1TL.shape == (len(starts), 1, num_tokens, max(starts) + num_tokens)
    for b, start in enumerate(starts):
        for t in range(num_tokens):
            wanted = [position <= start + t for position in range(mask_B1TL.shape[-1])]
            assert mask_B1TL[b, 0, t].tolist() == wanted


def test_a_model_on_slots_equals_the_model_on_its_own_cache(model):
    """Three rows of different lengths, in slots that lie apart, decoded together."""
    config = model.model.config
    slots = SlotCache(
        num_layers=4, num_slots=5, num_heads=config.num_key_value_heads, num_positions=L,
        head_dim=config.head_dim, dtype=torch.float32, device=CPU,
    )  # fmt: skip
    prompts = {0: [5, 6, 7], 2: [8] * 9, 3: [9, 10]}
    tail = [11, 12, 13]

    def on_slots(rows, starts, ids_BT):
        positions_BT, mask_B1TL = slots.begin(rows, starts, len(ids_BT[0]))
        return model.model(
            input_ids=torch.tensor(ids_BT),
            position_ids=positions_BT,
            attention_mask=mask_B1TL,
            **cache_argument(slots),
        ).logits

    with torch.inference_mode():
        for slot, ids in prompts.items():
            on_slots([slot], [0], [ids])
        got = [on_slots([0, 2, 3], [len(p) + i for p in prompts.values()], [[t]] * 3) for i, t in enumerate(tail)]
        for b, ids in enumerate(prompts.values()):
            own = DynamicCache()
            model.model(torch.tensor([ids]), **cache_argument(own))
            for step, token in enumerate(tail):
                wanted = model.model(torch.tensor([[token]]), **cache_argument(own)).logits
                torch.testing.assert_close(got[step][b : b + 1], wanted, rtol=1e-4, atol=1e-5)


def test_neighbours_are_read_without_a_copy():
    ours = cache()
    ours.begin([1, 2], [0, 0], 1)
    keys, _ = ours.update(*random_kv(torch.Generator(), 2, 1), 0)
    assert keys.data_ptr() == ours.keys[0][1].data_ptr()


def test_a_slot_that_was_left_holds_nothing():
    ours = cache()
    for slot in range(S):
        ours.begin([slot], [0], 6)
        for layer in range(NUM_LAYERS):
            keys, values = random_kv(torch.Generator().manual_seed(slot), 1, 6)
            ours.update(keys * float("nan"), values, layer)
    ours.scrub(2, 6)
    for tensor in (*ours.keys, *ours.values):
        assert not tensor[2].any()
        assert tensor[1, :, :6].any()
        assert not tensor[:, :, 6:].any()


def test_a_slot_that_was_moved_is_whole_and_its_place_empty():
    ours = cache()
    for slot in (0, 3):
        ours.begin([slot], [0], 6)
        for layer in range(NUM_LAYERS):
            ours.update(*random_kv(torch.Generator().manual_seed(slot), 1, 6), layer)
    kept = [tensor.clone() for tensor in (*ours.keys, *ours.values)]
    ours.move(3, 1, 6)
    for tensor, before in zip((*ours.keys, *ours.values), kept, strict=True):
        assert before[3].any()
        assert torch.equal(tensor[1], before[3])
        assert torch.equal(tensor[0], before[0])
        assert not tensor[3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_what_it_was_planned_to_be(dtype):
    ours = cache(dtype)
    taken = sum(tensor.numel() * tensor.element_size() for tensor in (*ours.keys, *ours.values))
    assert taken == S * L * SlotCache.bytes_per_position(NUM_LAYERS, H, D_HEAD, dtype)
    # Where a masked position holds NaN, its weight of 0 would still make NaN.
    assert not any(tensor.any() for tensor in (*ours.keys, *ours.values))
