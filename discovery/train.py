"""Trains a TopK or BatchTopK dictionary on harvested residuals.

    loss = ||x - x_hat||^2 / ||x - mean||^2 + aux_weight * ||e - e_hat||^2 / ||e||^2,    e = x - x_hat

summed over the batch. The second term is AuxK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders"): `e_hat`
is made of the `aux_k` strongest *dead* latents of each token, which is what revives them. TopK keeps each token's k
largest pre-activations, BatchTopK (Bussmann et al. 2024) the k * B largest of the batch; at inference that becomes one
threshold. Decoder rows have norm 1: the gradient along them is taken out, and they are normalised after each step
(Bricken et al. 2023). Weights are fp32; the products are those of `sparse_gradients`.

Residuals are scaled by s = sqrt(D) / mean ||x - mean||; b_dec begins as the scaled mean.

    python -m discovery.train --source runs/harvest/corpus:4 --source runs/harvest/chat:2 --output runs/train/a

The folder gets `checkpoint.pt` (a killed run goes on from it, bit by bit as if it had not been), `log.csv`, and at the
end `sae.safetensors` + `sae.json`.

Shape suffixes: B tokens of a batch, D model width, F latents, A dead latents.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.errors import TrainError
from discovery.harvest import load_manifest
from discovery.shard_stream import START, Place, Source, load_buffer, stream_batches
from discovery.sparse_gradients import SparseResult, backpropagate
from sae_runtime.checkpoint import Manifest, load_sae, save_sae
from sae_runtime.sae import SAE

TrainedActivation = Literal["topk", "batchtopk"]
DecoderInit = Literal["random", "data"]

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.csv"

_SCALE_TOKENS = 200_000


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The recipe."""

    activation: TrainedActivation = "batchtopk"
    num_latents: int = 8192
    k: int = 64
    """Active latents per token: of each one (topk) or on average (batchtopk)."""
    num_steps: int = 2000
    batch_size: int = 2048
    """Tokens per step."""
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.5
    """Last part of the steps, over which the rate falls linearly to 0."""
    aux_k: int = 256
    """Dead latents that explain the error of each token."""
    aux_weight: float = 1 / 32
    dead_after_tokens: int = 200_000
    """A latent that has been silent for so long counts as dead."""
    max_grad_norm: float = 1.0
    decoder_init: DecoderInit = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.activation not in get_args(TrainedActivation):
            raise ValueError(f"activation must be topk or batchtopk, got {self.activation!r}")
        if not 0 < self.k <= self.num_latents:
            raise ValueError(f"k must lie in 1..num_latents={self.num_latents}, got {self.k}")
        if min(self.num_steps, self.batch_size, self.aux_k) < 1 or not self.learning_rate > 0:
            raise ValueError(f"num_steps, batch_size, aux_k and learning_rate must be positive, got {self}")

    def rate_at(self, step: int) -> float:
        """Learning rate of `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        decay = min(1.0, (self.num_steps - step) / max(self.decay_share * self.num_steps, 1))
        return self.learning_rate * min(warmup, decay)


DEFAULTS = TrainSettings()


class DataScale(NamedTuple):
    """What the residuals look like, measured once before training."""

    mean_D: Tensor
    scale: float
    """s = sqrt(D) / mean ||x - mean||."""
    resid_norm_mean: float


class StepFigures(NamedTuple):
    """One step, as logged. Taken before the step changed anything."""

    fvu: float
    """Fraction of variance unexplained."""
    l0: float


# --- the maths ------------------------------------------------------------------------------------------------------


def add_aux_gradients(sae: SAE, x_BD: Tensor, error_BD: Tensor, dead_F: Tensor, settings: TrainSettings) -> None:
    """Add the gradients of AuxK, for the dead latents' weights alone. `error_BD` is x - x_hat, taken as given."""
    half = torch.bfloat16
    dead_A = dead_F.nonzero()[:, 0]
    W_enc_DA, b_enc_A, W_dec_AD = (
        tensor.detach().clone().requires_grad_()
        for tensor in (sae.W_enc[:, dead_A], sae.b_enc[dead_A], sae.W_dec[dead_A])
    )
    centred_BD = (x_BD - sae.b_dec).detach()
    pre_BA = centred_BD.to(half) @ W_enc_DA.to(half) + b_enc_A.to(half)
    if len(dead_A) > settings.aux_k:
        indices = pre_BA.detach().topk(settings.aux_k, dim=-1, sorted=False).indices
        pre_BA = pre_BA * torch.zeros_like(pre_BA).scatter_(-1, indices, 1.0)
    guess_BD = (pre_BA.relu() @ W_dec_AD.to(half)).float()
    unexplained = (error_BD - guess_BD).square().sum() / error_BD.square().sum()
    W_enc_grad, b_enc_grad, W_dec_grad = torch.autograd.grad(unexplained, (W_enc_DA, b_enc_A, W_dec_AD))
    assert sae.W_enc.grad is not None and sae.b_enc.grad is not None and sae.W_dec.grad is not None
    sae.W_enc.grad[:, dead_A] += settings.aux_weight * W_enc_grad
    sae.b_enc.grad[dead_A] += settings.aux_weight * b_enc_grad
    sae.W_dec.grad[dead_A] += settings.aux_weight * W_dec_grad


@torch.no_grad()
def project_decoder_gradient(sae: SAE) -> None:
    """Take out the gradient along each decoder row: it would only change the norm, which is then undone."""
    assert sae.W_dec.grad is not None
    along_F1 = (sae.W_dec.grad * sae.W_dec).sum(-1, keepdim=True)
    sae.W_dec.grad -= along_F1 * sae.W_dec


@torch.no_grad()
def normalize_decoder(sae: SAE) -> None:
    """Scale decoder rows to norm 1."""
    sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True).clamp_min(1e-8))


def measure_scale(sources: list[Source], seed: int = 0) -> DataScale:
    """Mean and scale over the first buffer, which is mixed as all of training is."""
    resid_ND = load_buffer(sources, 0, seed)[:_SCALE_TOKENS].float()
    mean_D = resid_ND.double().mean(0).float()
    centred_norm = float((resid_ND - mean_D).norm(dim=-1).mean())
    return DataScale(mean_D, resid_ND.shape[1] ** 0.5 / centred_norm, float(resid_ND.norm(dim=-1).mean()))


def new_sae(settings: TrainSettings, scale: DataScale, sources: list[Source]) -> SAE:
    """An untrained dictionary: unit decoder rows, encoder = decoder^T, b_dec the mean."""
    d_model = scale.mean_D.shape[0]
    sae = SAE(
        d_model=d_model,
        num_latents=settings.num_latents,
        activation=settings.activation,
        k=settings.k if settings.activation == "topk" else None,
        scale=scale.scale,
    )
    generator = torch.Generator().manual_seed(settings.seed)
    rows_FD = torch.randn(settings.num_latents, d_model, generator=generator)
    if settings.decoder_init == "data":
        resid_ND = load_buffer(sources, 0, settings.seed)
        rows_FD = resid_ND[: settings.num_latents].float() - scale.mean_D + 0.5 / scale.scale * rows_FD
    with torch.no_grad():
        sae.W_dec.copy_(rows_FD)
        normalize_decoder(sae)
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(scale.mean_D * scale.scale)
        sae.resid_mean.copy_(scale.mean_D)
    return sae


# --- the run --------------------------------------------------------------------------------------------------------


class Trainer:
    """One run: dictionary, optimiser, and where in the data it is."""

    def __init__(self, settings: TrainSettings, sources: list[Source], start_from: SAE | None = None) -> None:
        self.settings, self.sources = settings, sources
        if start_from is None:
            scale = measure_scale(sources)
            self.sae = new_sae(settings, scale, sources)
            self.resid_norm_mean = scale.resid_norm_mean
        else:
            self.sae = start_from.requires_grad_(True)
            self.resid_norm_mean = measure_scale(sources).resid_norm_mean
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=settings.learning_rate, fused=True)
        self.silent_tokens_F = torch.zeros(settings.num_latents, dtype=torch.long)
        self.num_steps_done = 0
        self.place = START

    @torch.no_grad()
    def step(self, resid_BD: Tensor) -> StepFigures:
        """One step on a batch of bf16 residuals."""
        settings, sae = self.settings, self.sae
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate_at(self.num_steps_done)
        x_BD = resid_BD.float() * sae.scale
        over_batch = settings.activation == "batchtopk"
        result = backpropagate(sae, x_BD, sae.resid_mean * sae.scale, settings.k, over_batch=over_batch)
        dead_F = self.silent_tokens_F >= settings.dead_after_tokens
        if settings.aux_weight and bool(dead_F.any()):
            with torch.enable_grad():
                add_aux_gradients(sae, x_BD, result.error_BD, dead_F, settings)
        torch.nn.utils.clip_grad_norm_(sae.parameters(), settings.max_grad_norm)
        project_decoder_gradient(sae)
        self.optimizer.step()
        normalize_decoder(sae)
        self._follow(result, len(x_BD))
        return StepFigures(result.fvu, result.l0)

    def _follow(self, result: SparseResult, num_tokens: int) -> None:
        """Update what is counted along the way: silence of each latent, threshold, steps."""
        self.silent_tokens_F += num_tokens
        self.silent_tokens_F[result.active.latents_N] = 0
        if self.settings.activation == "batchtopk":
            # Slow enough to average out single batches, fast enough to follow the weights.
            share = 1.0 if self.num_steps_done == 0 else 0.02
            self.sae.threshold.lerp_(torch.tensor(result.active.threshold), share)
        self.num_steps_done += 1

    def steps(self) -> Iterator[StepFigures]:
        """The steps that are still to be done."""
        batches = stream_batches(self.sources, self.settings.batch_size, self.settings.seed, self.place)
        while self.num_steps_done < self.settings.num_steps:
            resid_BD, place = next(batches)
            figures = self.step(resid_BD)
            self.place = place
            yield figures

    @property
    def num_dead(self) -> int:
        return int((self.silent_tokens_F >= self.settings.dead_after_tokens).sum())

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on. The file appears whole or not at all."""
        partial = path.with_suffix(".partial")
        state = {
            "settings": asdict(self.settings),
            "shards": [[str(path) for path in source.shards] for source in self.sources],
            "scale": self.sae.scale,
            "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "silent_tokens": self.silent_tokens_F,
            "num_steps_done": self.num_steps_done,
            "place": tuple(self.place),
        }
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. TrainError if it is of another recipe or of other shards."""
        state = torch.load(path, weights_only=True)
        shards = [[str(path) for path in source.shards] for source in self.sources]
        if state["settings"] != asdict(self.settings) or state["shards"] != shards:
            raise TrainError(f"{path} belongs to a run with other settings or shards")
        self.sae.scale = state["scale"]
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.silent_tokens_F = state["silent_tokens"]
        self.num_steps_done = state["num_steps_done"]
        self.place = Place(state["place"])


def run(trainer: Trainer, folder: Path, *, checkpoint_every: int = 500, progress: bool = False) -> None:
    """Train to the end, writing `log.csv` and checkpoints into `folder`; goes on if there is a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / CHECKPOINT_FILE).exists():
        trainer.load(folder / CHECKPOINT_FILE)
    settings = trainer.settings
    log = folder / LOG_FILE
    _cut_log(log, trainer.num_steps_done)
    with (
        log.open("a", newline="") as file,
        tqdm(
            total=settings.num_steps * settings.batch_size,
            initial=trainer.num_steps_done * settings.batch_size,
            desc=f"train {folder.name}",
            unit="tok",
            unit_scale=True,
            mininterval=5 if not sys.stderr.isatty() else 0.1,
            disable=not progress,
        ) as bar,
    ):
        rows = csv.writer(file)
        began = time.monotonic()
        for figures in trainer.steps():
            step = trainer.num_steps_done
            bar.update(settings.batch_size)
            if step % 10 == 0 or step == settings.num_steps:
                bar.set_postfix(ve=f"{1 - figures.fvu:.4f}", dead=trainer.num_dead)
                elapsed = time.monotonic() - began
                rate = settings.rate_at(step - 1)
                rows.writerow([step, 1 - figures.fvu, figures.l0, trainer.num_dead, rate, round(elapsed, 1)])
            if step % checkpoint_every == 0:
                file.flush()
                trainer.save(folder / CHECKPOINT_FILE)
    trainer.save(folder / CHECKPOINT_FILE)


def _cut_log(log: Path, num_steps: int) -> None:
    """Begin the log, or cut off the rows of steps that will be done again."""
    if not log.exists():
        log.write_text("step,variance_explained,l0,num_dead,learning_rate,elapsed_seconds\n")
        return
    header, *rows = log.read_text().splitlines(keepends=True)
    log.write_text(header + "".join(row for row in rows if int(row.split(",")[0]) <= num_steps))


# --- the finished dictionary ----------------------------------------------------------------------------------------


@torch.no_grad()
def calibrate_threshold(sae: SAE, sources: list[Source], target_l0: float, max_tokens: int = 65536) -> float:
    """Set a batchtopk dictionary's threshold so that its mean L0 over training tokens is `target_l0`; returns it."""
    resid_ND = load_buffer(sources, 0, seed=1)[:max_tokens]
    wanted = int(target_l0 * resid_ND.shape[0])
    # Training leaves the threshold about right, so that only what is near it has to be kept and ranked.
    for share in (0.8, 0.4, 0.0):
        values = _preactivations_above(sae, resid_ND, share * float(sae.threshold))
        if values.numel() > wanted:
            sae.threshold.fill_(float(values.kthvalue(values.numel() - wanted).values))
            return float(sae.threshold)
    raise TrainError(f"mean L0 can't be {target_l0}: only {values.numel() / len(resid_ND):.2f} latents are positive")


def _preactivations_above(sae: SAE, resid_ND: Tensor, low: float) -> Tensor:
    parts = (sae.preactivate(part_ND) for part_ND in torch.split(resid_ND, 4096))
    return torch.cat([pre_NF[pre_NF > low] for pre_NF in parts])


def manifest_of(sae: SAE, harvest_manifest: dict[str, Any], *, name: str, **fields: Any) -> Manifest:
    """A manifest for `sae`, what it says of the model taken from a harvest's settings."""
    settings = harvest_manifest["settings"]
    return Manifest(
        name=name,
        model_name=settings["model_name"],
        model_sha256=settings["model_sha256"],
        quantization=settings["quantization"],
        hook_point=settings["hook_point"],
        bos_policy=settings["bos_policy"],
        d_model=sae.d_model,
        num_latents=sae.num_latents,
        activation=sae.activation,
        k=sae.k,
        scale=sae.scale,
        apply_b_dec=sae.apply_b_dec,
        normalization=sae.normalization,
        first_position="excluded",
        decoder_norms_folded=True,
        **fields,
    )


def training_record(trainer: Trainer, started_from: dict[str, Any] | None) -> dict[str, Any]:
    """What the manifest says of the training: recipe, data by source, and the run it went on from, if any."""
    harvests = [load_manifest(source.shards[0].parent)["settings"] for source in trainer.sources]
    record = {
        "recipe": asdict(trainer.settings),
        "tokens_seen": trainer.num_steps_done * trainer.settings.batch_size,
        "data": [
            {
                "sources": sorted(harvest["sources"]),
                "shards": len(source.shards),
                "per_buffer": source.shards_per_buffer,
            }
            for harvest, source in zip(harvests, trainer.sources, strict=True)
        ],
    }
    return record if started_from is None else record | {"started_from": started_from}


def finish(
    trainer: Trainer,
    folder: Path,
    *,
    name: str,
    target_l0: float | None = None,
    started_from: dict[str, Any] | None = None,
) -> Manifest:
    """Write the trained dictionary to `folder`, in bf16, with its threshold measured on the rounded weights."""
    sae = trainer.sae.requires_grad_(False)
    rounded_mean_D = sae.resid_mean.clone()
    sae.to_weights_dtype(torch.bfloat16)
    sae.resid_mean.copy_(rounded_mean_D)
    if trainer.settings.activation == "batchtopk":
        calibrate_threshold(sae, trainer.sources, target_l0 or trainer.settings.k)
    harvest_manifest = load_manifest(trainer.sources[0].shards[0].parent)
    manifest = manifest_of(
        sae,
        harvest_manifest,
        name=name,
        dtype="bfloat16",
        resid_norm_mean=trainer.resid_norm_mean,
        training=training_record(trainer, started_from),
    )
    return save_sae(sae, manifest, folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a dictionary on harvested residuals.")
    parser.add_argument("--source", action="append", required=True, help="FOLDER or FOLDER:SHARDS_PER_BUFFER; repeat")
    parser.add_argument("--output", type=Path, required=True, help="folder; continued if it has a checkpoint")
    parser.add_argument("--name", default="sae")
    parser.add_argument("--init", type=Path, help="start from this dictionary instead of a random one")
    parser.add_argument("--target-l0", type=float, help="mean L0 the batchtopk threshold is set for; default k")
    parser.add_argument("--checkpoint-every", type=int, default=500, help="steps")
    for name, value in asdict(DEFAULTS).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    args = parser.parse_args(argv)
    settings = replace(DEFAULTS, **{name: getattr(args, name) for name in asdict(DEFAULTS)})
    sources = [Source.parse(text) for text in args.source]
    first = load_sae(args.init) if args.init else None
    trainer = Trainer(settings, sources, first)
    run(trainer, args.output, checkpoint_every=args.checkpoint_every, progress=True)
    started_from = first.manifest.training if first is not None else None
    manifest = finish(trainer, args.output, name=args.name, target_l0=args.target_l0, started_from=started_from)
    print(json.dumps({"sae_sha256": manifest.sae_sha256, "tokens_seen": manifest.training["tokens_seen"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
