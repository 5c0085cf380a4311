"""Where statements end in a text: what a model holds true or false is clearest at the last token of what it says.

A statement ends with a sentence, a line, or the text. An abbreviation ("Dr. Smith") looks like an end too.
"""

import re
from collections.abc import Sequence

from sae_runtime.chat_template import Span

_SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u201d\u2019)\]*_]*\Z")
_LONGEST_END = 8
"""Characters that are looked at: a mark and what may close behind it."""


def statement_ends(text: str, spans: Sequence[Span], scored: Sequence[int], end: int) -> frozenset[int]:
    """Those of the scored tokens with which a statement ends.

    Args:
        text: what the tokens are of.
        spans: [start, end) in `text` of every token.
        scored: positions.
        end: where the message ends in `text`: what follows is the template's.
    """
    text = text[:end]
    last = len(text.rstrip())
    return frozenset(position for position in scored if _ends_a_statement(text, last, spans[position]))


def _ends_a_statement(text: str, last: int, span: Span) -> bool:
    """Whether the token's last letter is the text's, which ends at `last`; or a blank follows it and it is a closing
    mark, or a new line does."""
    start, stop = span
    said = text[start:stop].rstrip()
    end = start + len(said)
    if said and end == last:
        return True
    blank = text[end : stop + 1]
    if not said or not blank[:1].isspace():
        return False
    blank = blank[: len(blank) - len(blank.lstrip())]
    return "\n" in blank or _SENTENCE_END.search(text[max(0, end - _LONGEST_END) : end]) is not None
