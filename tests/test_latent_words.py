"""Words as they are compared, what they weigh, and the order of what is found."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.latent_entry import QuotedExample
from monitors.latent_words import WEIGHTS, Field, example_words, rank, word_weights, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Whale's whales", ["the", "whale", "s", "whale"]),
        ("_Moby_-Dick, or: 1851", ["moby", "dick", "or", "1851"]),
        ("Café CAFE\u0301 für", ["cafe", "cafe", "fur"]),
        ("nai\u0308ve", ["naive"]),
        ("cities lies ties glass virus goes", ["city", "lie", "tie", "glass", "virus", "goe"]),
        ("ΣΊΣΥΦΟΣ 東京", ["σισυφοσ", "東京"]),
        ('" * NEAR(a b) OR \x00 ^', ["near", "a", "b", "or"]),
        ("... \n\t", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


@given(st.text(max_size=60))
def test_any_text_has_the_words_of_its_upper_and_lower_case(text):
    if text.upper().lower() == text.lower():
        assert words_of(text.lower()) == words_of(text.casefold())
    assert all(words_of(text)), "no word is empty"


def example(pieces, readings, reading):
    return QuotedExample(reading, "s", 0, tuple(range(len(pieces))), tuple(pieces), tuple(readings))


def test_a_word_is_active_if_any_of_its_tokens_is_strongly():
    one = example([" the", " wh", "ale", "s", ",", " old", " sea"], [0, 0, 4.0, 0, 1.0, 1.9, 2.0], 4.0)
    assert example_words(one) == ({"whale", "sea"}, {"the", "old"})


def test_a_word_that_is_active_once_is_not_context_too():
    assert example_words(example([" sea", " sea"], [0, 4.0], 4.0)) == ({"sea"}, set())


@given(st.lists(st.text(alphabet="ab 'é\n", max_size=4), min_size=1, max_size=8), st.data())
def test_words_of_pieces_are_those_of_the_text(pieces, data):
    readings = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(pieces), max_size=len(pieces)))
    active, beside = example_words(example(pieces, readings, 1.0))
    assert active | beside == set(words_of("".join(pieces)))
    assert not active & beside


def test_weights_count_by_the_share_of_texts_that_have_the_word():
    found = {Field.TITLE: [{"sea"}], Field.CONTEXT: [{"sea"}, {"old"}, set(), set()], Field.SUMMARY: [set()]}
    assert word_weights(found) == {"sea": WEIGHTS[Field.TITLE] + 2, "old": 2}
    everything = {field: [{"x"}] for field in Field}
    assert word_weights(everything)["x"] == 255, "a weight is a byte"
    assert word_weights({Field.CONTEXT: [{"x"}, *[set()] * 99]}) == {"x": 1}


def test_all_words_must_be_there_and_rare_ones_count_more():
    common = {0: 10, 1: 10, 2: 20, 3: 10}
    rare = {2: 10, 0: 10}
    ranked = rank([common, rare], 100)
    assert [latent for latent, _ in ranked] == [2, 0]
    assert ranked[1][1] == pytest.approx(10 * math.log(1 + 100 / 4) + 10 * math.log(1 + 100 / 2))
    assert rank([common, {}], 100) == [] == rank([], 100)
    assert [latent for latent, _ in rank([common], 100)] == [2, 0, 1, 3], "equals by index"
