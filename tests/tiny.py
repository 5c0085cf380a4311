"""Small real parts for tests: a random Llama, a byte tokenizer, a random dictionary, an engine around them."""

import math
from collections.abc import Sequence
from typing import Any

import tiny_packs
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from monitors.monitor_spec import MonitorSpec
from sae_runtime.fused_blocks import FusedBlocks
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel, wrap_model
from sae_runtime.latent_reader import LatentReader
from sae_runtime.probes import Probe, ProbeSet
from sae_runtime.sae import SAE
from sae_runtime.static_reading import StaticReading
from sae_runtime.steering_spec import SteeringLimits
from sae_runtime.tap import Tap
from service.admission import Admission
from service.cuda_graphs import Recorder
from service.decode_step import Machinery
from service.engine import Engine
from service.fixed_decode import FixedDecode
from service.model_runner import ModelRunner
from service.scheduler import Scheduler
from service.slot_cache import SlotCache

D_MODEL, NUM_LATENTS, NUM_LAYERS, NUM_POSITIONS = 32, 64, 4, 256
WIDE = 64
"""As `d_model`: what bitsandbytes takes on a CPU."""
HOOK_POINT = HookPoint(1, "output")
SPECIAL_TOKENS = ["<|bos|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and three special ones. Tokens cut UTF-8 characters apart, as byte-level BPE can."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    # Blocks with biases on queries, keys and values.
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def language_model(*, seed: int = 0, architecture: str = "llama", d_model: int = D_MODEL) -> LanguageModel:
    """A random model in fp32 whose logits are far enough apart for greedy comparisons."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    config_class, model_class = ARCHITECTURES[architecture]
    config = config_class(
        hidden_size=d_model,
        intermediate_size=64,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=NUM_POSITIONS,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = model_class(config).eval()
    return wrap_model(
        model, tokenizer, name="tiny", sha256="0" * 64, quantization="none", dtype=torch.float32, device="cpu"
    )


def say_letters(made: LanguageModel) -> LanguageModel:
    """The same model, its greedy replies made of letters and blanks alone: as text they keep their tokens."""
    spoken = {made.tokenizer.convert_tokens_to_ids(token) for token in [*"abcdefghijklmnopqrstuvwxyz", "Ġ"]}
    with torch.no_grad():
        for token, row_D in enumerate(made.model.lm_head.weight):
            if token not in spoken:
                row_D.zero_()  # some of the others' logits are above 0
    return made


def logits(model: nn.Module) -> torch.Tensor:
    """What a model makes of a few tokens [1, T, V]: equal for two only if they compute the same."""
    with torch.inference_mode():
        return model(torch.tensor([[0, 5, 9, 70, 31, 200]])).logits


def sae(activation: str = "topk", *, seed: int = 1, d_model: int = D_MODEL, **settings: object) -> SAE:
    """A random dictionary; about half of its latents fire."""
    generator = torch.Generator().manual_seed(seed)
    made = SAE(d_model=d_model, num_latents=NUM_LATENTS, activation=activation, k=8, **settings)  # type: ignore[arg-type]
    for name, tensor in made.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
        if name == "threshold":
            tensor.abs_()
    return made.requires_grad_(False)


def limits(dictionary: SAE, max_relative_norm: float = 20.0) -> SteeringLimits:
    return SteeringLimits.of(dictionary, resid_norm_mean=3.0, max_relative_norm=max_relative_norm)


def probe(name: str, hook_point: str, *, seed: int = 0, bias: float = 0.0) -> Probe:
    """A probe along a random direction."""
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    return Probe(name, HookPoint.parse(hook_point), direction.tolist(), bias)


def model_runner(
    model: LanguageModel,
    dictionary: LatentReader,
    *,
    num_slots: int = 4,
    probes: Sequence[Probe] = (),
    with_fixed: bool = False,
    recorded: bool = False,
) -> ModelRunner:
    """With `with_fixed` decode passes have fixed shapes; `recorded` as CUDA graphs over fused blocks."""
    config = model.model.config
    cache = SlotCache(
        num_layers=NUM_LAYERS,
        num_slots=num_slots,
        num_heads=config.num_key_value_heads,
        num_positions=NUM_POSITIONS,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        dtype=model.model.dtype,
        device=model.device,
        with_scratch=with_fixed,
    )
    tap = Tap(model.model, HOOK_POINT, config.hidden_size)
    probe_set = ProbeSet(model.model, probes, shared=tap, device=model.device) if probes else None
    fixed = None
    if with_fixed:
        fused = FusedBlocks(model.model) if recorded else None
        machinery = Machinery(model.model, tap, cache, StaticReading(dictionary), probe_set, math.inf, fused)
        record = Recorder(model.device).record if recorded else None
        fixed = FixedDecode(machinery, model.device, record=record)
    return ModelRunner(model, dictionary, tap, cache, probes=probe_set, fixed=fixed)


def engine(
    model: LanguageModel,
    dictionary: SAE,
    *,
    num_slots: int = 4,
    chunk_tokens: int = 16,
    max_requests: int = 64,
    max_prompt_tokens: int = 10_000,
    probes: Sequence[Probe] = (),
    with_fixed: bool = False,
    recorded: bool = False,
    **settings: object,
) -> Engine:
    """An engine that is not started: tests call `step` themselves, or `start`."""
    return Engine(
        model_runner(model, dictionary, num_slots=num_slots, probes=probes, with_fixed=with_fixed, recorded=recorded),
        Scheduler(num_slots, chunk_tokens),
        Admission(num_slots=num_slots, max_requests=max_requests, max_prompt_tokens=max_prompt_tokens),
        steering_limits=limits(dictionary),
        **settings,  # type: ignore[arg-type]
    )


def monitor_spec(
    name: str = "watcher", *, features: tuple[int, ...] = (3,), threshold: float = 0.5, **changes: Any
) -> MonitorSpec:
    """A monitor of latents that warns above `threshold`."""
    warning = tiny_packs.thresholds(threshold)
    return tiny_packs.pack(name, [tiny_packs.feature_component(*features)], thresholds=warning, **changes).spec()
