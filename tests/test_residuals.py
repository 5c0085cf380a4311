"""residuals: what is read in batches is what the model has when it reads each context alone."""

import pytest
import tiny
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from discovery.corpus import Context
from discovery.errors import HarvestError
from discovery.residuals import as_stored, read_in_batches, read_residuals
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import wrap_model
from sae_runtime.tap import Tap

CONTEXTS = [
    Context(torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(n)).tolist(), n, 0, "made")
    for n, length in enumerate([5, 12, 3, 9, 12, 7, 2, 40])
]


def qwen2():
    """The other common kind: biases on queries, keys and values, and tied embeddings."""
    torch.manual_seed(3)
    config = Qwen2Config(
        hidden_size=tiny.D_MODEL,
        intermediate_size=64,
        num_hidden_layers=tiny.NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=259,
        max_position_embeddings=tiny.NUM_POSITIONS,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias, std=0.5)
    return wrap_model(
        model,
        tiny.byte_tokenizer(),
        name="qwen",
        sha256="1" * 64,
        quantization="none",
        dtype=torch.float32,
        device="cpu",
    )


MODELS = {"llama": tiny.language_model, "qwen2": qwen2}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("hook_point", [HookPoint(0, "input"), HookPoint(1), HookPoint(2, "input"), HookPoint(0)])
def test_padded_batches_hold_what_each_context_gives_alone(kind, hook_point):
    lm = MODELS[kind]()
    tap = Tap(lm.model, hook_point, lm.d_model)
    try:
        found = dict(read_in_batches(lm, tap, CONTEXTS, batch_tokens=48))
    finally:
        tap.remove()
    assert sorted(found) == list(range(len(CONTEXTS)))
    for index, context in enumerate(CONTEXTS):
        tokens = torch.tensor([context.tokens])
        with torch.inference_mode():
            states = lm.model.model(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                position_ids=torch.arange(tokens.shape[1])[None],
                output_hidden_states=True,
            ).hidden_states
        torch.testing.assert_close(found[index], states[hook_point.hidden_state_index][0], rtol=1e-5, atol=1e-5)
    assert len(lm.model.model.layers) == tiny.NUM_LAYERS


def test_batches_hold_contexts_of_like_length(model):
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    widths = []
    embed = model.model.model.embed_tokens.register_forward_pre_hook(lambda _m, args: widths.append(args[0].shape))
    try:
        list(read_in_batches(model, tap, CONTEXTS, batch_tokens=24))
    finally:
        embed.remove()
        tap.remove()
    assert sum(rows for rows, _ in widths) == len(CONTEXTS)
    assert all(rows * length <= 24 or rows == 1 for rows, length in widths)
    assert sum(rows * length for rows, length in widths) <= 1.2 * sum(len(context.tokens) for context in CONTEXTS)


def test_the_model_is_whole_again_after_a_pass_that_failed(model):
    tap = Tap(model.model, tiny.HOOK_POINT, model.d_model)
    try:
        with pytest.raises(IndexError):
            read_residuals(model, tap, [Context([3, 99999], 0, 0, "odd")])
    finally:
        tap.remove()
    assert len(model.model.model.layers) == tiny.NUM_LAYERS


def test_only_residuals_behind_position_0_are_stored_and_must_be_finite():
    context = Context([5, 6, 7], 3, 0, "made")
    resid_TD = torch.arange(12.0).view(3, 4)
    resid_TD[0] = torch.inf
    assert torch.equal(as_stored(resid_TD, context, "here"), resid_TD[1:].bfloat16())
    resid_TD[2, 1] = 3.4e38  # finite in fp32 as it is, infinite in bf16
    with pytest.raises(HarvestError, match=r"infinity here: at 1 of 2 tokens of document 3 .*first at position 2"):
        as_stored(resid_TD, context, "here")
