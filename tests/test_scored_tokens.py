"""scored_tokens: equal to a reference that puts the bytes of each token side by side."""

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from discovery.conversations import Conversation
from discovery.errors import LabelledDataError
from discovery.scored_tokens import encode, encode_all

TRIMMING = tiny.CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nIt was me. assistant<|im_end|>\n{% endif %}"
)
TEXTS = ["It was me, the whale said, and it was a whale.", "  two  blanks and größe \n", "naïve 鯨 🐳 whale"] * 3


def word_tokenizer(trim_offsets: bool, template: str = tiny.CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose tokens are longer than a byte, with blanks at their beginning."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=tiny.SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=tiny.SPECIAL_TOKENS[:2]
    )
    fast.chat_template = template
    return fast


TOKENIZERS = {
    "bytes": tiny.byte_tokenizer(),
    "words": word_tokenizer(False),
    "words, offsets trimmed": word_tokenizer(True),
    "template that trims": word_tokenizer(True, TRIMMING),
    "template with a system message": word_tokenizer(False, DEFAULT_SYSTEM + tiny.CHAT_TEMPLATE),
}


def conversation(content, first=0, end=None, *, prompt="Who?", role="assistant", **changes):
    messages = [] if role == "text" else [{"role": "user", "content": prompt}]
    fields = {"id": "1", "dataset": "made", "label": 1, "group": "g", "meta": {}} | changes
    end = len(content) if end is None else end
    return Conversation(
        messages=(*messages, {"role": role, "content": content}), first_char=first, end_char=end, **fields
    )


def token_bytes(tokenizer, token: int) -> bytes:
    """A token's own bytes, as byte-level BPE writes them into its name."""
    name = tokenizer.convert_ids_to_tokens(token)
    if name in tiny.SPECIAL_TOKENS:
        return name.encode()
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = {256 + n: byte for n, byte in enumerate(byte for byte in range(256) if byte not in kept)}
    return bytes(moved.get(ord(letter), ord(letter)) for letter in name)


def reference(tokenizer, made: Conversation) -> list[int]:
    """Positions whose bytes lie in the scored bytes, token by token from the beginning. None of a blank message."""
    content, is_text = made.messages[-1]["content"], made.messages[-1]["role"] == "text"
    text = content if is_text else tokenizer.apply_chat_template(list(made.messages), tokenize=False)
    is_trimmed = not is_text and "trim" in tokenizer.chat_template
    end_of_content = len(text) if is_text else len(text) - len("<|im_end|>\n")
    # Characters of the content that are left, each with its place in the text.
    left = range(len(content) - len(content.lstrip()), len(content.rstrip())) if is_trimmed else range(len(content))
    begin = end_of_content - len(left)
    scored = [begin + n for n, char in enumerate(left) if made.first_char <= char < made.end_char]
    if not scored or not (content.strip() or is_text):
        return []
    first, end = (len(text[:char].encode()) for char in (scored[0], scored[-1] + 1))
    tokens = tokenizer(text, add_special_tokens=is_text).input_ids
    sizes = [len(token_bytes(tokenizer, token)) for token in tokens]
    assert sum(sizes) == len(text.encode())
    begins = [sum(sizes[:position]) for position in range(len(tokens))]
    return [p for p in range(1, len(tokens)) if first <= begins[p] and begins[p] + sizes[p] <= end]


CONTENTS = [
    ("It was me.", 0, None),
    ("It was me.", 3, 6),
    ("It was me.", 2, 6),
    (" \n It was a whale. ", 0, None),
    (" \n It was a whale. ", 1, 9),
    ("größe and größe", 2, 12),
    ("鯨 🐳🐳 whale", 2, 4),
    ("assistant\n", 0, None),
    ("   ", 0, None),
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("role", ["assistant", "text"])
@pytest.mark.parametrize("content", CONTENTS, ids=[str(n) for n in range(len(CONTENTS))])
def test_scored_tokens_are_those_whose_bytes_are_scored(name, role, content):
    made = conversation(*content, role=role)
    found = encode(TOKENIZERS[name], made)
    assert list(found.scored) == reference(TOKENIZERS[name], made)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(TOKENIZERS)),
    content=st.text(alphabet="ait sö鯨🐳\n<|", min_size=1, max_size=9),
    prompt=st.sampled_from(["Who?", "It was me.", "assistant\n"]),
    borders=st.tuples(st.integers(0, 8), st.integers(1, 9)),
)
def test_whatever_is_said(name, content, prompt, borders):
    first = min(borders[0], len(content) - 1)
    end = max(first + 1, min(borders[1], len(content)))
    made = conversation(content, first, end, prompt=prompt)
    assert list(encode(TOKENIZERS[name], made).scored) == reference(TOKENIZERS[name], made)


def test_the_last_message_is_meant_whoever_said_the_same_before():
    found = encode(TOKENIZERS["bytes"], conversation("It was me.", prompt="It was me."))
    assert TOKENIZERS["bytes"].decode([found.tokens[position] for position in found.scored]) == "It was me."
    assert min(found.scored) > len(found.tokens) // 2


def test_position_0_is_never_scored():
    assert encode(TOKENIZERS["bytes"], conversation("abc", role="text")).scored == (1, 2)


def test_what_cannot_be_read_is_counted_by_set():
    rows = [
        conversation("abc"),
        conversation("   ", dataset="blank"),
        conversation("abc" * 40, dataset="long"),
        conversation("a", role="text", dataset="long"),
    ]
    trimming = TOKENIZERS["template that trims"]
    encoded = encode_all(trimming, rows, max_tokens=60)
    assert [kept.messages[-1]["content"] for kept in encoded.conversations] == ["abc"]
    assert encoded.replies == [encode(trimming, rows[0])]
    assert encoded.left_out == {"blank": {"no_scored_token": 1}, "long": {"too_long": 1, "no_scored_token": 1}}


def test_a_template_that_refuses_or_rewrites_is_named():
    for template in ("{{ raise_exception('no') }}", "{{ messages[-1].content | upper }}", None):
        tokenizer = tiny.byte_tokenizer()
        tokenizer.chat_template = template
        with pytest.raises(LabelledDataError, match="made, id '1': chat"):
            encode(tokenizer, conversation("abc"))
