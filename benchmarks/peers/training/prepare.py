"""Writes what all libraries train on and are measured on: `residuals.safetensors` and `held_out.safetensors`.

    python -m benchmarks.peers.training.prepare --source runs/harvest/corpus-train:7 \
        --held-out runs/harvest/corpus-held-out --tokens 393216 --output DATA

Residuals come in the order that `telltale lab train` would read them in: a few shards at a time, shuffled together.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from discovery.buffers import stream_batches
from discovery.shard_stream import ShardBuffers, Source, read_shard
from discovery.shards import load_manifest, shard_paths

BATCH_SIZE = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", action="append", required=True, help="FOLDER or FOLDER:SHARDS_PER_BUFFER; repeat")
    parser.add_argument("--held-out", type=Path, required=True, help="harvest")
    parser.add_argument("--tokens", type=int, default=512_000)
    parser.add_argument("--held-out-tokens", type=int, default=65_536)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    buffers = ShardBuffers([Source.parse(text) for text in args.source])
    batches = stream_batches(buffers, BATCH_SIZE, seed=0)
    wanted = args.tokens // BATCH_SIZE
    resid_ND = torch.cat([next(batches)[0].clone() for _ in tqdm(range(wanted), desc="batches")])
    mean_D = resid_ND.double().mean(0).float()
    save_file({"resid_ND": resid_ND, "mean_D": mean_D}, args.output / "residuals.safetensors")

    held_out: list[torch.Tensor] = []
    for path in shard_paths(args.held_out):
        if sum(map(len, held_out)) < args.held_out_tokens:
            held_out.append(read_shard(path))
    held_out_MD = torch.cat(held_out)[: args.held_out_tokens].clone()
    save_file({"resid_ND": held_out_MD}, args.output / "held_out.safetensors")

    settings = load_manifest(Path(args.source[0].partition(":")[0]))["settings"]
    facts = {name: settings[name] for name in ("model_name", "model_sha256", "quantization", "dtype", "hook_point")}
    facts |= {"tokens": len(resid_ND), "held_out_tokens": len(held_out_MD)}
    (args.output / "data.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
