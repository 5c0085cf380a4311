"""Reasoning told from answers: against the whole text looked at at once, however tokens cut it; online as offline."""

import re
from dataclasses import replace

import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st
from test_engine import WATCHED, request, run_one
from tokenizers import AddedToken

from discovery.conversations import Conversation
from discovery.scored_tokens import encode
from monitors.bank import MonitorBank
from monitors.components import Inputs
from sae_runtime.reasoning import THINK, Delimiters, ReasoningReader, delimiters_of, parse_delimiters, reasoning_flags
from service.prompt import from_chat, from_ids, with_reasoning

BYTES = tiny.byte_tokenizer()
OTHER = Delimiters("[[", "]]")


def with_tokens(*texts, special=False):
    """A tokenizer that has these texts as one token each."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])
    return tokenizer


TOKENIZERS = {
    "bytes": BYTES,
    "whole": with_tokens("<think>", "</think>"),
    "special": with_tokens("<think>", "</think>", special=True),
    # Delimiters in two tokens, and one that goes on behind them.
    "cut": with_tokens("<thi", "nk>", "</", "think>ab", "ä<"),
}


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def spans(text, delimiters, begins_open=None):
    """[start, end) of blocks, the opening delimiter's last character included: straight from the text."""
    found, at, pair = [], 0, begins_open
    start = 0
    while True:
        if pair is None:
            opened = [(m.start(), p) for p in delimiters if (m := re.search(re.escape(p.opening), text[at:]))]
            if not opened:
                return found
            offset, pair = min(opened, key=lambda each: each[0])
            at += offset + len(pair.opening)
            start = at - 1
        closed = text.find(pair.closing, at)
        if closed < 0:
            return [*found, (start, len(text) + 1)]
        at, pair = closed + len(pair.closing), None
        found.append((start, at))


PIECES = ["<think>", "</think>", "<thi", "nk>", "a", "ä", "ab", "[[", "]]", "<", "\N{GRINNING FACE}", " "]
pieces = st.sampled_from(PIECES)
texts = st.lists(pieces, max_size=12).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
@example("<think>hm</think>so")
@example("a<think><think>b</think>c</think>d")
@example("<think>a[[b</think>c]]d[[e]]</think>f<think>")
def test_a_token_is_reasoning_if_it_touches_a_block(name, text):
    tokenizer, delimiters = TOKENIZERS[name], (THINK, OTHER)
    ids = ids_of(tokenizer, text)
    flags = reasoning_flags(tokenizer, ids, 0, len(ids), delimiters)
    blocks, begun = spans(text, delimiters), 0
    for token_count, flag in enumerate(flags, start=1):
        # What is known once the token is read: the text up to it, a cut character left out.
        end = len(tokenizer.decode(ids[:token_count]).rstrip("\ufffd"))
        wanted = any(start < end and begun < stop for start, stop in blocks if end > start)
        if name == "bytes" and end == begun:  # within a character nothing changes
            wanted = any(start < end < stop for start, stop in blocks)
        assert flag == wanted, (tokenizer.decode(ids[:token_count]), blocks)
        begun = end


@pytest.mark.parametrize("prompt", ["Hi<think>", "Hi<think>\n", "<think> \n\n"])
def test_a_reply_begins_inside_if_the_prompt_ends_with_an_opening(prompt):
    reader = ReasoningReader(BYTES, (THINK,), ids_of(BYTES, prompt))
    flags = [reader.push(token) for token in ids_of(BYTES, "hm</think>so")]
    assert flags == [True] * len("hm</think>") + [False] * 2


@pytest.mark.parametrize("prompt", ["", "What is <think> for?", "<think>\n\n</think>\n\n", "<thinking"])
def test_a_prompt_that_speaks_of_delimiters_opens_nothing(prompt):
    reader = ReasoningReader(BYTES, (THINK,), ids_of(BYTES, prompt))
    assert [reader.push(token) for token in ids_of(BYTES, "ab")] == [False] * 2


def test_known_delimiters_are_found_in_template_or_vocabulary():
    assert delimiters_of(BYTES) == (THINK,)
    magistral = Delimiters("[THINK]", "[/THINK]")
    assert delimiters_of(with_tokens("[THINK]", "[/THINK]")) == (magistral,)
    templated = tiny.byte_tokenizer()
    templated.chat_template = tiny.CHAT_TEMPLATE + "{{ '<|channel|>analysis<|message|>' }}"
    assert delimiters_of(templated) == (Delimiters("<|channel|>analysis<|message|>", "<|end|>"),)
    assert delimiters_of(BYTES, "none") == () and delimiters_of(BYTES, "[[ ]]") == (OTHER,)


@pytest.mark.parametrize("text", ["", "<a>", "<a> <b> <c>", "<a> <a>", "<a> </a>,", "<a> </a>,<b>"])
def test_delimiters_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"^must be"):
        parse_delimiters(text)


def test_several_pairs_may_be_given():
    assert parse_delimiters("<think> </think>,[[ ]]") == (THINK, OTHER)
    assert parse_delimiters("auto") is None


# --- monitors ---


@pytest.mark.parametrize(
    ("roles", "scored"),
    [
        (("assistant",), [("assistant", 4)]),
        (("assistant", "reasoning"), [("assistant", 2), ("reasoning", 2)]),
        (("reasoning",), [("reasoning", 2)]),
        (("user",), [("user", 0)]),
    ],
)
def test_reasoning_is_the_assistants_for_monitors_that_do_not_ask_for_it(roles, scored):
    bank = MonitorBank([tiny.monitor_spec(roles=roles, window=9)])
    assert bank.scores("reasoning") == (roles != ("user",))
    for position, role in enumerate(("reasoning", "reasoning", "assistant", "assistant"), start=1):
        bank.observe(position, Inputs({3: float(position)}), role)
    summaries = bank.summaries()
    assert [(s.role, s.num_scored) for s in summaries] == scored
    means = {("assistant",): [2.5], ("assistant", "reasoning"): [3.5, 1.5], ("reasoning",): [1.5], ("user",): [None]}
    assert [s.mean_score for s in summaries] == means[roles]


def test_scores_of_a_reply_written_and_of_the_same_reply_read_are_equal(model, dictionary):
    """A reply whose own text serves as delimiters: written, and then read by Score, each role scored by itself."""
    free = run_one(model, dictionary, request(model, max_tokens=30))
    delimiters = Delimiters(free.text[3:5], free.text[11:14])
    specs = (
        tiny.monitor_spec("split", features=(WATCHED[0],), roles=("assistant", "reasoning"), threshold=1e9),
        tiny.monitor_spec("whole", features=(WATCHED[0],), threshold=1e9),
    )
    base = request(model, max_tokens=30, monitors=specs, reasoning=(delimiters,))
    written = run_one(model, dictionary, base)
    flags = [token.role == "reasoning" for token in written.generated]
    assert flags == reasoning_flags(model.tokenizer, written.ids, 0, 30, (delimiters,))
    assert any(flags) and not flags[0] and not flags[-1]
    start, ids = len(base.prompt_ids), (*base.prompt_ids, *written.ids)
    prompt = from_ids(ids)._replace(replies=(range(start, len(ids)),))
    read = run_one(
        model,
        dictionary,
        replace(
            base,
            prompt_ids=ids,
            prompt_roles=with_reasoning(model.tokenizer, prompt, (delimiters,)).roles,
            scored_positions=frozenset(range(start, len(ids))),
            score_only=True,
            include_prompt=True,
        ),
    )
    assert [t.role for t in read.tokens[start:]] == [t.role for t in written.generated]
    for one, other in zip(read.tokens[start:], written.generated, strict=True):
        assert [s.monitor for s in one.scores] == [s.monitor for s in other.scores]
        assert [s.value for s in one.scores] == pytest.approx([s.value for s in other.scores], rel=1e-4, abs=1e-5)
    counted = [(s.monitor, s.role, s.num_scored) for s in written.finished.monitors]
    num_reasoning = sum(flags)
    assert counted == [
        ("split", "assistant", 30 - num_reasoning),
        ("split", "reasoning", num_reasoning),
        ("whole", "assistant", 30),
    ]
    assert [(s.monitor, s.role, s.num_scored) for s in read.finished.monitors] == counted


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_conversation_in_a_file_has_the_roles_of_one_in_a_request(name):
    tokenizer = TOKENIZERS[name]
    content = "<think>hm, ä</think>So be it."
    messages = [
        {"role": "user", "content": "a <think> b"},
        {"role": "assistant", "content": "<think>x</think>y"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": content},
    ]
    prompt = from_chat(tokenizer, messages, add_reply=False, roles=("user", "assistant"))
    marked = with_reasoning(tokenizer, prompt, (THINK,))
    assert len(prompt.replies) == 2 and {"user", "assistant", "reasoning", None} == set(marked.roles)
    begin = content.index("hm")
    conversation = Conversation("i", "d", tuple(messages), begin, len(content), 0, "g", {})
    reply = encode(tokenizer, conversation, (THINK,))
    assert reply.tokens == prompt.ids
    assert reply.reasoning == {i for i in reply.scored if marked.roles[i] == "reasoning"}
    assert reply.reasoning and reply.reasoning < set(reply.scored)
    cut = reply.cut(2)
    assert (cut.scored, cut.reasoning) == (reply.scored[:2], frozenset(reply.scored[:2]))


def test_without_delimiters_nothing_is_reasoning(model):
    prompt = from_chat(
        BYTES, [{"role": "assistant", "content": "<think>x</think>y"}], add_reply=False, roles=("assistant",)
    )
    assert with_reasoning(BYTES, prompt, ()).roles == prompt.roles
    assert not ReasoningReader(model.tokenizer, ()).push(5)
