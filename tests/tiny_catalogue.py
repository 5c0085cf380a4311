"""A latent catalogue for the tiny dictionary: made-up entries over a small vocabulary, written by the real writer."""

import random
from pathlib import Path

import numpy as np

from discovery.catalogue_entry import used_tokens
from discovery.catalogue_writer import CatalogueRow, write_catalogue
from monitors.latent_catalogue import LatentCatalogue
from monitors.latent_entry import SILENT, Effect, LatentEntry, QuotedExample, Said, Score
from monitors.token_pieces import pieces_of

WORDS = (
    "the",
    "old",
    "whale",
    "and",
    "a",
    "house",
    "of",
    "stone",
    "by",
    "River",
    "with",
    "Ships",
    "café",
    "NEAR",
    "für",
)
VOCABULARY = {i: f" {word}".encode() for i, word in enumerate(WORDS)} | {
    100: b" wh",
    101: b"ale",
    102: b"s",
    103: b",\n",
    104: "ü".encode()[:1],
    105: "ü".encode()[1:],
}
SOURCES = ("novels", "chat", "manuals")
NUM_LATENTS = 64
"""As many as the tiny dictionary has."""
NUM_TOKENS = 10_000
SILENT_LATENTS = (5, 9)
EDGES = tuple(2.0**i for i in range(-8, 11))


def half(value: float) -> float:
    return float(np.float16(value))


def single(value: float) -> float:
    return float(np.float32(value))


def entry(latent: int, *, seed: int = 0) -> LatentEntry:
    """A random entry; the same for the same latent and seed."""
    rng = random.Random(f"{latent} {seed}")
    ids = list(VOCABULARY)

    def example(reading: float) -> QuotedExample:
        window = [rng.choice(ids) for _ in range(rng.randint(1, 9))]
        focus = rng.randrange(len(window))
        readings = [half(rng.uniform(0, reading)) if rng.random() < 0.3 else 0.0 for _ in window]
        readings[focus] = half(reading)
        pieces = pieces_of([VOCABULARY[token_id] for token_id in window])
        return QuotedExample(single(reading), rng.choice(SOURCES[:2]), focus, tuple(window), pieces, tuple(readings))

    def effects() -> tuple[Effect, ...]:
        chosen = [rng.choice(ids) for _ in range(3)]
        return tuple(Effect(i, VOCABULARY[i].decode("utf-8", "replace"), half(rng.gauss(0, 1))) for i in chosen)

    said = None
    if latent % 3:
        tokens = tuple(rng.sample(WORDS, 2))
        detection = Score(single(rng.uniform(0.4, 1)), rng.choice((4, 40))) if latent % 2 else None
        said = Said(f"About {rng.choice(WORDS)} {latent}", f"It is {rng.choice(WORDS)}s.", tokens, "m", detection, None)
    return LatentEntry(
        mean_active=single(rng.uniform(0, 3)),
        sources=(("novels", half(0.75)), ("manuals", half(0.25))),
        histogram=(0,) * 5 + tuple(rng.randint(0, 300) for _ in range(4)) + (1,) + (0,) * 8,
        promoted=effects(),
        suppressed=effects(),
        said=said,
        examples=tuple(example(reading) for reading in sorted((rng.uniform(0.1, 9) for _ in range(3)), reverse=True)),
    )


def rows(num: int = NUM_LATENTS, *, seed: int = 0) -> list[CatalogueRow]:
    """By latent; some never fire."""
    rng = random.Random(seed)
    return [
        CatalogueRow(0, 0.0, SILENT)
        if latent in SILENT_LATENTS
        else CatalogueRow(rng.choice((3, 30, 300)), rng.choice((1.5, 2.5, 9.0)), entry(latent, seed=seed))
        for latent in range(num)
    ]


def manifest(**changes: object) -> dict[str, object]:
    facts = {"sae_sha256": "0" * 64, "num_tokens": NUM_TOKENS, "sources": list(SOURCES), "histogram_edges": list(EDGES)}
    return facts | changes


def write(path: Path, made: list[CatalogueRow] | None = None, **changes: object) -> Path:
    """Write `rows()`, or others, to `path`."""
    made = rows() if made is None else made
    tokens = {token_id: VOCABULARY[token_id] for token_id in used_tokens([row.entry for row in made])}
    write_catalogue(path, made, tokens, manifest(**changes))
    return path


def opened(path: Path) -> LatentCatalogue:
    return LatentCatalogue.open(write(path))
