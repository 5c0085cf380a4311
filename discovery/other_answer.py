"""Whether a reply that names neither the right answer nor a listed wrong one gives an answer all the same.

A short reply is an answer if it says anything that the question did not: "Nagoya". Of one sentence it is what follows
the verb that is looked at ("The capital of Japan is Nagoya."), or another proper name where one was asked for. Of more
than a sentence nothing is said.
"""

import re
from collections.abc import Sequence
from itertools import dropwhile

from discovery.answer_words import Word, numbers_in, phrase, words_of
from discovery.question_set import Question

SHORT_WORDS = 6
SENTENCE_WORDS = 30
_MAX_COMPLEMENT_WORDS = 3

_EMPTY_WORDS = """
a an and as at by for from has have how i in into is it its me my of on or our so that this to was were what when where
which who why will with you your are be been called named known means equal equals am did do does he her his here she
there they their these those we can may not no yes yeah sure ok okay certainly absolutely course well hello hi please
thanks thank welcome answer answers question correct right true response reply following let happy glad help assist know
one some any most more very also just only i'm i'll i'd you're it'll don't can't let's
"""
_EMPTY = set(_EMPTY_WORDS.split())
"""Words that are no answer."""
_LINKS = {"is", "are", "was", "were", "called", "named", "equals", "means", "be"}
_CAPITAL_WORDS = """
american english british scottish irish french german italian spanish portuguese dutch russian chinese japanese korean
indian greek roman latin european asian african arab turkish polish austrian swiss swedish norwegian danish finnish
egyptian mexican brazilian canadian australian christian jewish muslim january february march april june july august
september october november december monday tuesday wednesday thursday friday saturday sunday
"""
_NO_NAMES = set(_CAPITAL_WORDS.split())
"""Words with a capital letter that are no proper names of people or places."""
_TITLE_WORDS = "sir lord lady mr mrs ms dr professor captain president king queen emperor pope saint st author"
_TITLES = set(_TITLE_WORDS.split())
"""What may stand before a last name."""


def is_another_name(question: Question, words: Sequence[Word], text: str, first: int, end: int) -> bool:
    """Whether words [`first`, `end`) are an accepted last name with a first name that is not: Louis Armstrong."""
    accepted = [phrase(answer) for answer in question.answers]
    is_last_name = end - first == 1 and any(len(one) > 1 and one[-1] == words[first].text for one in accepted)
    if question.answer_type != "name" or not is_last_name or first == 0:
        return False
    before = words[first - 1]
    known = {word for one in accepted for word in one} | {word.text for word in words_of(question.question)}
    is_name = before.is_capital and before.text not in known | _EMPTY | _NO_NAMES | _TITLES
    return is_name and text[before.end : words[first].start] == " "


def names_something_else(question: Question, words: Sequence[Word], text: str) -> bool:
    """Whether the reply of these `words`, of which none is an answer that is known, is one all the same."""
    if question.answer_type == "statement":
        return False  # what is wrong there is listed
    known = {word.text for word in words_of(question.question)} | _EMPTY
    links = [i for i, word in enumerate(words) if word.text in _LINKS]
    if len(words) > SENTENCE_WORDS or len(re.findall(r"[.!?](?:\s|$)", text.strip())) > 1:
        return False
    if question.answer_type in ("number", "year"):
        # Any number that was not asked about would have been named before: "A third of 99 is 99."
        said = words[links[-1] + 1 :] if links else words
        asked = {number.value for number in numbers_in(words_of(question.question))}
        found = numbers_in(said)
        return (
            len(found) == 1 and found[0].first == 0 and found[0].value in asked and len(said) <= _MAX_COMPLEMENT_WORDS
        )
    if len(words) <= SHORT_WORDS and not links:
        return any(word.text not in known for word in words)
    if question.answer_type == "name":
        names = known | _NO_NAMES
        # "Denmark is a country in Northern Europe" describes, and names nothing behind the verb.
        describes = bool(links) and [word.text for word in words[links[-1] + 1 : links[-1] + 2]] in (["a"], ["an"])
        said = words[: links[-1]] if describes else words
        return any(word.is_capital and word.text not in names for word in said)
    said = words[links[0] + 1 :] if links else []
    complement = [word.text for word in dropwhile(lambda word: word.text in _LINKS | {"a", "an"}, said)]
    return 0 < len(complement) <= _MAX_COMPLEMENT_WORDS and not any(text in known for text in complement)
