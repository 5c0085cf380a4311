"""Text as words that can be compared, each knowing where it stands.

Upper and lower case, diacritics, sub- and superscripts, typographic apostrophes, possessive endings, punctuation and
thousands separators make no difference. The article "the" is no word. Numbers are read in digits and in English words.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
_ACCENTS = "\N{COMBINING GRAVE ACCENT}-\N{COMBINING LATIN SMALL LETTER X}"
_PATTERN = re.compile(
    r"(?<![\w.])[-\N{MINUS SIGN}]\d+(?:\.\d+)?(?!\w)"  # a negative number
    r"|\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w,])"  # thousands separators
    r"|(?<![\w.,])\d{1,3}(?:[ \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}]\d{3})+(?![\w.,]\d|\w)"  # blanks for them
    r"|\d+(?:\.\d+)?(?:st|nd|rd|th)?(?!\d)"  # what begins with digits; a unit behind them is a word of its own
    rf"|[^\W\d_][\w{_ACCENTS}]*(?:['{_APOSTROPHE}]\w+)*",
    re.IGNORECASE,
)
_NO_DECOMPOSITION = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "\N{LATIN SMALL LETTER DOTLESS I}": "i", "_": None}
)
"""Letters that Unicode does not take apart."""


class Word(NamedTuple):
    """One word of a text."""

    text: str
    """As it is compared."""
    start: int
    """First character, in the text as it was given."""
    end: int
    """The one behind the last."""
    is_capital: bool
    """Whether it begins with an upper-case letter."""


class Number(NamedTuple):
    """A number that words name."""

    value: float
    first: int
    """Of its words."""
    end: int
    """The word behind the last."""
    is_spelled: bool
    """In words, not in digits."""
    is_ordinal: bool


def words_of(text: str) -> list[Word]:
    """The words of `text`."""
    found = []
    for match in _PATTERN.finditer(text):
        shape = _shape(match.group())
        if shape and shape != "the":
            found.append(Word(shape, match.start(), match.end(), match.group()[0].isupper()))
    return found


@lru_cache(maxsize=16_384)
def phrase(text: str) -> tuple[str, ...]:
    """`text` as what its words are compared by."""
    return tuple(word.text for word in words_of(text))


def _shape(word: str) -> str:
    plain = unicodedata.normalize("NFKD", word).casefold().replace(_APOSTROPHE, "'")
    plain = "".join(char for char in plain if not unicodedata.combining(char)).translate(_NO_DECOMPOSITION)
    if plain[-1:].isalpha() and plain[:1].isdigit():  # 16th
        plain = plain.rstrip("stndrh")
    if plain[:1].isdigit():
        return "".join(plain.replace(",", "").split())
    return plain.replace("\N{MINUS SIGN}", "-").removesuffix("'s")


def places(words: Sequence[Word], wanted: tuple[str, ...]) -> list[int]:
    """Where `wanted` begins among `words`. Its last word may have a plural ending there."""
    if not wanted:
        return []
    *head, last = wanted
    lasts = {last} if last[-1:].isdigit() or len(last) < 3 else {last, last + "s", last + "es"}
    return [
        i
        for i in range(len(words) - len(head))
        if words[i + len(head)].text in lasts and [word.text for word in words[i : i + len(head)]] == head
    ]


# --- numbers --------------------------------------------------------------------------------------------------------

_UNIT_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS, _TENS = _UNIT_WORDS.split(), _TENS_WORDS.split()
_SMALL = dict(zip(_UNITS, range(20), strict=True)) | dict(zip(_TENS, range(20, 100, 10), strict=True))
_LARGE = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_IRREGULAR = {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}
_ORDINALS = _IRREGULAR | {
    (name[:-1] + "ie" if name.endswith("y") else name) + "th": value
    for name, value in _SMALL.items()
    if value not in _IRREGULAR.values()
}


def numbers_in(words: Sequence[Word]) -> list[Number]:
    """All numbers that `words` name, in order."""
    found: list[Number] = []
    i = 0
    while i < len(words):
        number = _digits(words, i) or _spelled(words, i)
        if number is not None:
            found.append(number)
        i = i + 1 if number is None else number.end
    return found


def _digits(words: Sequence[Word], i: int) -> Number | None:
    """The number in digits that stands at `i`, with the word for its size behind it: "3.5 million"."""
    word = words[i]
    if not re.fullmatch(r"-?\d+(\.\d+)?", word.text):
        return None
    if i + 1 < len(words) and words[i + 1].text in _LARGE:
        value = round(float(word.text) * _LARGE[words[i + 1].text], 6)
        return Number(value, i, i + 2, is_spelled=False, is_ordinal=False)
    is_ordinal = word.end - word.start == len(word.text) + 2 and word.text.isdigit()
    return Number(float(word.text), i, i + 1, is_spelled=False, is_ordinal=is_ordinal)


def _spelled(words: Sequence[Word], first: int) -> Number | None:
    """The number in words that begins at `first`: "one hundred and twenty-three", "nineteen forty-five"."""
    total = group = 0
    i, end, lowest = first, first, 100
    is_ordinal = False
    while i < len(words) and not is_ordinal:
        text = words[i].text
        if end == first + 1 and 10 <= group <= 20 and _SMALL.get(text, 0) >= 20:  # a year: nineteen forty-five
            group, lowest = group * 100 + _SMALL[text], 10
        elif text in _SMALL and _SMALL[text] < lowest:
            group, lowest = group + _SMALL[text], 10 if _SMALL[text] >= 20 else 0
        elif text in _ORDINALS and _ORDINALS[text] < lowest:
            group, is_ordinal = group + _ORDINALS[text], True
        elif text == "hundred":
            group, lowest = (group or 1) * 100, 100
        elif text in _LARGE:
            total, group, lowest = total + (group or 1) * _LARGE[text], 0, 100
        elif text == "and" and end > first and words[end - 1].text in _LARGE:
            i += 1
            continue
        else:
            break
        i = end = i + 1
    return Number(float(total + group), first, end, is_spelled=True, is_ordinal=is_ordinal) if end > first else None
