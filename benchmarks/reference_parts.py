"""A server of the reference deployment's shape with random weights: a Llama, a dictionary, and what serves them."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch

from sae_runtime.checkpoint import Manifest, load_sae, save_sae
from sae_runtime.language_model import LanguageModel, load_language_model
from sae_runtime.sae import SAE
from service.assembly import Parts, assemble
from service.config import Settings

LLAMA_3_2_3B = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
}


def save_random_model(folder: Path, shape: Mapping[str, int], num_layers: int, device: str) -> None:
    """A Llama with random bf16 weights, drawn on `device`, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        **shape,
        num_hidden_layers=num_layers,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        tie_word_embeddings=True,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<eos>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def save_random_dictionary(folder: Path, model: LanguageModel, layer: int, num_latents: int) -> None:
    """A top-64 dictionary with random directions, as if trained on `model`."""
    sae = SAE(d_model=model.d_model, num_latents=num_latents, activation="topk", k=64)
    with torch.no_grad():
        sae.W_dec.normal_()
        sae.W_dec /= sae.W_dec.norm(dim=-1, keepdim=True)
        sae.W_enc.copy_(sae.W_dec.T)
    manifest = Manifest(
        name="random",
        model_name=model.identity.name,
        model_sha256=model.identity.weights_sha256,
        quantization=model.identity.quantization,
        hook_point=f"layers.{layer}.output",
        d_model=model.d_model,
        num_latents=num_latents,
        activation="topk",
        k=64,
        dtype="bfloat16",
    )
    save_sae(sae, manifest, folder)


def prepare(args: argparse.Namespace, folder: Path, shape: Mapping[str, int], context_length: int) -> Parts:
    """The parts of a server of that shape, with room for the largest number of streams. What is in `folder` already is
    used again."""
    model_folder, sae_folder = folder / "random-llama", folder / f"dictionary-{args.latents}"
    if not model_folder.exists():
        save_random_model(model_folder, shape, args.layers, args.device)
    if not sae_folder.exists():
        model = load_language_model(str(model_folder), quantization=args.quantization, device=args.device)
        save_random_dictionary(sae_folder, model, min(15, args.layers - 1), args.latents)
        del model
    load_sae(sae_folder)
    settings = Settings(
        model=str(model_folder), sae=str(sae_folder), quantization=args.quantization, device=args.device,
        slots=max(args.streams), context_length=context_length,
    )  # fmt: skip
    return assemble(settings)
