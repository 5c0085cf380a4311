"""nnsight: `generate` traced, with one intervention that reads a block's output at every step.

    python run_nnsight.py --data DATA

All requests are one invoke, a batch. An invoke for each, which lets each see only its own row, was as fast.

Shape suffixes: B requests, T tokens of a pass, D model width.
"""

from pathlib import Path
from typing import Any

import torch
from common import Emit, Generate, Work, main
from nnsight import TransformersModel
from watching import Watching


class TracedGenerate:
    """`generate` of a batch, its block's output read at every step and one request steered there."""

    def __init__(self, model: Any, watching: Watching, work: Work) -> None:
        self.model, self.watching, self.work = model, watching, work

    @torch.inference_mode()
    def __call__(self, prompts: list[list[int]], steered: int | None, emit: Emit) -> None:
        model, watching, layer = self.model, self.watching, self.work.layer
        num_passes = self.work.num_tokens + 1
        options = {"max_new_tokens": num_passes, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with model.generate(torch.tensor(prompts), **options) as tracer:
            tokens, readings = [], []
            # What the streamer gets first is the prompt; then, before each pass, the tokens that the pass reads. The
            # last ones are one more than was asked for.
            for step in tracer.iter[: num_passes + 1]:
                put = model.generator.streamer.output
                for request, token in enumerate(tokens):
                    emit(request, token, readings[request])
                if step == num_passes:
                    break
                resid_BTD = model.model.layers[layer].output
                if step:
                    tokens = put.tolist()
                    readings = watching.read(resid_BTD[:, 0]).tolist()
                if steered is not None:
                    resid_BTD[steered] = watching.steered(resid_BTD[steered])


def make(data: Path, work: Work, threads: int) -> Generate:
    torch.set_num_threads(threads)
    model = TransformersModel(work.model, task="text-generation", dtype=torch.bfloat16, dispatch=True)
    return TracedGenerate(model, Watching(data), work)


if __name__ == "__main__":
    facts = {
        "dtype": "bfloat16",
        "reads": "the watched latents, in the trace",
        "steers": "a row of the batch, in the trace",
        "alerts": "no",
    }
    main("nnsight", ["nnsight", "transformers", "torch"], make, facts=facts)
