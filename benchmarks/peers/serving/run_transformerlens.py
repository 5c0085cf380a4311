"""TransformerLens generates, with a hook; SAELens encodes with the whole dictionary in its own format.

    python run_transformerlens.py --data DATA

Shape suffixes: B requests, T tokens of a pass, D model width.
"""

from pathlib import Path
from typing import Any

import torch
from common import Emit, Generate, Work, main
from sae_lens import SAE
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer
from watching import Watching


class HookedStream:
    """`generate_stream` of a batch whose hook reads a block's output, and steers one request there."""

    def __init__(self, model: Any, sae: Any, watching: Watching, work: Work) -> None:
        self.model, self.sae, self.watching, self.work = model, sae, watching, work

    @torch.inference_mode()
    def __call__(self, prompts: list[list[int]], steered: int | None, emit: Emit) -> None:
        readings: list[list[float]] = []

        def hook(resid_BTD: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - it is passed by name
            if resid_BTD.shape[1] == 1:  # of prompts nothing is asked
                readings[:] = self.sae.encode(resid_BTD[:, 0].float())[:, self.work.watched].tolist()
            if steered is not None:
                resid_BTD[steered] = self.watching.steered(resid_BTD[steered])
            return resid_BTD

        stream = self.model.generate_stream(
            torch.tensor(prompts),
            max_new_tokens=self.work.num_tokens + 1,
            max_tokens_per_yield=1,
            stop_at_eos=False,
            do_sample=False,
            return_type="tokens",
            verbose=False,
        )
        tokens: list[int] = []
        with self.model.hooks(fwd_hooks=[(f"blocks.{self.work.layer}.hook_resid_post", hook)]):
            # Each yield ends with the tokens that the next pass reads; the last ones are one more than asked for.
            for new_BT in stream:
                for request, token in enumerate(tokens):
                    emit(request, token, readings[request])
                tokens = new_BT[:, -1].tolist()


def make(data: Path, work: Work, threads: int) -> Generate:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.bfloat16, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(work.model, local_files_only=True)
    bridge = TransformerBridge.boot_transformers(
        work.model, hf_model=model, tokenizer=tokenizer, dtype=torch.bfloat16, device="cpu"
    )
    return HookedStream(bridge, SAE.load_from_disk(data / "saelens"), Watching(data), work)


if __name__ == "__main__":
    facts = {
        "dtype": "bfloat16",
        "reads": "all latents, by SAELens in a hook",
        "steers": "a row of the batch, in the hook",
        "alerts": "no",
    }
    main("transformerlens", ["transformer-lens", "sae-lens", "transformers", "torch"], make, facts=facts)
