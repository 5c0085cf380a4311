"""Tokens as texts that add up: a token of a byte-level vocabulary can hold part of a character."""

import codecs
from collections.abc import Sequence


def pieces_of(tokens: Sequence[bytes]) -> tuple[str, ...]:
    """Texts of the tokens; a character of several tokens goes to its last. What is no UTF-8 is U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = len(tokens) - 1
    return tuple(decoder.decode(token, final=index == last) for index, token in enumerate(tokens))
