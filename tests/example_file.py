"""A small example file with latents of known habits.

latent 0   fires on " sea", strongly, and on " ship", weakly
latent 1   never fires
latent 2   fires on " sea" too, but in four documents alone
latent 3   fires on the word before " and"
"""

import json
import random
from pathlib import Path

import numpy as np

from discovery import example_schema

WORDS = ("the", "old", "man", "and", "a", "house", "of", "stone", "by", "river", "with", "green", "door", "for", "all")
VOCABULARY = [*(f" {word}" for word in WORDS), " sea", " ship", "\n", "<<"]
NUM_LATENTS = 4
SEA, SHIP, AND = VOCABULARY.index(" sea"), VOCABULARY.index(" ship"), VOCABULARY.index(" and")


def write_example_file(path: Path, *, sae_sha256: str = "0" * 64, num_documents: int = 60, seed: int = 0) -> None:
    """Write the file; documents are numbered from 1."""
    connection = example_schema.create(path)
    rng = random.Random(seed)
    with connection:
        facts = {"schema_version": 1, "num_latents": NUM_LATENTS, "num_tokens": 10_000, "sae_sha256": sae_sha256}
        connection.executemany("INSERT INTO manifest VALUES (?, ?)", [(k, json.dumps(v)) for k, v in facts.items()])
        connection.execute("INSERT INTO sources VALUES (0, 'made')")
        connection.executemany(
            "INSERT INTO tokens VALUES (?, ?)", [(i, word.encode()) for i, word in enumerate(VOCABULARY)]
        )
        for latent in range(NUM_LATENTS):
            silent = latent == 1
            row = (latent, 0 if silent else 100 + latent, 0.0 if silent else 10.0, 0.0, b"", "{}", b"", b"", b"", b"")
            connection.execute("INSERT INTO latents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        _write_latent(connection, 0, lambda: _with(rng, SEA if rng.random() < 0.7 else SHIP), num_documents)
        _write_latent(connection, 2, lambda: _with(rng, SEA), 4)
        _write_latent(connection, 3, lambda: _with(rng, AND), num_documents)
        for rank in range(num_documents):
            ids, active = (_with(rng, SEA), [0, 2]) if rank % 3 == 0 else (_ids(rng), [])
            arrays = np.array(ids, np.int32).tobytes(), np.array(active, np.int32).tobytes()
            row = (rank, 0, rank + 1, 5, 5, *arrays)
            connection.execute("INSERT INTO backgrounds VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()


def readings_of(latent: int, ids: list[int]) -> list[float]:
    """What a latent reads at each token."""
    if latent == 3:
        return [4.0 if after == AND else 0.0 for after in [*ids[1:], -1]]
    return [{SEA: 8.0, SHIP: 4.0}.get(token, 0.0) for token in ids]


def _ids(rng: random.Random) -> list[int]:
    return [rng.choice([i for i in range(len(WORDS)) if i != AND]) for _ in range(12)]


def _with(rng: random.Random, token: int) -> list[int]:
    ids = _ids(rng)
    ids[rng.randrange(1, len(ids))] = token
    return ids


def _write_latent(connection, latent, make, num_documents) -> None:
    for number in range(num_documents):
        ids = make()
        readings = readings_of(latent, ids)
        focus = int(np.argmax(readings))
        row = (latent, number % 3, number // 3, max(readings), 0, number + 1, focus, focus)
        arrays = np.array(ids, np.int32).tobytes(), np.array(readings, np.float16).tobytes()
        connection.execute("INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, *arrays))
