"""A stream from a hub that has no end."""

import itertools
from collections.abc import Iterator

import pytest


def endless_stream(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make every `hf-stream:` one, with a text to a record. Returns the numbers of the records read so far."""
    seen: list[int] = []

    def read(spec: str) -> Iterator[tuple[str, str]]:
        for number in itertools.count():
            seen.append(number)
            yield f"Text number {number} of a stream without an end.", spec

    monkeypatch.setattr("discovery.corpus.read_hf", read)
    return seen
