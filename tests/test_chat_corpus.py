"""chat_corpus: every position of every row is right, and a killed run goes on as if it had not been."""

import json

import pytest
import torch

from discovery.chat_corpus import ChatSettings, LockstepCache, open_rows, sample, write_batch, write_corpus
from sae_runtime.cache_argument import cache_argument

SETTINGS = ChatSettings(num_tokens=120, batch_size=3, temperature=1.0, top_k=20)


@pytest.fixture(autouse=True)
def short_prompts(monkeypatch):
    # One token per byte: the real prompts would not leave room for a reply.
    monkeypatch.setattr("discovery.chat_corpus.SYSTEMS", ("Hi",))
    monkeypatch.setattr("discovery.chat_corpus.TASKS", ("{topic}?",))
    monkeypatch.setattr("discovery.chat_corpus.TOPICS", ("sea", "sky"))


def test_cache_equals_a_pass_over_everything(model):
    ids_BT = torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    cache = LockstepCache(9)
    with torch.inference_mode():
        steps = [
            model.model(
                input_ids=ids_BT[:, t : t + 1],
                position_ids=torch.full((3, 1), t),
                use_cache=True,
                **cache_argument(cache),
            ).logits[:, -1]
            for t in range(9)
        ]
        whole_BTV = model.model(input_ids=ids_BT, use_cache=False).logits
    assert torch.allclose(torch.stack(steps, dim=1), whole_BTV, atol=1e-4)


def test_rows_are_full_and_begin_with_their_prompt(model):
    rows = write_batch(model, SETTINGS, 0)
    prompts = [list(row.forced) for row in open_rows(model.tokenizer, SETTINGS, 0)]
    assert [len(row.tokens) for row in rows] == [120] * 3
    for row, prompt in zip(rows, prompts, strict=True):
        assert row.tokens[: len(prompt)] == prompt
        assert prompt


def test_a_finished_turn_opens_the_next(model):
    row = open_rows(model.tokenizer, SETTINGS, 0)[0]
    while row.forced:
        row.take(0)
    was_user, end = row.is_user, row.marks.end
    row.take(end)
    assert row.is_user != was_user
    opening = [row.take(0) for _ in range(len(row.forced))]
    assert model.tokenizer.decode(opening) == f"\n<|im_start|>{'assistant' if was_user else 'user'}\n"


def test_prompts_are_about_the_topics_asked_for_and_all_ours_if_so_wanted(model):
    settings = ChatSettings(num_tokens=120, batch_size=20, topics=("sky",), self_ratio=0.0)
    rows = open_rows(model.tokenizer, settings, 0)
    assert all(row.source == "chat_prompted" and not row.is_user for row in rows)
    assert all("sky?" in model.tokenizer.decode(list(row.forced)) for row in rows)
    everything = ChatSettings(num_tokens=120, batch_size=20, self_ratio=1.0)
    assert all(row.source == "chat_self" for row in open_rows(model.tokenizer, everything, 0))


@pytest.mark.parametrize(("field", "value"), [("topics", ("sea", "fog")), ("self_ratio", 1.5)])
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field} must .*got (fog|1\.5)"):
        ChatSettings(**{field: value})


def test_resumed_run_writes_the_same_file(model, tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    write_corpus(model, whole, SETTINGS, 2)
    lines = whole.read_text().splitlines(keepends=True)
    killed.write_text("".join(lines[:4]) + lines[4][:10])
    assert write_corpus(model, killed, SETTINGS, 2) == 1
    assert killed.read_text() == whole.read_text()
    assert len({json.loads(line)["id"] for line in lines}) == 6


def test_sampling_stays_within_the_likeliest():
    logits = torch.arange(50.0)[None].expand(200, 50)
    drawn = sample(logits, ChatSettings(top_k=3, temperature=100.0), torch.Generator().manual_seed(0))
    # 200 draws, nearly even over three tokens: each is missing with chance below 1e-30.
    assert set(drawn.tolist()) == {47, 48, 49}


def test_settings_are_checked():
    with pytest.raises(ValueError, match="temperature"):
        ChatSettings(temperature=0)
