"""Gives latents that never fire a new start: neuron resampling (Bricken et al. 2023, "Towards Monosemanticity").

A latent that is silent over a whole harvest gets as its decoder row the normalised reconstruction error of a token that
is drawn with probability proportional to ||e||^2, so that it points at what the dictionary explains worst. Its encoder
column is that row at the mean norm of the living latents' columns, and its bias puts its pre-activation at that token
at `||e|| * mean norm`, as if the rest of the residual were not there: it fires there, at about what is missing.
(Bricken et al. take the input instead of the error, and a fifth of the norm. Where few latents compete for the
largest pre-activations, as in TopK, so small a one never gets among them.) All other latents are left as they are.

    telltale lab revive DICTIONARY --source runs/harvest/corpus --source runs/harvest/chat --output runs/revived

The result is a start to train on from (`telltale lab train --init ... --only-revived`), not a dictionary to serve.

Shape suffixes: N tokens, A dead latents, D model width, F latents.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.errors import HarvestError
from discovery.harvest import load_ordinary_resid, shard_paths
from sae_runtime.checkpoint import load_sae, save_sae
from sae_runtime.sae import SAE

_ENCODE_TOKENS = 2048


class Silence(NamedTuple):
    """What a pass over a harvest says about who is silent and what is missing."""

    num_tokens: int
    firing_F: Tensor
    """Tokens at which each latent is active."""
    candidates_ND: Tensor
    """Residuals drawn with probability proportional to their ||e||^2, in random order."""


@torch.inference_mode()
def find_silent(sae: SAE, shards: list[Path], num_candidates: int, seed: int = 0) -> Silence:
    """One pass over `shards`. Candidates are drawn without replacement (Efraimidis and Spirakis 2006)."""
    generator = torch.Generator().manual_seed(seed)
    firing_F = torch.zeros(sae.num_latents, dtype=torch.long)
    keys_N, kept_ND, num_tokens = torch.empty(0), torch.empty(0, sae.d_model), 0
    for path in tqdm(shards, desc="looking for silent latents", unit="shard", mininterval=5):
        for resid_ND in torch.split(load_ordinary_resid(path).float(), _ENCODE_TOKENS):
            f_NF = sae.encode(resid_ND)
            firing_F += (f_NF > 0).sum(0)
            weight_N = (resid_ND - sae.reconstruct(resid_ND, f_NF)).square().sum(-1)
            # The largest of u^(1/w) are a sample with weights w; -log(u)/w orders the same way without underflow.
            key_N = -torch.rand(len(resid_ND), generator=generator).clamp_min(1e-30).log() / weight_N.clamp_min(1e-30)
            keys_N, kept_ND = torch.cat([keys_N, key_N]), torch.cat([kept_ND, resid_ND])
            best = keys_N.topk(min(num_candidates, len(keys_N)), largest=False).indices
            keys_N, kept_ND = keys_N[best], kept_ND[best]
            num_tokens += len(resid_ND)
    order = torch.randperm(len(kept_ND), generator=generator)
    return Silence(num_tokens, firing_F, kept_ND[order])


@torch.no_grad()
def revive(sae: SAE, dead_A: Tensor, resid_AD: Tensor) -> None:
    """Start the latents `dead_A` anew, each from the error at one residual. Scalar normalisation, a = 1."""
    if sae.normalization != "scalar" or not sae.apply_b_dec or sae.activation == "gated":
        kind = f"{sae.activation}, {sae.normalization}, apply_b_dec {sae.apply_b_dec}"
        raise ValueError(
            f"only dictionaries with scalar scale, b_dec in the input and a bias can be revived, got {kind}"
        )
    alive_F = torch.ones(sae.num_latents, dtype=torch.bool)
    alive_F[dead_A] = False
    norm = sae.W_enc[:, alive_F].norm(dim=0).mean()
    error_AD = (resid_AD - sae.reconstruct(resid_AD)) * sae.scale
    row_AD = torch.nn.functional.normalize(error_AD, dim=-1)
    sae.W_dec[dead_A] = row_AD
    sae.W_enc[:, dead_A] = (row_AD * norm).T
    explained_AD = sae.centre(sae.normalize(resid_AD)) - error_AD
    sae.b_enc[dead_A] = -(explained_AD * row_AD).sum(-1) * norm


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Give a dictionary's silent latents a new start.")
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--source", type=Path, action="append", required=True, help="harvest folder; repeat")
    parser.add_argument("--output", type=Path, required=True, help="folder for the dictionary to train on from")
    parser.add_argument("--max-firings", type=int, default=0, help="latents that fire no more often are silent")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    sae = load_sae(args.dictionary)
    shards = [path for folder in args.source for path in shard_paths(folder)]
    if not shards:
        raise HarvestError(f"--source must name harvests, got no shard in {', '.join(map(str, args.source))}")
    silence = find_silent(sae, shards, sae.num_latents, args.seed)
    dead_A = (silence.firing_F <= args.max_firings).nonzero()[:, 0]
    if len(dead_A) > len(silence.candidates_ND):
        raise HarvestError(f"--source must hold {len(dead_A)} tokens, one for each latent, got {silence.num_tokens}")
    revive(sae, dead_A, silence.candidates_ND[: len(dead_A)])
    record = {"latents": dead_A.tolist(), "silent_over_tokens": silence.num_tokens, "max_firings": args.max_firings}
    training = {"revived": record | {"seed": args.seed}, "started_from": sae.manifest.training}
    save_sae(
        sae, sae.manifest.model_copy(update={"training": training, "metrics": {}, "dtype": "float32"}), args.output
    )
    print(json.dumps(record | {"latents": len(dead_A)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
