"""Which tokens of a reply are reasoning: text between delimiters such as `<think>` and `</think>`.

A token is reasoning if a block is open before or after it: the delimiters belong to their block. An opening delimiter
that is split over tokens is known by its last one alone, so the tokens before that are still the answer's; a reply that
is read while it is written could not know better, and one that is read later is read alike. Delimiters are looked for
in the text of all tokens, special ones too. Needs a tokenizer alone, no model.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import DecodeStream


@dataclass(frozen=True, slots=True)
class Delimiters:
    """What encloses a block of reasoning."""

    opening: str
    closing: str

    def __post_init__(self) -> None:
        if not self.opening or not self.closing or self.opening == self.closing:
            raise ValueError(f"must be two texts that differ, got {self.opening!r} and {self.closing!r}")


THINK = Delimiters("<think>", "</think>")
KNOWN = (
    THINK,
    Delimiters("<thinking>", "</thinking>"),
    Delimiters("<reasoning>", "</reasoning>"),
    Delimiters("[THINK]", "[/THINK]"),
    Delimiters("<seed:think>", "</seed:think>"),
    Delimiters("<|START_THINKING|>", "<|END_THINKING|>"),
    Delimiters("<|channel|>analysis<|message|>", "<|end|>"),
)
"""Those of models' own chat templates."""

_TAIL_TOKENS = 32
"""Of a prompt, so many are looked at for an opening delimiter at its end."""


def parse_delimiters(text: str) -> tuple[Delimiters, ...] | None:
    """`OPENING CLOSING`, several pairs joined by commas; none for `none`; None, to look at the model, for `auto`.

    ValueError for anything else.
    """
    if text == "auto":
        return None
    if text == "none":
        return ()
    pairs = [pair.split() for pair in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"must be auto, none, or OPENING CLOSING[,OPENING CLOSING...], got {text!r}")
    return tuple(Delimiters(*pair) for pair in pairs)


def delimiters_of(tokenizer: Any, setting: str = "auto") -> tuple[Delimiters, ...]:
    """As `setting` says, for `parse_delimiters`. For `auto`: the known ones whose opening stands in the model's chat
    template or among its added tokens; without any, THINK."""
    chosen = parse_delimiters(setting)
    if chosen is not None:
        return chosen
    template = json.dumps(tokenizer.chat_template, ensure_ascii=False) if tokenizer.chat_template else ""
    added = tokenizer.get_added_vocab()
    found = [known for known in KNOWN if known.opening in added or json.dumps(known.opening)[1:-1] in template]
    return tuple(found) or (THINK,)


class ReasoningReader:
    """One reply, token by token."""

    def __init__(self, tokenizer: Any, delimiters: Iterable[Delimiters], prompt_ids: Sequence[int] = ()) -> None:
        """`prompt_ids` is what the reply follows on: if an opening delimiter ends it, blanks aside, the reply begins
        inside that block, as templates have it that make a model think."""
        self._tokenizer = tokenizer
        self._delimiters = tuple(delimiters)
        self._stream = DecodeStream(skip_special_tokens=False)
        self._open: Delimiters | None = None
        self._tail = ""
        """The last text that may be the beginning of the delimiter looked for."""
        if self._delimiters and prompt_ids:
            end = str(tokenizer.decode(list(prompt_ids[-_TAIL_TOKENS:]), skip_special_tokens=False)).rstrip()
            self._open = next((pair for pair in self._delimiters if end.endswith(pair.opening)), None)

    def push(self, token_id: int) -> bool:
        """Whether the next token is reasoning."""
        if not self._delimiters:
            return False
        was_open = self._open is not None
        piece = self._stream.step(self._tokenizer.backend_tokenizer, token_id)
        if piece:
            was_open = self._read(piece) or was_open
        return was_open or self._open is not None

    def _read(self, piece: str) -> bool:
        """Takes more text; whether a block was open anywhere in it."""
        text, any_open = self._tail + piece, False
        while (found := self._next_delimiter(text)) is not None:
            pair, end = found
            self._open = None if self._open is not None else pair
            any_open, text = True, text[end:]
        longest = max(len(text) for pair in self._delimiters for text in (pair.opening, pair.closing))
        self._tail = text[-(longest - 1) :] if longest > 1 else ""
        return any_open

    def _next_delimiter(self, text: str) -> tuple[Delimiters, int] | None:
        """The first that opens a block, or of an open one the one that closes it; and where it ends."""
        if self._open is not None:
            at = text.find(self._open.closing)
            return None if at < 0 else (self._open, at + len(self._open.closing))
        places = [(at, pair) for pair in self._delimiters if (at := text.find(pair.opening)) >= 0]
        if not places:
            return None
        at, pair = min(places, key=lambda place: place[0])
        return pair, at + len(pair.opening)


def reasoning_flags(
    tokenizer: Any, ids: Sequence[int], start: int, end: int, delimiters: Iterable[Delimiters]
) -> list[bool]:
    """Whether each of the tokens [start, end) is reasoning: those of one reply, which follows on what stands before."""
    reader = ReasoningReader(tokenizer, delimiters, ids[:start])
    return [reader.push(token) for token in ids[start:end]]
