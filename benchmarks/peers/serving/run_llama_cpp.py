"""llama.cpp on the GGUF file itself, through llama-cpp-python's low-level interface; it reads nothing.

    python run_llama_cpp.py --data DATA                                       # the work of all peers
    python run_llama_cpp.py --data DATA --streams 1 16 --tokens 128           # its decode speed alone

Several requests are sequences of one context and are decoded as one batch: the high-level class has one stream only.
A control vector belongs to a context, so that a steered request needs a context of its own, and the others and it
are decoded in turns.
"""

import argparse
import ctypes
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
from common import Array, Emit, Generate, Timed, Work, machine, main

MAX_CONTEXT = 512
"""Positions a sequence may have."""


class Entry(NamedTuple):
    """A token of a batch."""

    token: int
    position: int
    sequence: int
    wanted: bool
    """Whether logits are wanted of it."""


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _data: Any) -> None:
    """Its log says nothing of a run."""


class Model:
    """The weights, which contexts share."""

    def __init__(self, path: str) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.handle = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if self.handle is None:
            raise SystemExit(f"llama.cpp can't load {path}")
        self.num_layers = llama_cpp.llama_model_n_layer(self.handle)
        self.width = llama_cpp.llama_model_n_embd(self.handle)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))


class Context:
    """Keys and values of some sequences."""

    def __init__(self, model: Model, num_sequences: int, threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = MAX_CONTEXT * num_sequences, num_sequences
        params.n_batch = params.n_ubatch = MAX_CONTEXT
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self.model, self.handle = model, llama_cpp.llama_init_from_model(model.handle, params)
        if self.handle is None:
            raise SystemExit(f"llama.cpp can't make a context of {num_sequences} sequences")
        self.batch = llama_cpp.llama_batch_init(MAX_CONTEXT, 0, 1)

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.handle), True)

    def steer(self, delta_D: Array | None, layer: int) -> None:
        """Add `delta_D` to the output of block `layer` from now on, or nothing."""
        if delta_D is None:
            llama_cpp.llama_set_adapter_cvec(self.handle, None, 0, self.model.width, -1, -1)
            return
        # A row for each block but the first.
        rows_LD = np.zeros((self.model.num_layers - 1, self.model.width), dtype=np.float32)
        rows_LD[layer - 1] = delta_D
        data = rows_LD.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if llama_cpp.llama_set_adapter_cvec(self.handle, data, rows_LD.size, self.model.width, layer, layer):
            raise SystemExit("llama.cpp refuses the control vector")

    def decode(self, entries: Sequence[Entry]) -> list[int]:
        """One pass; the likeliest next token of each entry whose logits are wanted."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, entry in enumerate(entries):
            batch.token[i], batch.pos[i] = entry.token, entry.position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, entry.sequence
            batch.logits[i] = entry.wanted
        if status := llama_cpp.llama_decode(self.handle, batch):
            raise SystemExit(f"llama_decode ended with {status}")
        num_wanted = sum(entry.wanted for entry in entries)
        logits = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits(self.handle), shape=(num_wanted, self.model.vocab_size)
        )
        return [int(token) for token in logits.argmax(axis=1)]

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """All prompts in one pass, each a sequence; the first token of each."""
        return self.decode(
            [
                Entry(token, position, sequence, position == len(ids) - 1)
                for sequence, ids in enumerate(prompts)
                for position, token in enumerate(ids)
            ]
        )

    def step(self, tokens: Sequence[int], position: int) -> list[int]:
        """The next token of each sequence."""
        return self.decode([Entry(token, position, sequence, True) for sequence, token in enumerate(tokens)])


class Batches:
    """Requests in one context, the steered one in its own."""

    def __init__(self, data: Path, work: Work, threads: int) -> None:
        self.work, model = work, Model(work.gguf)
        self.many, self.single = Context(model, len(work.prompts), threads), Context(model, 1, threads)
        with np.load(data / "dictionary.npz") as arrays:
            self.delta_D = arrays["delta_D"]

    def __call__(self, prompts: list[list[int]], steered: int | None, emit: Emit) -> None:
        plain = [request for request in range(len(prompts)) if request != steered]
        groups: list[tuple[Context, list[int]]] = [(self.single if len(prompts) == 1 else self.many, plain)]
        if steered is not None:
            groups.append((self.single, [steered]))
        self.single.steer(self.delta_D if steered is not None else None, self.work.layer)
        tokens: list[list[int]] = []
        for context, requests in groups:
            context.clear()
            tokens.append(context.prefill([prompts[request] for request in requests]))
            _emit(emit, requests, tokens[-1])
        for number in range(self.work.num_tokens - 1):
            for i, (context, requests) in enumerate(groups):
                tokens[i] = context.step(tokens[i], len(prompts[0]) + number)
                _emit(emit, requests, tokens[i])


def _emit(emit: Emit, requests: Sequence[int], tokens: Sequence[int]) -> None:
    for request, token in zip(requests, tokens, strict=True):
        emit(request, token, None)


def make(data: Path, work: Work, threads: int) -> Generate:
    return Batches(data, work, threads)


# --- its speed alone --------------------------------------------------------------------------------------------------


def plain_speed(model: Model, prompts: Sequence[Sequence[int]], num_tokens: int, threads: int) -> dict[str, float]:
    """One batch of streams, from nothing."""
    context = Context(model, len(prompts), threads)
    timed = Timed(len(prompts))
    tokens = context.prefill(prompts)
    _emit(timed.emit, range(len(prompts)), tokens)
    for number in range(num_tokens - 1):
        tokens = context.step(tokens, len(prompts[0]) + number)
        _emit(timed.emit, range(len(prompts)), tokens)
    llama_cpp.llama_batch_free(context.batch)
    llama_cpp.llama_free(context.handle)
    return timed.figures(num_tokens)


def high_level_speed(path: str, prompt: list[int], num_tokens: int, threads: int, rounds: int) -> list[float]:
    """Decode tokens per second of `Llama.create_completion(stream=True)`, by round."""
    llama = llama_cpp.Llama(path, n_ctx=MAX_CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)
    rates = []
    for _ in range(rounds + 1):  # the first warms up
        llama.reset()
        options = {"max_tokens": num_tokens, "temperature": 0.0, "logit_bias": {llama.token_eos(): -100.0}}
        times = [time.perf_counter() for _ in llama.create_completion(prompt, stream=True, **options)]
        rates.append((num_tokens - 1) / (times[-1] - times[0]))
    return rates[1:]


def speed_llama_cpp(argv: list[str]) -> None:
    """Decode speed at some numbers of streams, with nothing else. Ends with one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder with what prepare.py wrote")
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=128, help="per stream")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--high-level", action="store_true", help="also create_completion, which has one stream")
    args = parser.parse_args(argv)
    work = Work.load(args.data)
    model = Model(work.gguf)
    rates: dict[int, list[float]] = {n: [] for n in args.streams}
    for number in range(args.rounds + 1):
        for n in args.streams:
            prompts = [work.prompts[i % len(work.prompts)] for i in range(n)]
            rate = plain_speed(model, prompts, args.tokens, args.threads)["decode_tokens_per_second"]
            if number:
                rates[n].append(rate)
    result: dict[str, Any] = {
        "peer": "llama_cpp",
        "decode_tokens_per_second": {n: round(statistics.median(values), 1) for n, values in rates.items()},
        "rounds": {n: [round(value, 1) for value in values] for n, values in rates.items()},
        "tokens_per_stream": args.tokens,
        "prompt_tokens": len(work.prompts[0]),
        "threads": args.threads,
        "versions": {"llama_cpp_python": version("llama_cpp_python")},
        "system": llama_cpp.llama_print_system_info().decode().strip(),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if args.high_level:
        rounds = high_level_speed(work.gguf, work.prompts[0], args.tokens, args.threads, args.rounds)
        result["high_level_decode_tokens_per_second"] = round(statistics.median(rounds), 1)
    print(json.dumps(result))


if __name__ == "__main__":
    if "--streams" in sys.argv:
        speed_llama_cpp(sys.argv[1:])
    else:
        facts = {
            "dtype": "gguf-q4_1",
            "reads": "nothing",
            "steers": "a whole context, by a control vector",
            "alerts": "no",
            "system": llama_cpp.llama_print_system_info().decode().strip(),
        }
        main("llama_cpp", ["llama_cpp_python"], make, facts=facts)
