"""A tiny text with documents, sources and repetitions, its harvest, and the example file made of it."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import tiny
import torch
from serving import manifest
from transformers import LlamaConfig, LlamaForCausalLM

from discovery.corpus import Context
from discovery.example_collector import ExampleSettings
from discovery.examples import Pass, collect, finish
from discovery.harvest import harvest
from discovery.text_pieces import HarvestedText, Text
from sae_runtime.checkpoint import LoadedSAE, load_sae, save_sae
from sae_runtime.language_model import LanguageModel

SOURCES = ("novels", "manuals", "chat")
SETTINGS = ExampleSettings(num_top=4, num_bins=3, per_bin=2, before=5, after=3, num_backgrounds=10, distinct_tokens=4)
CONTEXTS_PER_SHARD = 6
WORDS = "the sea was calm and the old captain spoke of lying of honest men of stars <b>über</b> dem Meer".split()  # noqa: SIM905


def contexts(num: int = 32) -> list[Context]:
    """Texts of several lengths, two to a document; every fifth begins as the first does."""
    generator = torch.Generator().manual_seed(3)
    tokenizer = tiny.byte_tokenizer()
    made = []
    for number in range(num):
        length = int(torch.randint(3, 14, (1,), generator=generator))
        words = [WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist()]
        text = ("the licence says " if number % 5 == 0 else "") + " ".join(words)
        # Documents of several sources; the token at position 0 differs between contexts.
        made.append(Context([3 + number, *tokenizer(text).input_ids], number // 2, 0, SOURCES[number // 2 % 3]))
    return made


def document_sources() -> dict[int, str]:
    return {context.document: context.source for context in contexts()}


def dictionary(folder: Path) -> LoadedSAE:
    """The tiny dictionary, as if made for the tiny model. Latent 5 never fires."""
    sae = tiny.sae("jumprelu")
    # Some fire nearly everywhere, some hardly ever.
    sae.b_enc[:] -= torch.linspace(0, 8, tiny.NUM_LATENTS)
    sae.b_enc[5] = -1e3
    save_sae(sae, manifest(activation="jumprelu", resid_norm_mean=20.0), folder)
    return load_sae(folder)


def harvested(model: LanguageModel, folder: Path) -> HarvestedText:
    if not folder.exists():
        harvest(model, tiny.HOOK_POINT, contexts(), folder, contexts_per_shard=CONTEXTS_PER_SHARD, batch_tokens=200)
    return HarvestedText([folder], document_sources())


def example_pass(sae: LoadedSAE, text: Text, quote: tuple[str, ...] | None = ("novels", "chat")) -> Pass:
    return Pass(sae, text, _model(), SETTINGS, quote)


@cache
def _model() -> LanguageModel:
    return tiny.language_model()


def model_of_width(d_model: int) -> LanguageModel:
    """A random model that says of itself what the tiny one says."""
    model = tiny.language_model()
    config = LlamaConfig(**model.model.config.to_dict() | {"hidden_size": d_model})
    return replace(model, model=LlamaForCausalLM(config).eval())


def write_example_file(model: LanguageModel, folder: Path) -> Path:
    """Dictionary, harvest and example file under `folder`; returns the latter."""
    this = example_pass(dictionary(folder / "dictionary"), harvested(model, folder / "harvest"))
    output = folder / "examples.sqlite"
    finish(this, collect(this, output), output)
    return output
