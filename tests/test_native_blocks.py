"""Models that the native kernels compute, against transformers' own passes; and what is their own: the same numbers for
a token whatever is computed beside it."""

import logging
import math
import shutil
from dataclasses import replace

import native_models as native
import pytest
import tiny
import tiny_packs
import torch
from safetensors.torch import load_file, save_file
from test_engine import WATCHED, Reply, request, submit
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from monitors.pack_tensors import PackTensor
from sae_runtime import language_model, weights
from sae_runtime.hook_point import HookPoint
from sae_runtime.kernels.native import NativeKernelsMissing
from sae_runtime.native_blocks import MOST_TOKENS, check
from sae_runtime.native_sae import NativeSAE
from sae_runtime.native_weights import packing_bytes
from sae_runtime.probes import Probe
from sae_runtime.steering_spec import PositionScope, SteeringOp, SteeringSpec
from sae_runtime.tap import Tap
from service.pass_output import RowInput
from service.records import Phase
from service.slot_cache import SlotCache

NUM_SLOTS = 4
ADD = (SteeringSpec(3, SteeringOp.ADD, 6.0, scope=PositionScope.GENERATED),)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    native.save_model(folder, architecture=request.param)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return native.load(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    """Computed by transformers, in bf16 and in fp32."""
    return {dtype: native.load(folder, native_kernels=False, dtype=dtype) for dtype in ("bfloat16", "float32")}


def slots(made, num_positions: int = tiny.NUM_POSITIONS) -> SlotCache:
    return SlotCache(
        num_layers=tiny.NUM_LAYERS,
        num_slots=NUM_SLOTS,
        num_heads=native.NUM_KV_HEADS,
        num_positions=num_positions,
        head_dim=native.HEAD_DIM,
        dtype=torch.bfloat16,
        device=made.device,
    )


def ids(num_rows: int, num_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, native.VOCAB_SIZE, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def our_logits(made, ids_BT, sizes, rows=None, cache=None) -> torch.Tensor:
    """Of all tokens, read in pieces of `sizes`."""
    rows, cache = rows or list(range(len(ids_BT))), cache or slots(made)
    pieces, start = [], 0
    for size in sizes:
        piece = ids_BT[:, start : start + size]
        pieces.append(made.blocks.logits(piece, cache, rows, [start] * len(rows), all_logits=True))
        start += size
    return torch.cat(pieces, dim=1)


@torch.inference_mode()
def their_logits(made, ids_BT) -> torch.Tensor:
    return made.model(ids_BT, use_cache=False).logits.float()


def test_logits_are_as_near_to_those_of_fp32_as_those_of_transformers_in_bf16(ours, theirs):
    ids_BT = ids(3, 100)
    exact = their_logits(theirs["float32"], ids_BT)
    found, usual = our_logits(ours, ids_BT, [100]), their_logits(theirs["bfloat16"], ids_BT)
    assert found.shape == exact.shape
    assert (found - exact).norm() < 1.1 * (usual - exact).norm() < 0.03 * exact.norm()


def test_what_a_token_gets_does_not_depend_on_how_it_is_read(ours, monkeypatch):
    ids_BT = ids(3, 150)
    whole = our_logits(ours, ids_BT, [150])
    assert torch.equal(our_logits(ours, ids_BT, [1, 2, 3, 64, 70, 10]), whole)
    assert torch.equal(our_logits(ours, ids_BT[:, :20], [1] * 20), whole[:, :20])
    assert torch.equal(our_logits(ours, ids_BT[1:2], [100, 50], rows=[3]), whole[1:2])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(our_logits(ours, ids_BT, [150]), whole)


def test_the_last_logits_are_those_of_the_last_token(ours):
    ids_BT = ids(2, 9)
    whole = our_logits(ours, ids_BT, [9])
    last = ours.blocks.logits(ids_BT, slots(ours), [0, 1], [0, 0])
    assert last.shape == (2, 1, native.VOCAB_SIZE)
    assert torch.equal(last[:, 0], whole[:, -1])


def test_another_cache_is_read_and_written(ours):
    """Of another size, so that its strides differ."""
    ids_BT = ids(2, 12)
    whole = our_logits(ours, ids_BT, [12])
    small, large = slots(ours, 16), slots(ours)
    for cache in (small, large):
        assert torch.equal(our_logits(ours, ids_BT[:, :6], [6], cache=cache), whole[:, :6])
    for cache in (small, large):
        rest = ours.blocks.logits(ids_BT[:, 6:], cache, [0, 1], [6, 6], all_logits=True)
        assert torch.equal(rest, whole[:, 6:])


def test_a_row_that_is_not_finite_is_alone_in_it(ours):
    ids_BT = ids(3, 8)
    clean = our_logits(ours, ids_BT, [8])
    cache = slots(ours)
    our_logits(ours, ids_BT[:, :7], [7], cache=cache)
    cache.values[1][1, 0, 2, 5] = math.nan
    spoilt = ours.blocks.logits(ids_BT[:, 7:], cache, [0, 1, 2], [7, 7, 7])
    assert not spoilt[1].isfinite().any()
    assert torch.equal(spoilt[[0, 2], 0], clean[[0, 2], 7])


@pytest.mark.parametrize("point", ["layers.0.output", "layers.2.input", "layers.3.output"])
def test_hooks_see_and_change_what_transformers_would_show_them(ours, theirs, point):
    ids_BT, pushed = ids(1, 40), 8 * torch.randn(native.D_MODEL, generator=torch.Generator().manual_seed(5))
    seen = {}
    for name, made in (("ours", ours), ("bf16", theirs["bfloat16"]), ("fp32", theirs["float32"])):
        tap = Tap(made.model, HookPoint.parse(point), native.D_MODEL)
        push = pushed.to(made.model.dtype)
        with torch.inference_mode(), tap.step(40, lambda x_BTD, push=push: x_BTD + push) as record:
            logits = our_logits(made, ids_BT, [40]) if name == "ours" else their_logits(made, ids_BT)
        tap.remove()
        seen[name] = record.resid_BTD.float(), logits
    for found, usual, exact in zip(seen["ours"], seen["bf16"], seen["fp32"], strict=True):
        assert (found - exact).norm() < 1.2 * (usual - exact).norm() + 1e-6
    found, exact = seen["ours"][1], seen["fp32"][1]
    assert (exact - their_logits(theirs["float32"], ids_BT)).norm() > 10 * (found - exact).norm()


def test_outside_of_the_kernels_the_model_can_not_be_run(ours):
    with pytest.raises(RuntimeError, match=r"computed by native kernels, which NativeBlocks\.logits runs"):
        ours.model(torch.tensor([[3, 4]]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x_BTD: x_BTD.float(), r"must be torch\.bfloat16 .* got torch\.float32"),
        (lambda x_BTD: x_BTD[:, :-1], r"of shape \(2, 3, 96\), got torch\.bfloat16 of \(2, 2, 96\)"),
        (lambda x_BTD: x_BTD[..., :-32], r"got torch\.bfloat16 of \(2, 3, 64\)"),
        (lambda x_BTD: x_BTD.flatten(0, 1), r"got torch\.bfloat16 of \(6, 96\)"),
    ],
    ids=["numbers", "tokens", "width", "rows"],
)
@pytest.mark.parametrize("layer", [1, 3])
def test_what_a_hook_makes_of_residuals_is_not_taken_for_them(ours, change, said, layer):
    """The last block's go to the head."""
    handle = ours.model.model.layers[layer].register_forward_hook(lambda _module, _args, x_BTD: change(x_BTD))
    try:
        with pytest.raises(ValueError, match=f"residuals before block {layer + 1} .*{said}"):
            ours.blocks.logits(ids(2, 3), slots(ours), [0, 1], [0, 0])
    finally:
        handle.remove()


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers with a gap behind each position."""
    return torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cache: setattr(cache, "keys", [t.float() for t in cache.keys]), "keys of layer 0 .* got torch.float32"),
        (lambda cache: cache.values.__setitem__(2, cache.values[2].half()), "values of layer 2 .* got torch.float16"),
        (lambda cache: cache.keys.__setitem__(1, cache.keys[1][:, :1]), r"shape \[S, 2, L, 32\], got \[4, 1"),
        (lambda cache: cache.keys.__setitem__(1, apart(cache.keys[1])), "layer 1 must be 32 numbers apart, got 64"),
        (lambda cache: cache.values.__setitem__(1, apart(cache.values[1])), "values of layer 1 must lie as its keys"),
        (
            lambda cache: cache.values.__setitem__(1, cache.values[1][:, :, :9]),
            "values of layer 1 must lie as its keys",
        ),
    ],
)
def test_slots_that_lie_otherwise_are_refused_before_they_are_touched(ours, change, said):
    ids_BT = ids(2, 6)
    whole, before, changed = our_logits(ours, ids_BT, [6]), slots(ours), slots(ours)
    our_logits(ours, ids_BT[:, :3], [3], cache=before)
    change(changed)
    for _ in range(2):  # the first refusal leaves nothing half done
        with pytest.raises(ValueError, match=said):
            our_logits(ours, ids_BT, [6], cache=changed)
    rest = ours.blocks.logits(ids_BT[:, 3:], before, [0, 1], [3, 3], all_logits=True)
    assert torch.equal(rest, whole[:, 3:])


def test_the_memory_of_a_pass_is_counted(ours):
    """The rotation of each position, and what lies between products."""
    cache = slots(ours, 48)
    our_logits(ours, ids(1, 5), [5], cache=cache)
    rotation = ours.blocks._rotation_2Ld.nbytes
    assert ours.blocks.num_bytes(48) - ours.blocks.num_bytes(0) == rotation
    widths = (
        (native.NUM_HEADS + 2 * native.NUM_KV_HEADS) * native.HEAD_DIM,
        native.D_MODEL,
        native.SHAPES["intermediate_size"],
    )
    least = MOST_TOKENS * sum(widths) * torch.bfloat16.itemsize
    assert least <= ours.blocks.num_bytes(0) <= 3 * least


# --- in the engine ---


def sae_of_bf16(activation: str = "batchtopk"):
    made = tiny.sae(activation, d_model=native.D_MODEL)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    return made


def monitor():
    """Of a latent and both probes."""
    components = [
        tiny_packs.probe_component("early", hook_point="layers.0.output", direction="early"),
        tiny_packs.probe_component("here", hook_point=str(tiny.HOOK_POINT), direction="here"),
        tiny_packs.feature_component(WATCHED[0], name="latent"),
    ]
    generator = torch.Generator().manual_seed(4)
    tensors = {
        name: PackTensor.of(torch.randn(native.D_MODEL, generator=generator).tolist()) for name in ("early", "here")
    }
    return tiny_packs.pack("mixed", components, rule="mean", tensors=tensors)


def requests(made):
    """Of every kind, of different lengths, so that rows join and leave."""
    monitors = (monitor().spec(),)
    return [replace(one, monitors=monitors) for one in _requests(made)]


def _requests(made):
    return [
        request(made, "The sea was calm.", request_id="plain", max_tokens=14, top_features=3),
        request(made, "A", request_id="short", max_tokens=5, include_logprobs=True),
        request(made, "It rained.", request_id="steered", max_tokens=9, steering=ADD),
        request(made, "Many a day", request_id="sampled", max_tokens=12, sampling={"temperature": 0.8, "seed": 5}),
        request(made, "Late. " * 20, request_id="late", max_tokens=20, include_prompt=True),
        request(made, "Again", request_id="penalised", max_tokens=8, sampling={"repetition_penalty": 1.3}),
    ]


def replies(made, dictionary, made_requests, **settings) -> list[Reply]:
    probes = [Probe(one.name, HookPoint.parse(one.hook_point), one.direction, one.bias) for one in monitor().probes()]
    engine = tiny.engine(made, dictionary, probes=probes, **settings)
    submissions = submit(engine, *made_requests)
    while engine.num_active:
        engine.step()
    engine.runner.probes.remove()
    engine.runner.tap.remove()
    return [Reply(submission) for submission in submissions]


@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_a_reply_is_the_same_to_the_bit_alone_and_in_company(ours, activation):
    dictionary = NativeSAE.of(sae_of_bf16(activation), ours.blocks.library)
    together = replies(ours, dictionary, requests(ours), chunk_tokens=64)
    assert len({tuple(reply.ids) for reply in together}) == len(together)
    for one, reply in zip(requests(ours), together, strict=True):
        (alone,) = replies(ours, dictionary, [one], chunk_tokens=7)
        assert reply.failure is None and alone.failure is None
        assert reply.finished.tapped_tokens == alone.finished.tapped_tokens
        for token, other in zip(reply.tokens, alone.tokens, strict=True):
            assert token.is_prompt or len(token.scores[0].components) == 3
            for name in (
                "id",
                "text",
                "readings",
                "steered_readings",
                "top_features",
                "logprob",
                "l0",
                "fvu",
                "scores",
            ):
                assert getattr(token, name) == getattr(other, name), name


def test_readings_are_those_of_an_offline_pass(ours, theirs):
    dictionary = NativeSAE.of(sae_of_bf16("relu"), ours.blocks.library)
    (reply,) = replies(ours, dictionary, [request(ours, max_tokens=30, include_prompt=True)])
    exact, usual = theirs["float32"].model, theirs["bfloat16"].model
    whole = torch.tensor([[token.id for token in reply.tokens]])
    read = {}
    for name, model in (("exact", exact), ("usual", usual)):
        with torch.inference_mode():
            hidden = model(whole, output_hidden_states=True).hidden_states[tiny.HOOK_POINT.hidden_state_index]
        read[name] = dictionary.encode(hidden[0].float())[:, list(WATCHED)]
    found = torch.tensor([token.readings for token in reply.tokens])
    assert (found > 0).any(dim=0).all()
    assert (found - read["exact"]).norm() < 1.2 * (read["usual"] - read["exact"]).norm() < 0.05 * read["exact"].norm()


def test_scores_of_a_text_are_those_it_was_streamed_with(ours):
    """Read at once as a prompt, to the bit."""
    dictionary = NativeSAE.of(sae_of_bf16(), ours.blocks.library)
    runner = tiny.model_runner(ours, dictionary)
    written = [5, 9, 70, 31, 200, 17, 44]
    latents = list(range(tiny.NUM_LATENTS))
    at_once = runner.forward([RowInput(0, 0, written)], latents)
    for position, token in enumerate(written):
        one = runner.decode([RowInput(1, position, [token])], latents)
        assert one.stats.readings_NU[0].tolist() == at_once.stats.readings_NU[position].tolist()
        assert one.stats.fvu_N[0] == at_once.stats.fvu_N[position]
    assert one.greedy.tokens_B[0] == at_once.greedy.tokens_B[0]
    runner.tap.remove()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_a_whole_pass(ours, temperature):
    """Beside a request that did not ask for any."""
    dictionary = NativeSAE.of(sae_of_bf16(), ours.blocks.library)
    asked = request(ours, max_tokens=6, sampling={"temperature": temperature, "seed": 5}, include_logprobs=True)
    reply, other = replies(ours, dictionary, [asked, request(ours, request_id="other", max_tokens=6)])
    ids = [*asked.prompt_ids, *reply.ids]
    whole_TV = our_logits(ours, torch.tensor([ids]), [len(ids)])[0].log_softmax(-1)
    wanted = [float(whole_TV[len(asked.prompt_ids) - 1 + i, token]) for i, token in enumerate(reply.ids)]
    assert [token.logprob for token in reply.tokens] == pytest.approx(wanted, abs=1e-5)
    assert {token.logprob for token in other.tokens} == {None}


def test_a_row_that_is_not_finite_is_marked_and_the_first_position_too(ours):
    dictionary = NativeSAE.of(sae_of_bf16(), ours.blocks.library)
    runner = tiny.model_runner(ours, dictionary)
    first = runner.forward([RowInput(slot, 0, [5, 9, 70]) for slot in (0, 1, 2)], [3])
    assert first.stats.off_scale_N.tolist() == [True, False, False] * 3
    runner.cache.values[0][1, 0, 1, 4] = math.nan
    stats = runner.decode([RowInput(slot, 3, [31]) for slot in (0, 1, 2)], [3]).stats
    assert stats.finite_N.tolist() == [True, False, True]
    assert not stats.off_scale_N.any()
    runner.tap.remove()


class Pace:
    """Five prompt tokens wherever somebody waits for a token."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int | None]] = []

    def observe(self, _record) -> None:
        pass

    def budget(self, limit: int, num_unread: int, longest_reply: int | None) -> int:
        self.told.append((num_unread, longest_reply))
        return limit if longest_reply is None else 5


@pytest.mark.parametrize("is_native", [True, False])
def test_prompts_are_read_at_a_pace_while_others_write(ours, theirs, is_native):
    """With the native kernels, where fewer tokens take less time."""
    made, published = ours if is_native else theirs["bfloat16"], []
    engine = tiny.engine(made, sae_of_bf16(), chunk_tokens=40, publish=published.append)
    engine._pace = pace = Pace()
    submit(engine, request(made, "The sea.", request_id="first", max_tokens=30))
    engine.step()
    submit(engine, request(made, "It rained. " * 6, request_id="second", max_tokens=3))
    while engine.num_active:
        engine.step()
    engine.runner.tap.remove()
    prompts = [step.num_tokens for each in published for step in each.steps if step.phase is Phase.PREFILL]
    assert max(prompts[1:]) == (5 if is_native else 40)
    first, second = (len(made.tokenizer(text).input_ids) for text in ("The sea.", "It rained. " * 6))
    assert prompts[0] == first
    if is_native:
        assert pace.told[:4] == [(first, None), (second, 1), (second - 5, 2), (second - 10, 3)]


# --- where it is not possible ---


def test_models_of_other_shapes_are_computed_by_transformers(tmp_path, caplog):
    tiny.language_model(d_model=48).model.to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        made = native.load(tmp_path)
    assert made.blocks is None
    assert "computed by transformers" in caplog.text
    assert "hidden_size must be a multiple of 32, got 48" in caplog.text
    assert tiny.logits(made.model).isfinite().all()


@pytest.mark.parametrize("flag", ["attention_bias", "mlp_bias"])
def test_biases_that_the_kernels_do_not_add_are_left_to_transformers(tmp_path, caplog, flag):
    native.save_model(tmp_path, **{flag: True})
    made = native.load(tmp_path)
    assert made.blocks is None
    part = "self_attn.o_proj" if flag == "attention_bias" else "mlp.gate_proj"
    assert f"only queries, keys and values may have biases, got one in 0.{part}" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 80, "num_attention_heads": 4}, "hidden_size must be a multiple of 32, got 80"),
        ({"intermediate_size": 176}, "intermediate_size must be a multiple of 32, got 176"),
        ({"head_dim": 48}, "heads must be a multiple of 32 wide, 256 at most, got 48"),
        ({"head_dim": 288}, "heads must be a multiple of 32 wide, 256 at most, got 288"),
        ({"num_attention_heads": 34, "hidden_size": 544}, "up to 16 query heads may share keys and values, got 17"),
        ({"num_attention_heads": 5, "hidden_size": 160}, "5 query heads can't share 2 of keys and values evenly"),
    ],
)
def test_shapes_that_the_kernels_have_no_room_for_are_refused(changes, said):
    with torch.device("meta"):
        check(LlamaForCausalLM(LlamaConfig(**native.SHAPES)))
        made = LlamaForCausalLM(LlamaConfig(**(native.SHAPES | changes)))
    with pytest.raises(ValueError, match=said):
        check(made)


def test_the_widest_shapes_are_taken():
    changes = {"head_dim": 256, "num_attention_heads": 32}
    with torch.device("meta"):
        check(LlamaForCausalLM(LlamaConfig(**(native.SHAPES | changes))))


OTHERS = {
    "phi": (PhiConfig, PhiForCausalLM),
    "cohere": (CohereConfig, CohereForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_other_kinds_are_computed_by_transformers(tmp_path, caplog, kind):
    config_class, model_class = OTHERS[kind]
    shapes = {name: value for name, value in native.SHAPES.items() if name != "head_dim"}
    model_class(config_class(**shapes)).save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    made = native.load(tmp_path)
    assert made.blocks is None
    assert f"its blocks are no plain Llama or Qwen2 ones: {kind.capitalize()}Attention" in caplog.text
    assert tiny.logits(made.model).isfinite().all()


@pytest.mark.parametrize("native_kernels", [True, False])
@pytest.mark.parametrize(
    ("config", "model_class", "part"),
    [
        (GPT2Config(n_embd=32, n_layer=1, n_head=1, vocab_size=259, n_positions=16), GPT2LMHeadModel, "transformer"),
        (
            GPTNeoXConfig(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32, vocab_size=259
            ),
            GPTNeoXForCausalLM,
            "gpt_neox",
        ),
    ],
    ids=["gpt2", "gpt_neox"],
)
def test_a_model_that_is_not_like_llama_is_refused_alike(tmp_path, config, model_class, part, native_kernels):
    config.bos_token_id, config.eos_token_id = 0, 2
    model_class(config).save_pretrained(tmp_path / "other")
    assert hasattr(model_class(config), part)
    tiny.byte_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(language_model.ModelError) as error:
        native.load(tmp_path / "other", native_kernels=native_kernels)
    wanted = f"model other: {model_class.__name__} has no model.layers: only Llama-like decoders can be tapped"
    assert str(error.value) == wanted


def test_end_tokens_are_those_of_the_generation_config(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    GenerationConfig(bos_token_id=0, eos_token_id=[2, 7]).save_pretrained(tmp_path / "model")
    made = native.load(tmp_path / "model")
    assert made.blocks is not None
    assert made.eos_token_ids == {2, 7}


def test_with_too_little_memory_to_pack_transformers_computes(folder, caplog, monkeypatch):
    config = LlamaConfig(**native.SHAPES)
    stored, headroom = (folder / "model.safetensors").stat().st_size, 512 * 2**20
    monkeypatch.setattr(weights, "available_memory_bytes", lambda _: headroom + stored + packing_bytes(config))
    assert native.load(folder).blocks is not None
    monkeypatch.setattr(weights, "available_memory_bytes", lambda _: headroom + stored + packing_bytes(config) - 1)
    assert native.load(folder).blocks is None
    assert "packing its weights needs about 0.0 GiB and 0.5 GiB to work in" in caplog.text


def test_without_a_compiler_transformers_computes(folder, caplog, monkeypatch):
    def missing(_cache_dir):
        raise NativeKernelsMissing("there is no C compiler")

    native.library()
    monkeypatch.setattr(language_model.native, "load", missing)
    monkeypatch.setattr(native, "library", lambda: None)
    with caplog.at_level(logging.WARNING):
        made = native.load(folder)
    assert made.blocks is None
    assert "there is no C compiler" in caplog.text


@pytest.mark.parametrize("changes", [{"dtype": "float32"}, {"native_kernels": False}])
def test_nothing_is_packed_that_was_not_asked_for(folder, monkeypatch, changes):
    monkeypatch.setattr(language_model, "load_natively", lambda *_, **__: pytest.fail("loaded natively"))
    assert native.load(folder, **changes).blocks is None


def test_a_processor_may_have_a_number(folder):
    made = native.load(folder, device="cpu:0")
    assert made.blocks is not None and made.identity.device == "cpu:0"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantization_on_loading_is_not_passed_over(tmp_path, monkeypatch, quantization):
    tiny.language_model(d_model=tiny.WIDE).model.save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(language_model, "load_natively", lambda *_, **__: pytest.fail("loaded natively"))
    made = native.load(tmp_path, quantization=quantization)
    assert made.blocks is None and made.identity.quantization == quantization
    assert made.model.is_quantized


def test_a_tensor_that_is_missing_is_named(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(language_model.ModelError, match=r"missing tensor model\.layers\.2\.mlp\.down_proj\.weight"):
        native.load(tmp_path)


def test_a_tensor_of_another_shape_is_named(folder, tmp_path):
    """By transformers, to whom a model is left that does not fit its config."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] = torch.zeros(96, 128)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(language_model.ModelError, match=r"model\.layers\.2\.mlp\.down_proj\.weight"):
        native.load(tmp_path)


def test_memory_is_counted(ours):
    """What is packed once, and what else there is; nothing twice."""
    parameters = [p for p in ours.model.parameters() if p.device.type != "meta"]
    rest = sum(p.numel() * p.element_size() for p in parameters)
    assert ours.weights_bytes == rest + ours.blocks.packed_bytes
    assert {p.dim() for p in parameters} == {1, 2}
    assert sum(p.dim() == 2 for p in parameters) == 1  # the embedding
