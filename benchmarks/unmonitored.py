"""The same server with the tap, the dictionary and the monitors taken out: what monitoring is measured against.

    python -m benchmarks.unmonitored --grpc-port 0 --http-port 0 --log-format json

Takes the flags of `telltale serve`. For benchmarks only: the server itself has no way to leave tokens unmonitored.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from sae_runtime.cache_argument import cache_argument
from sae_runtime.last_position import last_position
from service import cli
from service.model_runner import ModelRunner
from service.pass_output import PassOutput, RowInput, TokenStats


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
    num_tokens = len(rows[0].ids)
    ids_BT = torch.tensor([list(row.ids) for row in rows])
    positions_BT, mask = runner.cache.begin([r.slot for r in rows], [r.start for r in rows], num_tokens)
    with torch.inference_mode():
        logits = runner.language_model.model(
            input_ids=ids_BT,
            position_ids=positions_BT,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=0 if all_logits else last_position(ids_BT),
            **cache_argument(runner.cache),
        ).logits.to(torch.float32)
    n = ids_BT.numel()
    nothing: Any = torch.zeros(n)
    stats = TokenStats(
        torch.zeros(n, len(latents)),
        torch.zeros(n, num_top),
        torch.zeros(n, num_top),
        nothing,
        nothing,
        torch.ones(n),
        nothing,
        *[torch.zeros(n, len(runner.probe_names) if with_probes else 0)] * 2,
    )
    return PassOutput(logits, stats, {}, n, 0.0)


if __name__ == "__main__":
    ModelRunner.forward = forward  # type: ignore[method-assign]
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
