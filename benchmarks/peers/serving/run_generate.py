"""transformers' `generate` with a forward hook and a streamer, in bf16: what one writes without any other library.

    python run_generate.py --data DATA

Shape suffixes: B requests, T tokens of a pass, D model width.
"""

from pathlib import Path
from typing import Any

import torch
from common import Emit, Generate, Work, main
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer
from watching import Watching


class EmitRead(BaseStreamer):
    """Emits each token once the next one comes: by then the pass that read it has ended."""

    def __init__(self, emit: Emit) -> None:
        self.emit, self.tokens, self.readings = emit, [], []
        self.is_prompt = True

    def put(self, value: Tensor) -> None:
        if self.is_prompt:
            self.is_prompt = False
            return
        for request, token in enumerate(self.tokens):
            self.emit(request, token, self.readings[request])
        self.tokens = value.tolist()

    def end(self) -> None:
        """The last token is one more than was asked for, and has not been read."""


class HookedGenerate:
    """`generate` of a batch whose hook reads a block's output, and steers one request there."""

    def __init__(self, model: Any, watching: Watching, work: Work) -> None:
        self.model, self.watching, self.work = model, watching, work

    @torch.inference_mode()
    def __call__(self, prompts: list[list[int]], steered: int | None, emit: Emit) -> None:
        streamer = EmitRead(emit)

        def hook(_module: Any, _args: Any, output: Any) -> Any:
            resid_BTD = output[0] if isinstance(output, tuple) else output
            if resid_BTD.shape[1] == 1:  # of prompts nothing is asked
                streamer.readings = self.watching.read(resid_BTD[:, 0]).tolist()
            if steered is not None:
                resid_BTD[steered] = self.watching.steered(resid_BTD[steered])
            return output

        ids_BT = torch.tensor(prompts)
        handle = self.model.model.layers[self.work.layer].register_forward_hook(hook)
        try:
            self.model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=self.work.num_tokens + 1,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                streamer=streamer,
            )
        finally:
            handle.remove()


def make(data: Path, work: Work, threads: int) -> Generate:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.bfloat16, local_files_only=True)
    return HookedGenerate(model.eval(), Watching(data), work)


if __name__ == "__main__":
    main(
        "generate",
        ["transformers", "torch"],
        make,
        facts={
            "dtype": "bfloat16",
            "reads": "the watched latents, in a hook",
            "steers": "a row of the batch, in the hook",
            "alerts": "no",
        },
    )
