"""What the server is measured against: `generate`, a plain prefill pass, llama.cpp, and how fast memory is read."""

import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SUMS = 9
LLAMA_CPP_SCRIPT = Path(__file__).parent / "peers/serving/run_llama_cpp.py"


def generate_rate(model: Any, ids: Sequence[int], num_streams: int, num_tokens: int) -> float:
    """Tokens per second of `generate` over equal prompts together, its prefill left out."""
    prompts_BT = torch.tensor([list(ids)] * num_streams)
    options = {"attention_mask": torch.ones_like(prompts_BT), "do_sample": False, "eos_token_id": None}
    times = []
    for length in (1, num_tokens):
        started = time.perf_counter()
        model.generate(prompts_BT, max_new_tokens=length, pad_token_id=0, **options)
        times.append(time.perf_counter() - started)
    return num_streams * (num_tokens - 1) / (times[1] - times[0])


def prefill_seconds(model: Any, ids: Sequence[int]) -> float:
    """Of one pass over a prompt that keeps its keys and values and gives the logits of the last token."""
    ids_BT = torch.tensor([list(ids)])
    started = time.perf_counter()
    with torch.inference_mode():
        model(ids_BT, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp on the same file, in an environment of its own."""

    python: str
    """Interpreter that has llama-cpp-python."""
    script: Path
    """benchmarks/peers/serving/run_llama_cpp.py"""
    data: Path
    """Folder that prepare.py, beside the script, wrote."""

    def rates(self, streams: Sequence[int], num_tokens: int, num_threads: int) -> dict[int, float]:
        """Decode tokens per second, by number of streams; one round after one that warms up.

        Raises:
            RuntimeError: it failed.
        """
        command = [self.python, str(self.script), "--data", str(self.data), "--rounds", "1"]
        command += ["--tokens", str(num_tokens), "--threads", str(num_threads), "--streams", *map(str, streams)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"llama.cpp failed: {done.stderr.strip()}")
        found = json.loads(done.stdout.splitlines()[-1])["decode_tokens_per_second"]
        return {n: float(found[str(n)]) for n in streams}


def read_bandwidth(num_bytes: int = 2**30) -> float:
    """Bytes per second that a sum over memory far larger than any cache reads, with torch's threads; median of some."""
    numbers, seconds = _numbers(num_bytes), []
    for _ in range(_SUMS):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return num_bytes / statistics.median(seconds)


@cache
def _numbers(num_bytes: int) -> Tensor:
    return torch.ones(num_bytes // 4)
