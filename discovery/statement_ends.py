"""Where statements end in a text: what a model holds true or false is clearest at the last token of what it says.

A statement ends with a sentence, a line, or the text. An abbreviation ("Dr. Smith") and the number of a list's entry
("1. First") look like ends too.
"""

import re
from collections.abc import Sequence

from sae_runtime.chat_template import Span

_CLOSING = r"[\"'\u201d\u2019\u300d\u300f\uff09)\]*_]*"
_SENTENCE_END = re.compile(rf"[.!?\u2026]{_CLOSING}\Z")
_FULL_WIDTH_END = re.compile(rf"[\u3002\uff01\uff1f]{_CLOSING}\Z")
"""Marks that no blank follows."""
_MORE = re.compile(r"[\u3002\uff01\uff1f\"'\u201d\u2019\u300d\u300f\uff09)\]*_]")
"""What still belongs to such an end."""
_BLANKS = re.compile(r"\s*")
_LONGEST_END = 8
"""Characters that are looked at: a mark and what may close behind it."""


def statement_ends(
    text: str, spans: Sequence[Span], scored: Sequence[int], end: int, *, is_cut_off: bool = False
) -> frozenset[int]:
    """Those of the scored tokens with which a statement ends.

    Args:
        text: what the tokens are of.
        spans: [start, end) in `text` of every token.
        scored: positions.
        end: where the message ends in `text`: what follows is the template's.
        is_cut_off: whether it ends for want of room, and so may stop inside a statement.
    """
    text = text[:end]
    last = len(text.rstrip())
    return frozenset(position for position in scored if _ends_a_statement(text, last, spans[position], is_cut_off))


def _ends_a_statement(text: str, last: int, span: Span, is_cut_off: bool) -> bool:
    """Whether the token's last letter is the text's, which ends at `last`; or is a closing mark, with a blank behind it
    if it needs one; or has a new line behind it."""
    start, stop = span
    said = text[start:stop].rstrip()
    end = start + len(said)
    if not said:
        return False
    tail = text[max(0, end - _LONGEST_END) : end]
    if end == last and not is_cut_off:
        return True
    if _FULL_WIDTH_END.search(tail):
        return _MORE.match(text, end) is None
    blank = _BLANKS.match(text, end)
    assert blank is not None
    if not blank[0]:
        return end == last and _SENTENCE_END.search(tail) is not None
    return any(mark in blank[0] for mark in "\r\n") or _SENTENCE_END.search(tail) is not None
