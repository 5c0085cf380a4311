"""The served path on the real embedded model, in fp32: tokens equal `generate`, readings equal an offline pass.

The default set is small; `-m slow` runs 20 prompts of 20 to 400 tokens, alone and with seven neighbours.
"""

import asyncio
import itertools
import os

import pytest
import torch

from sae_runtime.gguf_file import EMBEDDED_PACKAGE, embedded_gguf_path
from sae_runtime.language_model import LanguageModel, load_language_model
from service.assembly import Parts, assemble
from service.client import TelltaleClient
from service.client_request import Steering
from service.config import Settings
from service.server import Server

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "The three laws of thermodynamics are",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8,",
    "To make a good bread you need",
    "SELECT name, COUNT(*) FROM",
    "Les enfants jouent dans",
    "In the beginning God created",
    "The patient was given 20 mg of",
    "Call me Ishmael.",
    "Q: What is the boiling point of water?\nA:",
    "The stock market fell sharply on Monday as",
    "<html>\n<head>\n<title>",
    "Roses are red, violets are blue,",
    "The most important thing about gravity is that",
    "import numpy as np\n\nx = np.",
    "My fellow Americans, tonight",
    "Wörter mit Umlauten: ä, ö, ü und",
]
NUM_WATCHED = 256
STEERED = 2000


@pytest.fixture(scope="module")
def parts() -> Parts:
    try:
        embedded_gguf_path()
    except Exception:
        pytest.skip(f"needs {EMBEDDED_PACKAGE}")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads, len(os.sched_getaffinity(0))))
    yield assemble(Settings(dtype="float32", slots=8, context_length=1024))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference(parts) -> LanguageModel:
    """A second copy: the served one belongs to the engine's thread."""
    return load_language_model(dtype=parts.catalog.model.identity.dtype)


@pytest.fixture
async def client(parts):
    server = Server(Settings(dtype="float32", grpc_port=0, http_port=0), parts)
    await server.start()
    async with TelltaleClient(f"127.0.0.1:{server.grpc_port}") as client:
        yield client
    await server.close()


def generate(model: LanguageModel, ids: list[int], max_tokens: int) -> list[int]:
    prompt = torch.tensor([ids])
    out = model.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens, do_sample=False
    )
    new = out[0, len(ids) :].tolist()
    return new[:-1] if new[-1] in model.eos_token_ids else new


def offline(model: LanguageModel, parts: Parts, ids: list[int]) -> torch.Tensor:
    """[T, F] latents of one pass over the whole sequence."""
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return parts.runner.sae.encode(hidden[parts.catalog.manifest.hook.hidden_state_index][0])


def check_readings(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal to 1e-4 of the largest reading, but for latents so near their threshold that the last bit decides."""
    assert (wanted > 0).float().mean() > 0.05
    flipped = (got > 0) != (wanted > 0)
    assert flipped.float().mean() < 1e-4
    scale = wanted[1:].max()
    assert ((got - wanted).abs()[1:][~flipped[1:]] / scale).max() < 1e-4
    # Position 0 is a massive activation: its own largest reading is its scale.
    assert ((got - wanted)[0].abs() / wanted[0].abs().max().clamp(min=1)).max() < 1e-4


async def check(client, parts, reference, prompts: list[str], *, longest: int, num_neighbours: int) -> None:
    stop = asyncio.Event()

    async def neighbour(texts):
        """Streams of changing length, every other one steered hard, until told to stop."""
        for i, text in enumerate(texts):
            steering = [Steering(direction=STEERED, op="add", strength=30)] if i % 2 else []
            await client.complete(text, max_tokens=5 + 7 * (i % 9), steering=steering, ignore_eos=True)
            if stop.is_set():
                return

    neighbours = [
        asyncio.create_task(neighbour(itertools.cycle(PROMPTS[i:] + PROMPTS[:i]))) for i in range(num_neighbours)
    ]
    try:
        for i, prompt in enumerate(prompts):
            max_tokens = longest * (i + 1) // len(prompts)
            ids = reference.tokenizer(prompt).input_ids
            wanted_ids = generate(reference, ids, max_tokens)
            latents = offline(reference, parts, [*ids, *wanted_ids])
            # Those that read most at ordinary positions: nearly all others are 0 on both sides.
            watched = latents[1:].amax(0).topk(NUM_WATCHED).indices.tolist()
            reply = await client.complete(prompt, max_tokens=max_tokens, watch=watched, include_prompt=True)
            tokens = [*reply.prompt, *reply.tokens]
            assert [token.id for token in tokens] == [*ids, *wanted_ids], prompt
            assert [token.index for token in tokens] == list(range(len(ids) + len(wanted_ids)))
            check_readings(torch.tensor([token.readings for token in tokens]), latents[:, watched])
    finally:
        stop.set()
        await asyncio.gather(*neighbours)


async def test_tokens_and_readings_alone(client, parts, reference):
    await check(client, parts, reference, PROMPTS[:3], longest=30, num_neighbours=0)


async def test_tokens_and_readings_among_others(client, parts, reference):
    await check(client, parts, reference, PROMPTS[3:5], longest=30, num_neighbours=3)


@pytest.mark.slow
@pytest.mark.parametrize("num_neighbours", [0, 7])
async def test_twenty_prompts_of_four_hundred_tokens(client, parts, reference, num_neighbours):
    await check(client, parts, reference, PROMPTS, longest=400, num_neighbours=num_neighbours)
