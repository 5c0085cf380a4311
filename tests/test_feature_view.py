"""Latents on the command line: what is shown, in which colours, and nothing that a terminal would obey."""

import pytest
from fake_server import FEATURES
from rich.color import Color
from telltale.v1 import feature_pb2

from service import feature_view
from service.client_features import Example, ExampleToken, Feature, FeatureMatch
from service.client_wire import decode
from service.rendering import blend, color_of

LYING = decode(Feature, FEATURES[0])
NAMELESS = decode(Feature, feature_pb2.Feature(index=3, decoder_norm=0.5))


def example(*readings: float, focus: int = 1) -> Example:
    texts = ["a\x1b[2J", " b", "\n", "\tc"][: len(readings)]
    tokens = tuple(
        ExampleToken(text=text, reading=r, id=i) for i, (text, r) in enumerate(zip(texts, readings, strict=True))
    )
    return Example(reading=readings[focus], source="sour\x07ce", focus=focus, tokens=tokens)


def backgrounds(line):
    return {
        line.plain[span.start : span.end]: span.style.bgcolor for span in line.spans if not isinstance(span.style, str)
    }


def test_an_example_is_one_line_that_no_terminal_obeys():
    line = feature_view.example_line(example(0.0, 4.0, 0.0, 1.0), 8.0, with_marks=False)
    assert line.plain == "       4  a\\x1b[2J b⏎⇥c  sour\\x07ce"


def test_backgrounds_grow_with_the_reading_and_the_focus_is_underlined():
    line = feature_view.example_line(example(0.1, 8.0, 4.0, 16.0), 8.0, with_marks=False)
    found = backgrounds(line)
    shades = {text: None if color is None else tuple(color.triplet) for text, color in found.items()}
    assert shades == {
        "a\\x1b[2J": None,
        " b": blend(color_of(0), 0.8),
        "⏎": blend(color_of(0), 0.4),
        "⇥c": blend(color_of(0), 0.8),
    }
    underlined = [line.plain[s.start : s.end] for s in line.spans if not isinstance(s.style, str) and s.style.underline]
    assert underlined == [" b"]
    assert isinstance(found[" b"], Color)


def test_without_colours_the_focus_has_marks():
    assert "a\\x1b[2J »b«⏎" in feature_view.example_line(example(0, 1, 0), 1.0, with_marks=True).plain
    assert "»⏎«" in feature_view.example_line(example(0, 0, 1, focus=2), 1.0, with_marks=True).plain


def test_a_latent_of_which_nothing_is_known():
    parts = [part.plain for part in feature_view.whole(NAMELESS, num_examples=5, with_marks=False)]
    assert parts == ["     3  (no name)", "one unit of it adds 0.5 to the residual's norm"]


@pytest.mark.parametrize("number", [0, 1, 5, -1])
def test_no_more_examples_are_shown_than_asked_for(number):
    parts = [part.plain for part in feature_view.whole(LYING, num_examples=number, with_marks=True)]
    assert sum("»lie«" in part for part in parts) == (1 if number > 0 else 0)
    assert not any("\x1b" in part for part in parts)


def test_a_latent_that_never_fires_says_so():
    silent = decode(Feature, feature_pb2.Feature(index=3, statistics=feature_pb2.LatentStatistics(num_tokens=2000)))
    parts = [part.plain for part in feature_view.whole(silent, num_examples=5, with_marks=False)]
    assert "never active at 2,000 tokens" in parts


def test_matches_name_the_fields():
    match = FeatureMatch(feature=LYING, score=3.25, matched=("dominant_tokens", "context"))
    first, second = feature_view.matches([match], with_marks=True)
    assert first.plain == "     7  lying (validated)  3.25  in dominant tokens, context"
    assert second.plain == "       8  A »lie«,⏎  novels"
    (nothing,) = feature_view.matches([], with_marks=True)
    assert nothing.plain == "no latent has all of these words"
