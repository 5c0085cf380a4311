"""answer_words: what counts as the same word, and as the same number."""

import pytest

from discovery.answer_words import numbers_in, phrase, places, words_of


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Paris", "paris."),
        ("Brasília", "**BRASILIA**"),
        ("Brasília", "Brasi\N{COMBINING ACUTE ACCENT}lia"),
        ("H₂O", "h2o"),
        ("The Hague", "hague"),
        ("J. K. Rowling", "J.K. Rowling"),
        ("Berners-Lee", "Berners Lee"),
        ("Pythagoras'", "Pythagoras"),
        ("Paris's", "Paris\N{RIGHT SINGLE QUOTATION MARK}s"),
        ("isn't", "isn\N{RIGHT SINGLE QUOTATION MARK}t"),
        ("złoty", "zloty"),
        ("Köln", "koln"),
        ("random-access memory", "Random Access Memory"),
        ("86,400", "86400"),
        ("16th", "16"),
        ("O(log n)", "O(Log N)"),
    ],
)
def test_what_makes_no_difference(text, same):
    assert phrase(text) == phrase(same) != ()


@pytest.mark.parametrize(
    ("text", "other"),
    [("Paris", "Pari"), ("-5", "5"), ("H2O", "H2O2"), ("Niger", "Nigeria"), ("1.5", "15"), ("D", "C")],
)
def test_what_makes_a_difference(text, other):
    assert phrase(text) != phrase(other)


def test_words_know_where_they_stand():
    text = "It\N{RIGHT SINGLE QUOTATION MARK}s the **São Paulo** of 1,000 tales"
    assert [text[word.start : word.end] for word in words_of(text)] == [
        "It\N{RIGHT SINGLE QUOTATION MARK}s",
        "São",
        "Paulo",
        "of",
        "1,000",
        "tales",
    ]
    assert [word.is_capital for word in words_of(text)] == [True, True, True, False, False, False]


def test_a_unit_behind_digits_is_a_word_of_its_own():
    assert phrase("100cm, 5kg, 37.5°C") == ("100", "cm", "5", "kg", "37.5", "c")


def test_places_are_whole_words_and_may_be_plural():
    words = words_of("New York, York; the red blood cells of horses, and a gas")
    assert places(words, phrase("York")) == [1, 2]
    assert places(words, phrase("New York")) == [0]
    assert places(words, phrase("red blood cell")) == [3]
    assert places(words, phrase("horse")) == [7]
    assert places(words, phrase("ga")) == []
    assert places(words, ()) == []


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("42", [42]),
        ("It is 1,760 yards.", [1760]),
        ("forty-two", [42]),
        ("one hundred and twenty-three thousand four hundred fifty-six", [123456]),
        ("a hundred", [100]),
        ("two hundred and six bones", [206]),
        ("nineteen forty-five, ten sixty-six", [1945, 1066]),
        ("five, six and seven", [5, 6, 7]),
        ("twenty one two", [21, 2]),
        ("three million and four", [3_000_004]),
        ("the 16th and the twenty-first, then the fortieth", [16, 21, 40]),
        ("-5 and 7-5", [-5, 7, 5]),
        ("3.14", [3.14]),
        ("1940s", [1940]),
        ("24/7", [24, 7]),
        ("often, someone, tent", []),
    ],
)
def test_numbers(text, values):
    assert [number.value for number in numbers_in(words_of(text))] == values


def test_numbers_say_how_they_are_written():
    found = numbers_in(words_of("16th, third, 16, three, twenty-first"))
    assert [(number.is_ordinal, number.is_spelled) for number in found] == [
        (True, False),
        (True, True),
        (False, False),
        (False, True),
        (True, True),
    ]
