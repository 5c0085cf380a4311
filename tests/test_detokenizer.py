"""Text deltas against the one-shot decode: whole characters, and stop strings that are never sent, not even in part."""

import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

from service.detokenizer import Detokenizer

TOKENIZER = tiny.byte_tokenizer()
SPECIAL = TOKENIZER.all_special_ids
any_ids = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40)
"""Bytes in any order: cut characters, stray continuations, overlong forms, and special tokens between them."""


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def deltas(ids, stop=()):
    """What every token sends, up to a match; the last is what the end sends."""
    detokenizer = Detokenizer(TOKENIZER, tuple(stop))
    sent = []
    for token in ids:
        sent.append(detokenizer.push(token))
        if detokenizer.matched_stop is not None:
            break
    return [*sent, detokenizer.flush()], detokenizer.matched_stop


@given(any_ids)
@example(ids_of("\N{GRINNING FACE}")[:3])
@example(ids_of("a\ufffdb"))
@example([*ids_of("ö")[:1], SPECIAL[0], *ids_of("ö")[1:]])
def test_deltas_are_the_one_shot_decode(ids):
    sent, _ = deltas(ids)
    assert "".join(sent) == decode(ids)


@given(st.text(max_size=30))
def test_no_delta_shows_half_a_character(text):
    sent, _ = deltas(ids_of(text))
    assert "".join(sent) == text
    assert all("\ufffd" not in delta for delta in sent if "\ufffd" not in text)


def test_a_character_comes_with_its_last_byte():
    sent, _ = deltas(ids_of("aöb"))
    assert sent == ["a", "", "ö", "b", ""]


def test_special_tokens_add_no_text():
    sent, _ = deltas([*ids_of("a"), SPECIAL[1], *ids_of("b")])
    assert sent == ["a", "", "b", ""]


def test_a_tokenizer_with_words_keeps_its_spaces():
    """Tokenizers that mark word beginnings drop the first one's space, and only that."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "▁the": 1, "▁sea": 2, "s": 3, "▁": 4}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    for ids in ([1, 2, 3, 1], [2], [4, 1, 4, 4, 2], [3, 3]):
        detokenizer = Detokenizer(tokenizer)
        assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == tokenizer.decode(ids)


# --- stop strings ---

letters = st.text(alphabet="abö", max_size=20)
stops = st.lists(st.text(alphabet="abö", min_size=1, max_size=4), min_size=1, max_size=4)


def first_end(text: str, stop: list[str]) -> int | None:
    """Where the first stop string to be complete ends."""
    return min((at + len(s) for s in stop if (at := text.find(s)) >= 0), default=None)


@given(letters, stops)
@example("aab", ["ab", "aab"])
@example("abab", ["bab", "abab"])
@example("aaö", ["aab", "aö"])
def test_stop_strings_are_cut_exactly(text, stop):
    sent, matched = deltas(ids_of(text), stop)
    end = first_end(text, stop)
    if end is None:
        assert (matched, "".join(sent)) == (None, text)
        return
    # Of several that are complete with the same character, the one that began first.
    complete = [s for s in stop if text[:end].endswith(s)]
    assert matched == max(complete, key=len)
    assert "".join(sent) == text[: end - len(matched)]


@given(letters, stops)
def test_no_part_of_a_stop_string_is_ever_sent(text, stop):
    """Whatever was sent at any moment stands before the stop string, and no later than that could it be known."""
    sent, _ = deltas(ids_of(text), stop)
    wanted = "".join(sent)
    end = first_end(text, stop)
    so_far = ""
    for delta, token_end in zip(sent, range(1, len(sent) + 1), strict=True):
        so_far += delta
        assert wanted.startswith(so_far)
        assert not any(s in so_far for s in stop)
        read = decode(ids_of(text)[:token_end])
        if end is None and token_end < len(sent):
            # What is held back could still become a stop string; nothing else is.
            held = read.removesuffix("\ufffd")[len(so_far) :]
            assert held == "" or any(s.startswith(held) for s in stop)


def test_a_stop_string_within_one_token_is_cut_too():
    """Tokens of more than one character, as all real vocabularies have them."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"xaaby": 0, "aa": 1, "bz": 2}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    for ids, stop, text, matched in (
        ([1, 0], "ab", "aaxa", "ab"),
        ([0], "by", "xaa", "by"),
        ([1, 2, 0], "bzx", "aa", "bzx"),
        ([1, 2], "zz", "aabz", None),
    ):
        detokenizer = Detokenizer(tokenizer, (stop,))
        assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == text
        assert detokenizer.matched_stop == matched


def test_text_held_back_is_sent_at_the_end():
    sent, matched = deltas(ids_of("one st"), ["stop"])
    assert (sent, matched) == (["o", "n", "e", " ", "", "", "st"], None)


def test_a_stop_string_with_a_broken_character_before_it_is_found():
    ids = [*ids_of("ö")[:1], *ids_of("stop")]
    sent, matched = deltas(ids, ["stop"])
    assert ("".join(sent), matched) == ("\ufffd", "stop")


@pytest.mark.parametrize("stop", ["\ufffd", "b\ufffd"])
def test_a_stop_string_of_a_replacement_character_ends_at_the_end(stop):
    """An incomplete character becomes one only when no more bytes can come."""
    sent, matched = deltas([*ids_of("ab"), *ids_of("ö")[:1]], [stop])
    assert ("".join(sent), matched) == ("ab"[: 3 - len(stop)], stop)
