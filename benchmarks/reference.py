"""The reference deployment's shape - Llama 3.2 3B, nf4, dictionary 3072 -> 65536 - with random weights, on any device.

    python -m benchmarks.reference --device cuda                 # as deployed
    python -m benchmarks.reference --device cpu --layers 2 --latents 4096 --quantization none   # a try-out

Measures decode tokens/s and memory at several numbers of streams, in the engine (no gRPC), and checks on the way that
every token was tapped and that streamed readings equal an offline pass. Random weights say nothing about quality; speed
and memory are those of the real ones. Ends with one JSON line.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sae_runtime.checkpoint import Manifest, load_sae, save_sae
from sae_runtime.language_model import LanguageModel, load_language_model
from sae_runtime.sae import SAE
from service.admission import Admission
from service.assembly import Parts, assemble
from service.config import Settings
from service.engine import Engine
from service.published import Published
from service.request import Request, SamplingParams, TokenEvent
from service.scheduler import Scheduler

PROMPT_TOKENS = 64
NUM_WATCHED = 64


def save_random_model(folder: Path, num_layers: int, device: str) -> None:
    """A Llama of 3.2 3B's shape with random bf16 weights, drawn on `device`, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=num_layers,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        tie_word_embeddings=True,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<eos>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def save_random_dictionary(folder: Path, model: LanguageModel, layer: int, num_latents: int) -> None:
    """A top-64 dictionary with random directions, as if trained on `model`."""
    sae = SAE(d_model=model.d_model, num_latents=num_latents, activation="topk", k=64)
    with torch.no_grad():
        sae.W_dec.normal_()
        sae.W_dec /= sae.W_dec.norm(dim=-1, keepdim=True)
        sae.W_enc.copy_(sae.W_dec.T)
    manifest = Manifest(
        name="random",
        model_name=model.identity.name,
        model_sha256=model.identity.weights_sha256,
        quantization=model.identity.quantization,
        hook_point=f"layers.{layer}.output",
        d_model=model.d_model,
        num_latents=num_latents,
        activation="topk",
        k=64,
        dtype="bfloat16",
    )
    save_sae(sae, manifest, folder)


def run(parts: Parts, num_streams: int, num_tokens: int) -> dict[str, float]:
    """Decode speed of equal streams, and the integrity of what was streamed."""
    tapped: list[int] = []

    def publish(published: Published) -> None:
        tapped.extend(step.num_tapped_tokens for step in published.steps)

    engine = Engine(
        parts.runner,
        Scheduler(num_streams, 512),
        Admission(num_slots=num_streams, max_requests=1, max_prompt_tokens=10**9),
        steering_limits=parts.steering_limits,
        publish=publish,
    )
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    submissions = []
    for i in range(num_streams):
        ids = tuple(
            int(t) for t in torch.randint(5, 40_000, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(i))
        )
        engine.admission.reserve()
        request = Request(request_id=str(i), prompt_ids=ids, sampling=sampling, watched=tuple(range(NUM_WATCHED)))
        submissions.append(engine.admission.submit(request))
    engine.step()
    while any(row.num_unread for row in engine._roster.rows):
        engine.step()
    read = sum(tapped)
    started = time.perf_counter()
    while engine.num_active:
        engine.step()
    seconds = time.perf_counter() - started
    total = num_streams * (PROMPT_TOKENS + num_tokens)
    assert sum(tapped) == total, f"tapped {sum(tapped)} tokens of {total}"
    events = [e for e in submissions[0].mailbox.take()[0] if isinstance(e, TokenEvent)]
    return {
        "tokens_per_second": round((total - read) / seconds, 1),
        "max_reading_error_ratio": offline_error(parts, submissions[0].request.prompt_ids, events),
    }


def offline_error(parts: Parts, prompt_ids: tuple[int, ...], events: list[TokenEvent]) -> float:
    """Largest |streamed - offline| over the largest reading. Not zero in bf16: batch shapes change low bits."""
    ids = torch.tensor([[*prompt_ids, *(e.id for e in events)]], device=parts.runner.language_model.device)
    with torch.inference_mode(), parts.runner.tap.step(ids.numel()) as record:
        parts.runner.language_model.model(ids, use_cache=False, logits_to_keep=1)
    assert record.resid_BTD is not None
    assert isinstance(parts.runner.sae, SAE), "there must be a dictionary to compare with"
    with torch.inference_mode():
        wanted = parts.runner.sae.encode(record.resid_BTD[0])[len(prompt_ids) :, :NUM_WATCHED].cpu()
    got = torch.tensor([e.readings for e in events])
    return round(float((got - wanted).abs().max() / wanted.max().clamp(min=1e-9)), 5)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model_folder, sae_folder = folder / "random-llama-3.2-3b", folder / "dictionary"
    save_random_model(model_folder, args.layers, args.device)
    model = load_language_model(str(model_folder), quantization=args.quantization, device=args.device)
    save_random_dictionary(sae_folder, model, min(15, args.layers - 1), args.latents)
    del model
    load_sae(sae_folder)
    settings = Settings(
        model=str(model_folder), sae=str(sae_folder), quantization=args.quantization, device=args.device,
        slots=max(args.streams), context_length=PROMPT_TOKENS + args.tokens + 1,
    )  # fmt: skip
    parts = assemble(settings)
    parts.runner.warm_up()
    result: dict[str, Any] = {str(n): run(parts, n, args.tokens) for n in args.streams}
    result["planned_memory_bytes"] = parts.planned_memory_bytes
    result["model"] = str(parts.catalog.model.identity)
    if args.device.startswith("cuda"):
        result["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        result["gpu"] = torch.cuda.get_device_name()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "int8", "none"])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--latents", type=int, default=65536)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args, Path(folder))))


if __name__ == "__main__":
    main()
