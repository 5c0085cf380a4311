"""Tokens as bytes, so that they can be shown one by one without the tokenizer, and still add up to the text.

A token of a byte-level vocabulary can hold part of a character. `pieces_of` gives such a character to its last token.
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from monitors.token_pieces import pieces_of as pieces_of

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SENTENCEPIECE_SPACE = "\u2581"


def token_bytes(tokenizer: Any, token_ids: Iterable[int]) -> dict[int, bytes]:
    """Bytes of each token, special ones by name. `tokenizer` is a fast tokenizer of transformers."""
    ids = list(token_ids)
    byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    added = set(tokenizer.get_added_vocab().values())
    return {
        token_id: _bytes_of(name or "", byte_level and token_id not in added)
        for token_id, name in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    }


def vocabulary_sha256(tokenizer: Any) -> str:
    """Of all that `token_bytes` goes by: names and ids of tokens, and how the names are spelt."""
    vocabulary = sorted(tokenizer.get_vocab().items()), sorted(tokenizer.get_added_vocab().items())
    return sha256(json.dumps([vocabulary, str(tokenizer.backend_tokenizer.decoder)]).encode()).hexdigest()


def _bytes_of(name: str, byte_level: bool) -> bytes:
    if byte_level:
        return bytes(_alphabet()[character] for character in name)
    if match := _BYTE_TOKEN.fullmatch(name):
        return bytes.fromhex(match[1])
    return name.replace(_SENTENCEPIECE_SPACE, " ").encode("utf-8", "replace")


@cache
def _alphabet() -> dict[str, int]:
    """The byte of each character that byte-level vocabularies are written in.

    Printable bytes stand for themselves, the others for characters from U+0100 on, in order (GPT-2's encoder.py).
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    assert set(alphabet) == set(ByteLevel.alphabet())
    return alphabet


def printable(text: str) -> str:
    """For a terminal: line ends as signs, and what a terminal would obey spelt out."""
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
