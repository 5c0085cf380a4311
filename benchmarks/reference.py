"""The reference deployment's shape - Llama 3.2 3B, nf4, dictionary 3072 -> 65536 - with random weights, on any device.

    python -m benchmarks.reference --device cuda                 # as deployed
    python -m benchmarks.reference --device cpu --layers 2 --latents 4096 --quantization none   # a try-out

Measures decode tokens/s at several numbers of streams: `transformers.generate`; the engine (no gRPC) with passes run
eagerly; and, where there is a GPU, with passes played as CUDA graphs, with the dictionary and without it. Checks on the
way that every token was tapped and that streamed readings equal an offline pass. Beside them stands the floor: the
bytes that a step must read over the bandwidth of a copy. Random weights say nothing about quality; speed and memory are
those of the real ones. Ends with one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reference_parts import LLAMA_3_2_3B, prepare
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel
from sae_runtime.latent_reader import NoDictionary
from sae_runtime.sae import SAE
from sae_runtime.static_reading import StaticReading
from sae_runtime.steering_spec import SteeringLimits
from sae_runtime.tap import Tap
from service.admission import Admission
from service.assembly import Parts
from service.cuda_graphs import Recorder
from service.engine import Engine
from service.fixed_decode import FixedDecode
from service.model_runner import ModelRunner
from service.published import Published
from service.request import Request, SamplingParams, TokenEvent
from service.scheduler import Scheduler

PROMPT_TOKENS = 64
NUM_WATCHED = 64
_WARM_UP_TOKENS = 8


def offline_latents(parts: Parts, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Latents [T, F] of a text read in one pass, and what each would be if it were chosen: its pre-activation."""
    ids_1T = torch.tensor([ids], device=parts.runner.language_model.device)
    sae = dictionary(parts)
    with torch.inference_mode(), parts.runner.tap.step(len(ids)) as record:
        parts.runner.language_model.model(ids_1T, use_cache=False, logits_to_keep=1)
    assert record.resid_BTD is not None
    with torch.inference_mode():
        return sae.encode(record.resid_BTD[0]), sae.preactivate(record.resid_BTD[0]).relu()


def dictionary(parts: Parts) -> SAE:
    assert isinstance(parts.runner.sae, SAE), "there must be a dictionary to compare with"
    return parts.runner.sae


def reading_error(
    parts: Parts, prompt_ids: Sequence[int], events: Sequence[TokenEvent], watched: Sequence[int]
) -> dict[str, float]:
    """Streamed readings beside an offline pass over the same tokens.

    bf16 passes of different shapes differ in low bits, and a latent at the edge of the chosen ones may be in or out. So
    only clear cases count: latents far above the token's smallest active one, which must be streamed as they are, and
    those far below it, which must be streamed as 0.
    """
    f_TF, relu_TF = offline_latents(parts, [*prompt_ids, *(event.id for event in events)])
    f_TF, relu_TF = f_TF[len(prompt_ids) :].cpu(), relu_TF[len(prompt_ids) :].cpu()
    least_T1 = f_TF.masked_fill(f_TF == 0, torch.inf).min(dim=-1, keepdim=True).values
    wanted_TW, possible_TW = f_TF[:, list(watched)], relu_TF[:, list(watched)]
    got_TW = torch.tensor([event.readings for event in events])
    is_in, is_out = wanted_TW > 1.1 * least_T1, possible_TW < 0.9 * least_T1
    error_TW = (got_TW - wanted_TW).abs() * (is_in | is_out)
    largest = wanted_TW.max().clamp(min=1e-9)
    return {
        "max_reading_error_ratio": round(float(error_TW.max() / largest), 5),
        "active_readings_compared": int(is_in.sum()),
    }


class Measured(NamedTuple):
    """One run of an engine."""

    tokens_per_second: float
    step_milliseconds: float
    """Median time of a step."""
    events: list[TokenEvent]
    """Of the first stream."""
    watched: tuple[int, ...]


def prompt(stream: int, vocab_size: int, num_tokens: int = PROMPT_TOKENS) -> tuple[int, ...]:
    """A stream's own random tokens."""
    generator = torch.Generator().manual_seed(stream)
    return tuple(torch.randint(5, min(40_000, vocab_size), (num_tokens,), generator=generator).tolist())


def run(
    runner: ModelRunner,
    limits: SteeringLimits,
    num_streams: int,
    num_tokens: int,
    watched: tuple[int, ...],
    *,
    prompt_tokens: int = PROMPT_TOKENS,
) -> Measured:
    """Decode equal streams; every token must have been tapped."""
    tapped: list[int] = []

    def publish(published: Published) -> None:
        tapped.extend(step.num_tapped_tokens for step in published.steps)

    engine = Engine(
        runner,
        Scheduler(num_streams, 512),
        Admission(num_slots=num_streams, max_requests=1, max_prompt_tokens=10**9),
        steering_limits=limits,
        publish=publish,
    )
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    submissions = []
    for i in range(num_streams):
        engine.admission.reserve()
        ids = prompt(i, runner.language_model.vocab_size, prompt_tokens)
        request = Request(request_id=str(i), prompt_ids=ids, sampling=sampling, watched=watched)
        submissions.append(engine.admission.submit(request))
    engine.step()
    while any(row.num_unread for row in engine._roster.rows):
        engine.step()
    read, seconds = sum(tapped), []
    while engine.num_active:
        started = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started)
    total = num_streams * (prompt_tokens + num_tokens)
    assert sum(tapped) == total, f"tapped {sum(tapped)} tokens of {total}"
    events = [e for e in submissions[0].mailbox.take()[0] if isinstance(e, TokenEvent)]
    return Measured((total - read) / sum(seconds), 1e3 * statistics.median(seconds), events, watched)


def generate(model: LanguageModel, num_streams: int, num_tokens: int) -> float:
    """Tokens/s of `transformers.generate` over the same prompts, without the time to the first token."""
    ids_BT = torch.tensor([prompt(i, model.vocab_size) for i in range(num_streams)], device=model.device)

    def seconds(number: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            made = model.model.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False, max_new_tokens=number,
                min_new_tokens=number, pad_token_id=0,
            )  # fmt: skip
        assert made.shape[1] == PROMPT_TOKENS + number
        _wait(model.device)
        return time.perf_counter() - started

    seconds(2)
    return num_streams * (num_tokens - 1) / (seconds(num_tokens) - seconds(1))


def unmonitored(parts: Parts) -> ModelRunner:
    """The same model, slots and way to decode, with nothing read."""
    runner, fixed = parts.runner, parts.runner.fixed
    nothing = NoDictionary(runner.language_model.device)
    tap = Tap(runner.language_model.model, HookPoint(runner.language_model.num_layers - 1), runner.tap.d_model)
    bare = ModelRunner(runner.language_model, nothing, tap, runner.cache)
    if fixed is not None:
        machinery = replace(fixed.machinery, tap=tap, reading=StaticReading(nothing), probes=None)
        bare.fixed = FixedDecode(machinery, nothing.device, record=Recorder(nothing.device).record)
    return bare


def floor(parts: Parts, num_streams: int, num_tokens: int) -> dict[str, float]:
    """The bytes a monitored step must read, and the tokens/s they allow at the bandwidth of a copy."""
    model, sae = parts.runner.language_model, dictionary(parts)
    embedding = model.model.get_input_embeddings().weight
    # The head is the embedding's; of the embedding itself a step reads a row per stream.
    tied = model.model.get_output_embeddings().weight.data_ptr() == embedding.data_ptr()
    weights = model.weights_bytes - (0 if tied else embedding.numel() * embedding.element_size())
    keys = parts.runner.cache.keys
    position = 2 * len(keys) * keys[0].shape[1] * keys[0].shape[3] * keys[0].element_size()
    live = position * num_streams * (PROMPT_TOKENS + num_tokens // 2)
    encoder = sae.W_enc.numel() * 2  # as it is stored: bf16
    num_bytes = weights + live + encoder
    return {
        "bytes_per_step": num_bytes,
        "tokens_per_second": round(num_streams * copy_bandwidth(model.device) / num_bytes, 1),
    }


@cache
def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy far larger than any cache."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * source.numel() * source.element_size() / statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_streams(parts: Parts, bare: ModelRunner, num_streams: int, args: argparse.Namespace) -> dict[str, Any]:
    """All ways to decode, at one number of streams."""
    runner, limits = parts.runner, parts.steering_limits
    generated = generate(runner.language_model, num_streams, args.eager_tokens)
    ids = prompt(0, runner.language_model.vocab_size)
    fixed, runner.fixed = runner.fixed, None
    eager = run(runner, limits, num_streams, args.eager_tokens, tuple(range(NUM_WATCHED)))
    runner.fixed = fixed
    # Latents that fire in this text, since 0 says little when it equals 0.
    f_TF, _ = offline_latents(parts, [*ids, *(event.id for event in eager.events)])
    watched = tuple(f_TF[len(ids) :].sum(0).topk(NUM_WATCHED).indices.tolist())
    ways = {"monitored": (runner, watched), "unmonitored": (bare, ())}
    runs: dict[str, list[Measured]] = {way: [] for way in ways}
    for its_runner, its_watched in ways.values():
        run(its_runner, limits, num_streams, _WARM_UP_TOKENS, its_watched)  # records what is not recorded yet
    for _ in range(args.repeats):
        # By turns, so that what slows the machine down slows both.
        for way, (its_runner, its_watched) in ways.items():
            runs[way].append(run(its_runner, limits, num_streams, args.tokens, its_watched))
    result: dict[str, Any] = {"generate": {"tokens_per_second": round(generated, 1)}, "eager": _figures([eager])}
    result |= {way: _figures(its_runs) for way, its_runs in runs.items()}
    result["monitored"] |= reading_error(parts, ids, runs["monitored"][0].events, watched)
    slower = result["monitored"]["step_ms"] / result["unmonitored"]["step_ms"] - 1
    result["monitoring_costs_percent"] = round(100 * slower, 2)
    result["floor"] = floor(parts, num_streams, args.tokens)
    return result


def _figures(runs: Sequence[Measured]) -> dict[str, float]:
    return {
        "tokens_per_second": round(statistics.median(m.tokens_per_second for m in runs), 1),
        "step_ms": round(statistics.median(m.step_milliseconds for m in runs), 3),
    }


def measure(args: argparse.Namespace, folder: Path, shape: Mapping[str, int] = LLAMA_3_2_3B) -> dict[str, Any]:
    """Everything, as `main` prints it."""
    parts = prepare(args, folder, shape, PROMPT_TOKENS + max(args.tokens, args.eager_tokens, _WARM_UP_TOKENS) + 1)
    started = time.perf_counter()
    parts.runner.warm_up()
    warm_up_seconds = round(time.perf_counter() - started, 1)
    result: dict[str, Any] = {"decoding": parts.runner.passes, "warm_up_seconds": warm_up_seconds}
    bare = unmonitored(parts)
    result |= {str(n): measure_streams(parts, bare, n, args) for n in args.streams}
    result["copy_bytes_per_second"] = round(copy_bandwidth(parts.runner.language_model.device))
    result["planned_memory_bytes"] = parts.planned_memory.total_bytes
    result["model"] = str(parts.catalog.model.identity)
    result["versions"] = {name: version(name) for name in ("torch", "transformers")}
    if args.device.startswith("cuda"):
        result["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        result["gpu"] = torch.cuda.get_device_name()
        result["versions"] |= {name: version(name) for name in ("triton", "bitsandbytes")}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "int8", "none"])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--latents", type=int, default=65536)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--eager-tokens", type=int, default=32, help="for the slow ways")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args, Path(folder))))


if __name__ == "__main__":
    main()
