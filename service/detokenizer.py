"""Token ids -> text, a token at a time: whole characters only, and never any part of a stop string.

The deltas of a generation, concatenated, are the one-shot decode of its tokens (cut before the stop string if one
matched, and without what was left out). `push` tells what a token adds; what it holds back comes with a later token,
or with the last.
"""

from typing import Any

from tokenizers.decoders import DecodeStream

_BROKEN = "\ufffd"
"""What stands for bytes that are no character, or none yet."""


class Detokenizer:
    """One generation's text."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        """`tokenizer` is a fast tokenizer of transformers."""
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._ids: list[int] = []
        self._decoded = ""
        self._num_sent = 0
        self._num_clear = 0
        """Where the first stop string that is still possible could begin; only text that was left out lies behind."""
        self._left_out = ""
        """What the next text begins with that was left out: `_unfinished` at that time."""
        self.matched_stop: str | None = None

    def push(self, token_id: int) -> str:
        """Text that this token frees. After a match: the text before the stop string, and `matched_stop` is set."""
        self._ids.append(token_id)
        piece = self._stream.step(self._tokenizer.backend_tokenizer, token_id)
        if not piece:
            return ""
        # A stop string that ends in `piece` may have begun before it, but in text not yet sent.
        self._pass_over(piece)
        self._decoded += piece
        return self._free()

    def leave_out(self) -> str:
        """Text that was held back up to here and is not to be sent any more.

        It still ends the generation if it is the beginning of a stop string. A character that is not complete yet is
        left out when it is.
        """
        known, self._left_out = self._left_out.rstrip(_BROKEN), self._unfinished()
        left_out = self._decoded[self._num_sent :] + self._left_out.rstrip(_BROKEN).removeprefix(known)
        self._num_sent = len(self._decoded)
        return left_out

    def flush(self) -> str:
        """What is still held back, at the end of the generation."""
        if self.matched_stop is not None:
            return ""
        # The stream keeps an incomplete character for ever; the one-shot decode shows it as U+FFFD.
        piece = self._unfinished()
        self._pass_over(piece)
        self._decoded += piece
        freed = self._free()
        if self.matched_stop is None:
            freed += self._decoded[self._num_sent :]
            self._num_sent = len(self._decoded)
        return freed

    def _unfinished(self) -> str:
        """What the one-shot decode has behind the text so far: a character that is not complete yet, and what the token
        in which it begins has before it."""
        whole = str(self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return whole[len(self._decoded) :] if whole.startswith(self._decoded) else ""

    def _pass_over(self, piece: str) -> None:
        """Send nothing of what was left out before it was text: `piece` comes next."""
        if self._left_out and piece:
            self._num_sent += _num_begun(self._left_out, piece)
            self._left_out = ""

    def _free(self) -> str:
        """Text not yet sent that can't be part of a stop string any more."""
        matches = [(at, stop) for stop in self._stop if (at := self._decoded.find(stop, self._num_clear)) >= 0]
        if matches:
            end, self.matched_stop = min(matches)
        else:
            end = len(self._decoded) - self._num_held()
        freed = self._decoded[self._num_sent : end]
        self._num_clear = max(self._num_clear, end)
        self._num_sent = max(self._num_sent, end)
        return freed

    def _num_held(self) -> int:
        """Length of the longest tail that begins some stop string, of the text that may hold its beginning."""
        unclear = len(self._decoded) - self._num_clear
        longest = min(max((len(stop) - 1 for stop in self._stop), default=0), unclear)
        for length in range(longest, 0, -1):
            tail = self._decoded[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0


def _num_begun(unfinished: str, text: str) -> int:
    """Characters of `text` that began in `unfinished`, the same text when its last character was not complete yet.

    Several bytes of that character may stand as U+FFFD each, and so may bytes before it that never make a character.
    """
    whole = unfinished.rstrip(_BROKEN)
    num_broken, rest = len(unfinished) - len(whole), text[len(whole) :]
    num_still_broken = len(rest) - len(rest.lstrip(_BROKEN))
    return len(whole) + min(num_still_broken + 1, num_broken)
