"""reply_store: replies are found by what was asked, and belong to one model."""

import pytest
import serving

from discovery.errors import ElicitError, LabError
from discovery.grpc_endpoint import Generated, GrpcEndpoint, Sampling
from discovery.reply_store import Inquiry, ReplyStore, identify

IDENTITY = {"format_version": 1, "model": {"name": "tiny"}, "template": {}}
REPLY = Generated("Paris", "eos", False, 12, 1)


def inquiry(text="What?", **sampling):
    return Inquiry([{"role": "user", "content": text}], Sampling(8, **sampling))


def test_what_was_added_is_found_again(tmp_path):
    path = tmp_path / "replies"
    store = ReplyStore(path, IDENTITY)
    store.add(inquiry(), REPLY)
    for found in (store, ReplyStore(path, IDENTITY), ReplyStore.reopen(path)):
        assert found.get(inquiry()) == REPLY
        assert len(found) == 1
        assert found.identity == IDENTITY


def test_other_words_or_sampling_are_another_inquiry(tmp_path):
    store = ReplyStore(tmp_path / "replies", IDENTITY)
    store.add(inquiry(), REPLY)
    others = [inquiry("What now?"), inquiry(temperature=0.5), inquiry(seed=1), inquiry(top_p=0.9)]
    assert store.missing([inquiry(), *others, *others]) == others
    assert [store.get(other) for other in others] == [None] * 4


def test_a_line_that_was_cut_short_is_asked_again(tmp_path):
    path = tmp_path / "replies"
    store = ReplyStore(path, IDENTITY)
    store.add(inquiry(), REPLY)
    store.add(inquiry("Why?"), REPLY)
    path.write_bytes(path.read_bytes()[:-9])
    again = ReplyStore(path, IDENTITY)
    assert again.missing([inquiry(), inquiry("Why?")]) == [inquiry("Why?")]
    again.add(inquiry("Why?"), REPLY)
    assert len(ReplyStore(path, IDENTITY)) == 2


def test_another_models_replies_are_refused(tmp_path):
    ReplyStore(tmp_path / "replies", IDENTITY)
    with pytest.raises(LabError, match=r"must hold results with the same settings, got others \(model\)"):
        ReplyStore(tmp_path / "replies", IDENTITY | {"model": {"name": "other"}})


def test_without_a_file_there_is_nothing_to_reopen(tmp_path):
    with pytest.raises(ElicitError, match="must have the replies of an earlier run, or a target must be given"):
        ReplyStore.reopen(tmp_path / "replies")


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "replies").write_text('{"model": {}}\n{"key": "a", "text": "b"}\n')
    with pytest.raises(ElicitError, match=r"a reply must have text, finish, .* and key, got none as 'finish'"):
        ReplyStore.reopen(tmp_path / "replies")


async def test_a_model_is_known_by_weights_and_template():
    async with serving.serving() as server, GrpcEndpoint(f"grpc://{serving.target(server)}") as endpoint:
        identity = await identify(endpoint, label="test")
        assert identity["model"]["weights_sha256"] == "0" * 64
        assert "device" not in identity["model"]
        assert identity["template"]["rendered"][1] == "system\nS\nuser\nU\nassistant\n"
        assert identity == await identify(endpoint, label="test")
        server.engine.runner.language_model.tokenizer.chat_template = (
            "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        )
        assert (await identify(endpoint, label="test"))["template"] != identity["template"]
