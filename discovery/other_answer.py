"""Whether a reply that names neither the right answer nor a listed wrong one gives an answer all the same.

A short reply is an answer if it says anything that the question did not: "Nagoya". Of one sentence it is what follows
the verb that is looked at ("The capital of Japan is Nagoya."), or another proper name where one was asked for. Of more
than a sentence nothing is said.
"""

import re
from collections.abc import Sequence
from itertools import dropwhile

from discovery.answer_words import Word, numbers_in, words_of
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
        return len(numbers_in(said)) == 1 and numbers_in(said)[0].first == 0 and len(said) <= _MAX_COMPLEMENT_WORDS
    if len(words) <= SHORT_WORDS and not links:
        return any(word.text not in known for word in words)
    if question.answer_type == "name":
        names = known | _NO_NAMES
        return any(word.is_capital and word.text not in names for word in words)
    said = words[links[0] + 1 :] if links else []
    complement = [word.text for word in dropwhile(lambda word: word.text in _LINKS | {"a", "an"}, said)]
    return 0 < len(complement) <= _MAX_COMPLEMENT_WORDS and not any(text in known for text in complement)
