"""The same server with the tap, the dictionary and the monitors taken out: what monitoring is measured against.

    python -m benchmarks.unmonitored --grpc-port 0 --http-port 0 --log-format json

Takes the flags of `telltale serve`. For benchmarks only: the server itself has no way to leave tokens unmonitored.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch

from service import cli
from service.model_runner import ModelRunner
from service.pass_output import PassOutput, RowInput, TokenStats
from service.sampling import Draw


def forward(
    runner: ModelRunner,
    rows: Sequence[RowInput],
    latents: Sequence[int],
    *,
    num_top: int = 0,
    all_logits: bool = False,
    with_probes: bool = False,
) -> PassOutput:
    """`ModelRunner.forward` without reading anything."""
    ids_BT = torch.tensor([list(row.ids) for row in rows])
    with torch.inference_mode():
        logits = runner.logits(ids_BT, rows, all_logits=all_logits)
    n = ids_BT.numel()
    nothing_N, num_probes = np.zeros(n, dtype=np.float32), len(runner.probe_names) if with_probes else 0
    stats = TokenStats(
        np.zeros((n, len(latents)), dtype=np.float32),
        *[np.zeros((n, num_top), dtype=np.float32)] * 2,
        nothing_N,
        nothing_N,
        np.ones(n, dtype=np.float32),
        nothing_N,
        *[np.zeros((n, num_probes), dtype=np.float32)] * 2,
    )
    blocks = runner.language_model.blocks
    assert blocks is not None, "nothing to compare with: the model is not computed by native kernels"
    return PassOutput(logits, stats, {}, n, 0.0, Draw(*blocks.most_likely(logits[:, -1])))


if __name__ == "__main__":
    ModelRunner.forward = forward  # type: ignore[method-assign]
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
