"""Data a dictionary can learn, on disk as a harvest, for the tests of training."""

import hashlib
import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from discovery.dictionary_trainer import Trainer
from discovery.shard_stream import ShardBuffers, Source
from discovery.train_settings import TrainSettings, defaults_for

D, F, N = 16, 64, 600
NUM_DIRECTIONS = 48
SETTINGS = TrainSettings(
    num_latents=F,
    k=4,
    num_steps=60,
    batch_size=128,
    learning_rate=1e-2,
    warmup_steps=5,
    aux_k=8,
    dead_after_tokens=1000,
)
HARVEST_SETTINGS = {
    "model_name": "tiny",
    "model_sha256": "0" * 64,
    "quantization": "none",
    "hook_point": "layers.1.output",
    "bos_policy": "tokenizer",
    "sources": {"made": 1},
}


def write_harvest(folder: Path, *, num_shards: int = 5, seed: int = 0, **settings: object) -> Path:
    """Sparse combinations of 48 directions around a mean."""
    folder.mkdir(parents=True, exist_ok=True)
    # The directions are the same for every seed: it is the same model that was harvested.
    directions = torch.randn(NUM_DIRECTIONS, D, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(directions, dim=-1)
    generator = torch.Generator().manual_seed(seed + 1)
    for shard in range(num_shards):
        active = torch.rand(N, NUM_DIRECTIONS, generator=generator) < 0.06
        resid_ND = (active * torch.rand(N, NUM_DIRECTIONS, generator=generator) * 9) @ directions + 3.0
        save_file({"resid_ND": resid_ND.bfloat16()}, folder / f"shard-{shard:05d}.safetensors")
    contexts = hashlib.sha256(f"{seed} {num_shards}".encode()).hexdigest()
    made = (
        HARVEST_SETTINGS | {"num_contexts": num_shards, "contexts_per_shard": 1, "contexts_sha256": contexts} | settings
    )
    (folder / "manifest.json").write_text(json.dumps({"settings": made, "finished": True}))
    return folder


def buffers_of(folder: Path, shards_per_buffer: int = 2) -> ShardBuffers:
    return ShardBuffers([Source.parse(f"{folder}:{shards_per_buffer}")])


def changed(**fields: object) -> TrainSettings:
    return replace(SETTINGS, **fields)  # type: ignore[arg-type]


def settings_for(activation: str, **fields: object) -> TrainSettings:
    """The recipe's own settings, at the test's size."""
    small = {name: getattr(SETTINGS, name) for name in ("num_latents", "num_steps", "batch_size", "learning_rate")}
    small |= {"k": 4, "warmup_steps": 5, "aux_k": 8, "dead_after_tokens": 1000}
    return replace(defaults_for(activation), **(small | fields))  # type: ignore[arg-type]


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Everything, as a checkpoint has it."""
    parts = {"sae": trainer.sae.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    return deepcopy(parts) | {"position": trainer.position()}


def go_on(trainer: Trainer, state: dict[str, Any], where: str) -> None:
    """From `state_of`, in the order in which a checkpoint is gone on from."""
    trainer.set_position(state["position"], where)
    trainer.sae.load_state_dict(state["sae"])
    trainer.optimizer.load_state_dict(state["optimizer"])
