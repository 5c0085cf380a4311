"""statement_ends: by hand, and however tokens cut the text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.statement_ends import statement_ends

TEXTS = {
    "Paris": ["Paris"],
    "It is Paris. I am sure!": ["It is Paris.", "I am sure!"],
    'He said "no." Then he left.': ['He said "no."', "Then he left."],
    "Pi is 3.14 or so": ["Pi is 3.14 or so"],
    "- one\n- two\n\nThree?  Four": ["- one", "- two", "Three?", "Four"],
    "\u771f\u7684\u3002 \u5417\uff1f\n": ["\u771f\u7684\u3002", "\u5417\uff1f"],
    "\u771f\u7684\u3002\u5417\uff1f\u5bf9": ["\u771f\u7684\u3002", "\u5417\uff1f", "\u5bf9"],
    "\u300c\u771f\u7684\uff1f\uff01\u300d\u5bf9": ["\u300c\u771f\u7684\uff1f\uff01\u300d", "\u5bf9"],
    "one  \ntwo": ["one", "two"],
    "three\r\nfour": ["three", "four"],
    "Wait... what": ["Wait...", "what"],
}


def tokens_of(text, cuts):
    edges = [0, *sorted(cut for cut in set(cuts) if 0 < cut < len(text)), len(text)]
    return list(pairwise(edges))


@pytest.mark.parametrize("text", TEXTS)
def test_the_last_letter_of_each_statement_is_an_end(text):
    spans = tokens_of(text, range(len(text)))
    ends = statement_ends(text, spans, range(len(spans)), len(text))
    assert ends == {text.index(said) + len(said) - 1 for said in TEXTS[text]}


@given(st.sampled_from(sorted(TEXTS)), st.sets(st.integers(1, 30)))
def test_tokens_that_cut_it_otherwise_end_where_they_take_in_a_last_letter(text, cuts):
    spans = tokens_of(text, cuts)
    wanted = set()
    for number, (start, stop) in enumerate(spans):
        # A token has one end at most: its last letter that is no blank.
        last = start + len(text[start:stop].rstrip()) - 1
        if last >= start and any(last == text.index(said) + len(said) - 1 for said in TEXTS[text]):
            wanted.add(number)
    assert statement_ends(text, spans, range(len(spans)), len(text)) == wanted


@pytest.mark.parametrize(
    ("text", "whole"), [("One. Two", 1), ("One. Two.", 2), ("One.\nTwo \n", 2), ("One. Two.\n", 2)]
)
def test_a_text_that_was_cut_off_ends_with_a_statement_only_if_that_has_an_end(text, whole):
    spans = tokens_of(text, range(len(text)))
    ends = statement_ends(text, spans, range(len(spans)), len(text), is_cut_off=True)
    assert sorted(ends) == [text.index(said) + len(said) - 1 for said in ("One.", text[5:].rstrip())][:whole]


def test_only_scored_tokens_count_and_nothing_behind_the_message():
    text = "One. Two. Three<end>"
    spans = tokens_of(text, range(len(text)))
    assert statement_ends(text, spans, range(len(spans)), len(text) - 5) == {3, 8, 14}
    assert statement_ends(text, spans, [5, 6, 7, 8, 9], len(text) - 5) == {8}
    assert statement_ends(text, spans, [], len(text)) == frozenset()
