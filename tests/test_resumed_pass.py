"""Half a pass and the other half are a whole one."""

import pytest
import tiny
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from discovery import resumed_pass
from discovery.errors import FitError, SteerError
from discovery.logit_effects import last_norm, promoted_tokens
from discovery.resumed_pass import check_halves, first_half, second_half
from discovery.steering_bench import Bench, edit_rows
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import wrap_model
from sae_runtime.steering_spec import SteeringOp, SteeringSpec
from sae_runtime.tap import Tap

IDS = [0, 5, 9, 70, 31, 200, 44]


@pytest.mark.parametrize("hook_point", [HookPoint(1, "output"), HookPoint(2, "input"), HookPoint(3, "output")])
def test_two_halves_equal_a_whole_pass(model, dictionary, hook_point):
    tap = Tap(model.model, hook_point, tiny.D_MODEL)
    bench = Bench(model, tap, dictionary, tiny.limits(dictionary))
    steering = bench.steering([SteeringSpec(3, SteeringOp.ADD, 8.0)], len(IDS))
    changes = [None, lambda resid_TD: steering.apply(resid_TD, 0)]
    with torch.inference_mode(), tap.step(2 * len(IDS), edit_rows(changes)) as record:
        logits_BTV = model.model(torch.tensor([IDS, IDS])).logits
    resid_TD = first_half(bench, IDS)
    torch.testing.assert_close(resid_TD, record.resid_BTD[0])
    positions = [0, 3, 6]
    found_BPV = second_half(bench, torch.stack([resid_TD, steering.apply(resid_TD, 0)]), positions)
    torch.testing.assert_close(found_BPV, logits_BTV[:, positions].log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found_BPV[0], found_BPV[1], atol=1e-2)
    tap.remove()


def gemma():
    """Blocks of two kinds, which differ in how far they see and in how positions turn."""
    torch.manual_seed(3)
    tokenizer = tiny.byte_tokenizer()
    config = Gemma3TextConfig(
        hidden_size=tiny.D_MODEL,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=2,
    )
    return wrap_model(
        Gemma3ForCausalLM(config).eval(),
        tokenizer,
        name="gemma",
        sha256="0" * 64,
        quantization="none",
        dtype=torch.float32,
        device="cpu",
    )


def granite():
    """Embeddings are scaled on their way in, and so are logits."""
    torch.manual_seed(3)
    tokenizer = tiny.byte_tokenizer()
    config = GraniteConfig(
        hidden_size=tiny.D_MODEL,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        embedding_multiplier=12.0,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=2,
    )
    return wrap_model(
        GraniteForCausalLM(config).eval(),
        tokenizer,
        name="granite",
        sha256="0" * 64,
        quantization="none",
        dtype=torch.float32,
        device="cpu",
    )


def small(config_class, model_class):
    """A model with LayerNorm at its end."""
    torch.manual_seed(3)
    tokenizer = tiny.byte_tokenizer()
    config = config_class(
        hidden_size=tiny.D_MODEL,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=2,
    )
    return wrap_model(
        model_class(config).eval(),
        tokenizer,
        name="small",
        sha256="0" * 64,
        quantization="none",
        dtype=torch.float32,
        device="cpu",
    )


def cohere():
    """LayerNorm without a bias."""
    return small(CohereConfig, CohereForCausalLM)


def stable_lm():
    """LayerNorm with a bias."""
    return small(StableLmConfig, StableLmForCausalLM)


def olmo():
    """LayerNorm without parameters."""
    return small(OlmoConfig, OlmoForCausalLM)


def phi():
    """LayerNorm by another name."""
    return small(PhiConfig, PhiForCausalLM)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("made", [tiny.language_model, gemma, granite, cohere, stable_lm, olmo, phi])
def test_promoted_tokens_are_those_whose_logits_rise(made, dtype):
    """Against the model's own norm and unembedding: the gain is the weight, or 1 + weight, of an RMS or a LayerNorm.

    The weights are rounded to `dtype`; what they promote is told in fp32.
    """
    lm = made()
    direction_D = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(0))
    decoder, head = lm.model.model, lm.model.get_output_embeddings()
    norm = decoder.final_layernorm if made is phi else decoder.norm
    with torch.no_grad():
        if getattr(norm, "weight", None) is not None:
            norm.weight.copy_(torch.rand(tiny.D_MODEL, generator=torch.Generator().manual_seed(1)) - 0.3)
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(2)))
        lm.model.to(dtype).float()  # rounded
        logits_V = (head(norm(direction_D[None])) - head(norm(torch.zeros(1, tiny.D_MODEL))))[0]
        lm.model.to(dtype)
    assert last_norm(lm) is norm
    assert promoted_tokens(lm, direction_D, 10) == logits_V.topk(10).indices.tolist()
    assert {parameter.dtype for parameter in lm.model.parameters()} == {dtype} and not norm._forward_hooks


def test_a_model_without_a_norm_at_its_end_is_refused():
    lm = tiny.language_model()
    del lm.model.model.norm
    lm.model.model.norm = lambda resid_BTD: resid_BTD
    with pytest.raises(FitError, match=r"model tiny must end in a norm, .* got none in LlamaModel"):
        promoted_tokens(lm, torch.ones(tiny.D_MODEL), 1)


@pytest.mark.parametrize("made", [gemma, granite])
@pytest.mark.parametrize("hook_point", [HookPoint(0, "output"), HookPoint(2, "input"), HookPoint(3, "output")])
def test_blocks_of_several_kinds_stay_what_they_are(dictionary, made, hook_point):
    lm = made()
    tap = Tap(lm.model, hook_point, tiny.D_MODEL)
    bench = Bench(lm, tap, dictionary, tiny.limits(dictionary))
    with torch.inference_mode():
        wanted_TV = lm.model(torch.tensor([IDS])).logits[0].log_softmax(-1)
        found_BPV = second_half(bench, first_half(bench, IDS)[None], [0, 5, 6])
        again_TV = lm.model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found_BPV[0], wanted_TV[[0, 5, 6]], rtol=1e-4, atol=1e-4)
    assert torch.equal(again_TV, wanted_TV)
    tap.remove()


def test_halves_that_are_no_whole_are_refused(dictionary, monkeypatch):
    """A model that scales its embeddings in a way that nobody has told us."""
    lm = granite()
    tap = Tap(lm.model, HookPoint(2, "input"), tiny.D_MODEL)
    bench = Bench(lm, tap, dictionary, tiny.limits(dictionary))
    check_halves(bench, IDS)
    monkeypatch.setattr(resumed_pass, "_multiplier", lambda _model: 1.0)
    with pytest.raises(SteerError, match=r"can't be resumed at layers.2.input: .* within 0.1 nats .* differ by \d"):
        check_halves(bench, IDS)
    tap.remove()


def test_the_model_is_whole_again_even_after_an_error(model, dictionary):
    tap = Tap(model.model, tiny.HOOK_POINT, tiny.D_MODEL)
    bench = Bench(model, tap, dictionary, tiny.limits(dictionary))
    before = tiny.logits(model.model)
    with pytest.raises(Exception, match=r"shape|size|dimension|normalized"):
        second_half(bench, torch.zeros(1, 3, tiny.D_MODEL + 1), [0])
    assert torch.equal(tiny.logits(model.model), before)
    tap.remove()
