"""A tiny model in which it is known what a latent does, and texts about it.

The blocks write nothing, so the residual is the token's embedding throughout, and logits are its projections. `q` has a
part along axis 0, which the unembedding turns into `u`, and a part along axis 1, which it ignores. The dictionary reads
every axis with two latents, one per sign: latent 0 (CAUSE) makes the model say `u` after `q`; latent 1 (DETECTOR) is as
good at telling where there is a `q`, and makes the model say nothing.
"""

import random

import tiny
import torch

from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE

CAUSE, DETECTOR = 0, 1
_LETTERS = "abcdefghijklmnoprst"


def language_model() -> LanguageModel:
    model = tiny.language_model(seed=7)
    generator = torch.Generator().manual_seed(5)
    for block in model.model.model.layers:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    vocab = model.vocab_size
    embedding_VD = torch.zeros(vocab, tiny.D_MODEL)
    for token in range(vocab):
        axes = 2 + torch.randperm(tiny.D_MODEL - 2, generator=generator)[:5]
        embedding_VD[token, axes] = (torch.rand(5, generator=generator) * 2 + 2) * _signs(5, generator)
    (q,), (u,) = model.tokenizer("q").input_ids, model.tokenizer("u").input_ids
    axes = 2 + torch.randperm(tiny.D_MODEL - 2, generator=generator)[:12]
    embedding_VD[q] = 0
    embedding_VD[q, axes] = 4.0 * _signs(12, generator)
    embedding_VD[q, :2] = 4.0
    unembedding_VD = 0.2 * torch.randn(vocab, tiny.D_MODEL, generator=generator)
    unembedding_VD[:, :2] = 0
    unembedding_VD[u, 0] = 6.0
    model.model.get_input_embeddings().weight.copy_(embedding_VD)
    model.model.get_output_embeddings().weight.copy_(unembedding_VD)
    return model


def _signs(num: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, (num,), generator=generator) * 2.0 - 1.0


def sae() -> SAE:
    """Latent i reads axis i where it is positive, latent i + D where it is negative. Reconstructs everything."""
    made = SAE(d_model=tiny.D_MODEL, num_latents=2 * tiny.D_MODEL, activation="relu")
    axes = torch.eye(tiny.D_MODEL)
    made.W_dec.data.copy_(torch.cat([axes, -axes]))
    made.W_enc.data.copy_(made.W_dec.data.T)
    return made.requires_grad_(False)


def texts(num: int = 16) -> list[dict[str, object]]:
    """Labelled items: every second one has `qu` among its letters."""
    rng = random.Random(3)
    items = []
    for number in range(2 * num):
        label = 1 - number % 2
        pieces = ["qu" if label and rng.random() < 0.4 else rng.choice(_LETTERS) for _ in range(14)]
        # Every text about it has it, and not at its very beginning.
        text = "ab" + "".join(pieces) + ("quad" if label else "cad")
        items.append({"id": str(number), "text": text, "label": label, "group": f"g{number}"})
    return items
