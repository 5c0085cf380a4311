"""Prompts to token ids, and whose words they are, whoever else says the same."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.prompt import from_chat, from_text

TOKENIZER = tiny.byte_tokenizer()
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nI am an assistant. It was me.<|im_end|>\n{% endif %}"
)
TRIMMING = tiny.CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
REFUSING = "{{ raise_exception('Roles must alternate user/assistant.') }}"
FORGETFUL = "{% for message in messages[-1:] %}{{ message['content'] }}{% endfor %}"
REPEATING = "{% for message in messages %}{{ message['content'] + message['content'] }}{% endfor %}"
THOUGHTLESS = tiny.CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")


def tokenizer(template):
    made = tiny.byte_tokenizer()
    made.chat_template = template
    return made


def chat(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def assistant_text(prompt, of=TOKENIZER):
    return of.decode([token for i, token in enumerate(prompt.ids) if prompt.roles[i] == "assistant"])


def test_text_is_tokenised_as_the_tokenizer_does_by_itself():
    prompt = from_text(TOKENIZER, "Wörter")
    assert prompt.ids == tuple(TOKENIZER("Wörter").input_ids)
    assert prompt.roles == ("text",) * len(prompt.ids)


def test_the_prompt_of_a_reply_ends_where_the_reply_begins():
    prompt = from_chat(TOKENIZER, chat("Hi"), add_reply=True)
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.ids == tuple(TOKENIZER(rendered, add_special_tokens=False).input_ids)
    assert prompt.ids[0] == 1  # the marks are special tokens, not the letters of their names


def test_a_conversation_to_be_read_ends_with_its_last_message():
    prompt = from_chat(TOKENIZER, chat("Hi", "Ho"), add_reply=False, roles=["assistant"])
    assert TOKENIZER.decode(prompt.ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    first = prompt.ids.index(TOKENIZER("H").input_ids[0], 10)
    assert prompt.positions_of("assistant") == {first, first + 1}


@pytest.mark.parametrize("word", ["It was me.", "assistant", "user", "<|im", "\n.", "i", "ö"])
def test_users_may_say_the_same_words(word):
    messages = chat(word, word, f"{word}{word}", f"x{word}")
    prompt = from_chat(TOKENIZER, messages, add_reply=False, roles=["assistant"])
    assert assistant_text(prompt) == f"{word}x{word}"
    whole = [TOKENIZER.decode([token]) for token in prompt.ids]
    spoken = TOKENIZER(f"assistant\n{word}", add_special_tokens=False).input_ids
    first = min(prompt.positions_of("assistant"))
    assert list(prompt.ids[first - 10 : first + len(spoken) - 10]) == spoken, whole


def test_words_of_the_templates_own_are_not_the_assistants():
    of = tokenizer(DEFAULT_SYSTEM + tiny.CHAT_TEMPLATE)
    prompt = from_chat(of, chat("It was me.", first="assistant"), add_reply=False, roles=["assistant"])
    system = of("<|im_start|>system\nI am an assistant. It was me.<|im_end|>\n", add_special_tokens=False).input_ids
    assert assistant_text(prompt, of) == "It was me."
    assert min(prompt.positions_of("assistant")) > len(system)


@pytest.mark.parametrize(("template", "wanted"), [(tiny.CHAT_TEMPLATE, " \n a b\n"), (TRIMMING, "a b")])
def test_a_template_may_trim(template, wanted):
    of = tokenizer(template)
    prompt = from_chat(of, chat(" q ", " \n a b\n"), add_reply=False, roles=["assistant"])
    assert assistant_text(prompt, of) == wanted


@pytest.mark.parametrize("trims", [" | trim", ".lstrip()", ".rstrip()", ".strip('\\n')"])
def test_places_are_in_the_content_as_written_whatever_is_trimmed(trims):
    of = tokenizer(tiny.CHAT_TEMPLATE.replace("message['content']", f"message['content']{trims}"))
    content = "\n  a b \n"
    prompt = from_chat(of, chat("q", content), add_reply=False, roles=["assistant"])
    said = [place for place in prompt.places if place is not None]
    assert said and "".join(content[place.start : place.end] for place in said) == assistant_text(prompt, of)


def test_an_empty_reply_has_no_positions():
    assert from_chat(TOKENIZER, chat("a", "", "a", "b"), add_reply=False, roles=["assistant"]).positions_of(
        "assistant"
    ) == {len(from_chat(TOKENIZER, chat("a", "", "a"), add_reply=True).ids)}


@given(
    contents=st.lists(st.text(alphabet="aist\nörn<|: {%", max_size=6), min_size=1, max_size=6),
    first=st.sampled_from(["user", "assistant"]),
)
def test_the_assistants_tokens_are_what_it_said(contents, first):
    messages = chat(*contents, first=first)
    prompt = from_chat(TOKENIZER, messages, add_reply=False, roles=["assistant"])
    said = [m["content"] for m in messages if m["role"] == "assistant" and m["content"].strip()]
    assert assistant_text(prompt) == "".join(said)


@given(
    contents=st.lists(st.text(alphabet="aist\nörn<|: {%", max_size=6), min_size=1, max_size=6),
    roles=st.sets(st.sampled_from(["system", "user", "assistant"])),
    add_reply=st.booleans(),
)
def test_each_roles_tokens_are_what_it_said(contents, roles, add_reply):
    turns = ["system", "user", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": content} for role, content in zip(turns, contents, strict=False)]
    prompt = from_chat(TOKENIZER, messages, add_reply=add_reply, roles=roles)
    for role in ("system", "user", "assistant"):
        said = [m["content"] for m in messages if m["role"] == role and m["content"].strip() and role in roles]
        assert TOKENIZER.decode([t for t, r in zip(prompt.ids, prompt.roles, strict=True) if r == role]) == "".join(
            said
        )


def test_positions_are_found_in_time_that_grows_with_the_conversation():
    rendered = []

    class Counting:
        chat_template = tiny.CHAT_TEMPLATE

        def __getattr__(self, name):
            return getattr(TOKENIZER, name)

        def __call__(self, *args, **kwargs):
            return TOKENIZER(*args, **kwargs)

        def apply_chat_template(self, *args, **kwargs):
            rendered.append(args)
            return TOKENIZER.apply_chat_template(*args, **kwargs)

    from_chat(Counting(), chat(*"ab" * 50), add_reply=False, roles=["assistant"])
    assert len(rendered) <= 2


def test_a_template_that_rewrites_what_was_said_is_fine_for_a_reply_but_can_t_be_scored():
    of = tokenizer(THOUGHTLESS)
    messages = chat("q", "<think>hm</think>a", "r")
    assert "hm" not in of.decode(from_chat(of, messages, add_reply=True).ids)
    with pytest.raises(InvalidRequest) as refused:
        from_chat(of, messages, add_reply=False, roles=["assistant"])
    assert [v.field for v in refused.value.violations] == ["chat.messages[1].content"]


@pytest.mark.parametrize(
    ("template", "field", "words"),
    [
        (None, "chat", "no chat template"),
        (REFUSING, "chat.messages", "Roles must alternate"),
        ("{{ messages[0].nothing.at_all }}", "chat.messages", "must suit"),
        (FORGETFUL, "chat.messages[1].content", "survive"),
        (REPEATING, "chat.messages[1].content", "survive"),
    ],
)
def test_what_the_template_refuses_is_an_invalid_request(template, field, words):
    with pytest.raises(InvalidRequest, match=words) as refused:
        from_chat(tokenizer(template), chat("a", "b", "c"), add_reply=False, roles=["assistant"])
    assert [v.field for v in refused.value.violations] == [field]
