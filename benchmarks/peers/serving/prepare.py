"""Writes what every peer gets: the same prompts, weights, watched latents and steering. Runs in our own environment.

    python -m benchmarks.peers.serving.prepare --output runs/peers/serving

Texts are cut to the same number of tokens, so that no peer has to pad a batch.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.peers.serving.common import Array, Work
from monitors.watchlist import Watchlist
from sae_runtime.checkpoint import load_sae
from sae_runtime.exports import export_sae
from sae_runtime.gguf_file import embedded_gguf_path
from sae_runtime.language_model import load_language_model
from sae_runtime.sae import SAE
from sae_runtime.sae_parts import SAEParts
from sae_runtime.weights import default_cache_dir
from service.served_dictionary import DICTIONARIES, EMBEDDED_DICTIONARY

PROMPTS = [
    'She put the book down, looked at her brother and said: "I never told you the truth about that summer, because',
    "The history of navigation at sea began when people first learned to read the stars, the winds and the currents",
    "To make a simple vegetable soup for four people, begin by chopping two onions, three carrots and some celery",
    "The doctor told the patient that the results of the blood test had come back, and that the treatment would",
    "In the last minute of the game the home team was two points behind, and the coach called his players together to",
    "An electron that moves through a magnetic field is pushed sideways, which is why the path of a charge is",
    "The old film has a slow beginning, but the acting is superb and the last scene is one that nobody will forget",
    "Dear friends, we have come here today to remember those who built this town, who worked its fields and its mines",
]
PROMPT_TOKENS = 20
NUM_TOKENS = 128
WATCHED = 16
STEERED = "medical"
STRENGTH = 5.9
"""Four times the reference scale of the feature that is steered: what the README shows."""
MONITOR = "lying"


def dictionary_arrays(sae: SAE, watched: list[int], steered: int, strength: float) -> dict[str, Array]:
    """What `watching.Watching` reads and steers with. ValueError for maths that it does not have."""
    parts = SAEParts.of(sae)
    if parts.activation != "batchtopk" or parts.normalization != "scalar":
        raise ValueError(f"the dictionary must be of batchtopk with a scalar, got {parts.activation}")
    tensors = parts.tensors
    return {
        "enc_DW": tensors["W_enc"][:, watched].numpy(),
        "enc_bias_W": tensors["b_enc"][watched].numpy(),
        "center_D": (tensors["b_dec"] * float(parts.apply_b_dec)).numpy(),
        "threshold": tensors["threshold"].numpy(),
        "scale": np.float32(parts.scale),
        "delta_D": (tensors["W_dec"][steered] * (strength / parts.scale)).numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS, help="per request")
    args = parser.parse_args()
    folder = DICTIONARIES / EMBEDDED_DICTIONARY
    sae = load_sae(folder)
    features = Watchlist.load(folder / "features.json").by_name
    watched = [feature.index for feature in features.values()][:WATCHED]
    language_model = load_language_model()
    prompts = [language_model.tokenizer(text).input_ids[:PROMPT_TOKENS] for text in PROMPTS]
    if {len(ids) for ids in prompts} != {PROMPT_TOKENS}:
        raise SystemExit(f"prompts must have {PROMPT_TOKENS} tokens at least, got {[len(ids) for ids in prompts]}")
    work = Work(
        prompts=prompts,
        num_tokens=args.tokens,
        watched=watched,
        layer=sae.manifest.hook.layer,
        steered_feature=features[STEERED].index,
        strength=STRENGTH,
        monitor=MONITOR,
        model=str(default_cache_dir() / "models" / language_model.identity.weights_sha256),
        gguf=str(embedded_gguf_path()),
    )
    args.output.mkdir(parents=True, exist_ok=True)
    np.savez(args.output / "dictionary.npz", **dictionary_arrays(sae, watched, work.steered_feature, work.strength))
    if not (args.output / "saelens").exists():
        export_sae(sae, args.output / "saelens", "saelens")
    work.save(args.output)
    print(json.dumps({"output": str(args.output), "requests": len(prompts), "prompt_tokens": PROMPT_TOKENS}))


if __name__ == "__main__":
    main()
