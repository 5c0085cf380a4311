"""The same server with nothing read of what the model writes: what monitoring is measured against.

    python -m benchmarks.unmonitored --grpc-port 0 --http-port 0 --log-format json

Takes the flags of `telltale serve`. For benchmarks only: the server itself has no way to leave tokens unmonitored.

Taken out are the tap's hook, the dictionary, probes and monitors, and with the dictionary what a server reads and
counts of it whether anybody asked or not: the features of its watch list, the inputs of its monitors, and FVU. Left of
monitoring is its frame, which takes the same for every token or pass whatever is read: flags that say of each token
that it is finite and on scale, empty arrays of readings, and the counters of tokens and passes.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from service import assembly, cli
from service.config import NO_DICTIONARY
from service.model_runner import ModelRunner
from service.pass_output import PassOutput, RowInput, TokenStats
from service.sampling import Draw

FLAGS = ["--sae", NO_DICTIONARY, "--no-shipped-monitors"]
"""Of the server, behind those that were given."""


class Unmonitored(ModelRunner):
    """A ModelRunner that reads nothing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self.language_model.blocks is not None, "nothing to compare with: native kernels don't compute the model"
        assert not self.sae.num_latents and not self.probe_names, f"to be served with {' '.join(FLAGS)}"
        self.tap.remove()  # the kernels would stop at its block

    def forward(
        self,
        rows: Sequence[RowInput],
        latents: Sequence[int],
        *,
        num_top: int = 0,
        all_logits: bool = False,
        with_probes: bool = False,  # noqa: ARG002
        with_logprobs: bool = False,
    ) -> PassOutput:
        """`ModelRunner.forward` without reading anything."""
        assert not latents and not num_top, "nothing is read here"
        ids_BT = torch.from_numpy(np.array([row.ids for row in rows], dtype=np.int64))
        with torch.inference_mode():
            logits_BTV = self.logits(ids_BT, rows, all_logits=all_logits)
        n = ids_BT.numel()
        nothing_N0, zero_N = np.empty((n, 0), dtype=np.float32), np.zeros(n, dtype=np.float32)
        stats = TokenStats(
            nothing_N0, nothing_N0, nothing_N0, zero_N, zero_N, np.ones(n, dtype=np.float32), zero_N, nothing_N0,
            nothing_N0,
        )  # fmt: skip
        blocks = self.language_model.blocks
        assert blocks is not None
        likely = blocks.most_likely(logits_BTV[:, -1], with_logprobs=with_logprobs)
        return PassOutput(logits_BTV, stats, {}, n, 0.0, Draw(*likely))


if __name__ == "__main__":
    assembly.ModelRunner = Unmonitored  # type: ignore[misc]
    sys.exit(cli.main(["serve", *sys.argv[1:], *FLAGS]))
