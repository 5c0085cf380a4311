"""Hidden text: nothing of it is left in the journal, and whoever has key and text can prove it was that one."""

import hashlib
import hmac
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from alerts import alert, text
from full_disk import room_for

from monitors.alert_record import HashedText, KeptText, Message
from monitors.errors import JournalError
from monitors.journal import Journal
from monitors.text_key import TextKey

SECRET = " a lie that nobody believed"


@pytest.fixture
def key(tmp_path):
    return TextKey.load_or_make(tmp_path / "alerts.key")


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path, key):
    path = tmp_path / "alerts.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert TextKey.load_or_make(path).id == TextKey.load(path).id == key.id
    assert TextKey.load_or_make(tmp_path / "other.key").id != key.id


def test_a_key_is_there_whole_or_not_at_all(tmp_path):
    """Half of one would keep the server from starting, also when there is room again."""
    path = tmp_path / "alerts.key"
    with room_for(0), pytest.raises(OSError):
        TextKey.load_or_make(path)
    assert list(tmp_path.iterdir()) == []
    assert TextKey.load_or_make(path).id == TextKey.load(path).id
    assert list(tmp_path.iterdir()) == [path]


def test_of_many_that_make_it_at_once_all_have_the_one_that_is_there(tmp_path):
    path = tmp_path / "alerts.key"
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: TextKey.load_or_make(path).id, range(32)))
    assert set(keys) == {TextKey.load(path).id}


@pytest.mark.parametrize("content", ["", "xyz", "00" * 31, "ü" * 64])
def test_a_file_that_holds_no_key_is_named(tmp_path, content):
    (tmp_path / "key").write_text(content)
    with pytest.raises(JournalError, match="text key: wanted 64 hex digits"):
        TextKey.load_or_make(tmp_path / "key")


def test_nothing_of_the_text_reaches_the_disk(tmp_path, key):
    path = tmp_path / "alerts.sqlite"
    record = alert(text=text(SECRET, prompt_ids=(31337, 31338), reply_ids=(424242,), stop=("END OF TALE",)))
    with Journal.open(path, text_key=key) as journal:
        journal.append([record])
        kept = journal.reader.alerts().alerts[0].record
        on_disk = b"".join(file.read_bytes() for file in tmp_path.glob("alerts.sqlite*"))
    assert kept.model_copy(update={"text": record.text}) == record  # all but the text
    assert isinstance(kept.text, HashedText) and (kept.text.num_prompt_tokens, kept.text.num_reply_tokens) == (2, 1)
    for said in (
        SECRET.strip(),
        "nobody",
        "Tell me something",
        "31337",
        "424242",
        "END OF TALE",
        (tmp_path / "alerts.key").read_text().strip(),
    ):
        assert said.encode() not in on_disk


def test_the_text_can_be_proved_with_the_key_alone(tmp_path, key):
    record = alert()
    hidden = key.hide(record)
    assert isinstance(record.text, KeptText) and key.fits(hidden, record.text)
    for changes in (
        {"messages": (Message(role="text", content=SECRET),)},
        {"span_from_char": 0},
        {"prompt_ids": (1,)},
        {"reply_ids": (1,)},
    ):
        assert not key.fits(hidden, text(**changes))
    assert not TextKey.load_or_make(tmp_path / "other.key").fits(hidden, record.text)
    assert not key.fits(record, record.text)


def test_a_hash_is_what_the_docs_say(tmp_path, key):
    record = alert()
    secret = bytes.fromhex((tmp_path / "alerts.key").read_text())
    said = json.dumps([record.id, "span", "eved"], separators=(",", ":")).encode()
    assert key.hide(record).text.span_hmac == hmac.new(secret, said, hashlib.sha256).hexdigest()


def test_equal_texts_have_different_hashes(key):
    one, other = key.hide(alert()).text, key.hide(alert()).text
    assert not {one.span_hmac, one.prompt_ids_hmac} & {other.span_hmac, other.prompt_ids_hmac}


def test_what_is_hidden_or_has_no_text_stays_as_it_is(key):
    hidden = key.hide(alert())
    assert key.hide(hidden) is hidden
    without = alert(text=None)
    assert key.hide(without) is without
