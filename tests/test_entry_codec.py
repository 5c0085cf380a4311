"""Entries and postings as bytes come back as they were; damaged ones are errors and no nonsense."""

import struct
import zlib

import pytest
import tiny_catalogue
from hypothesis import given
from hypothesis import strategies as st

from discovery.catalogue_entry import used_tokens
from monitors.byte_stream import (
    MOST_INFLATED_BYTES,
    ByteReader,
    ByteWriter,
    deflate,
    inflate,
    pack_postings,
    unpack_postings,
)
from monitors.entry_codec import EntryCodec, TokenTable
from monitors.latent_entry import SILENT

DAMAGED = (ValueError, LookupError, struct.error, zlib.error)


def codec() -> EntryCodec:
    return EntryCodec(TokenTable(tiny_catalogue.VOCABULARY), tiny_catalogue.SOURCES, len(tiny_catalogue.EDGES) - 1)


@given(st.lists(st.integers(0, 2**40)), st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_counts_and_texts_come_back(counts, texts):
    stream = ByteWriter()
    for count in counts:
        stream.count(count)
    for text in texts:
        stream.text(text)
    reader = ByteReader(bytes(stream.bytes))
    assert reader.counts(len(counts)) == tuple(counts)
    assert [reader.text() for _ in texts] == texts
    assert reader.is_at_end


@given(st.dictionaries(st.integers(0, 200_000), st.integers(1, 255)))
def test_postings_come_back(weights):
    packed = pack_postings(sorted(weights.items()))
    assert dict(unpack_postings(packed, len(weights))) == weights


@pytest.mark.parametrize("latent", range(12))
def test_entries_come_back(latent):
    entry = tiny_catalogue.entry(latent)
    packed = codec().pack(entry)
    assert codec().unpack(packed) == entry
    head = codec().unpack_head(packed)
    assert (head.mean_active, head.said, head.examples) == (entry.mean_active, entry.said, ())


def test_pieces_add_up_to_the_text_across_characters_cut_in_two():
    texts = [example.text for latent in range(40) for example in tiny_catalogue.entry(latent).examples]
    assert any("ü" in text for text in texts)


def test_an_empty_entry_comes_back():
    assert codec().unpack(codec().pack(SILENT)) == SILENT


def test_the_token_table_comes_back_in_its_order():
    ids = used_tokens([tiny_catalogue.entry(latent) for latent in range(9)])
    table = TokenTable({token_id: tiny_catalogue.VOCABULARY[token_id] for token_id in ids})
    again = TokenTable.unpack(table.pack())
    assert again.ids == tuple(ids)
    assert [again.text(rank) for rank in range(len(ids))] == [table.text(rank) for rank in range(len(ids))]


def test_the_most_frequent_tokens_come_first():
    entries = [tiny_catalogue.entry(latent) for latent in range(9)]
    ids = used_tokens(entries)
    counts = {}
    for entry in entries:
        effects = [effect.token_id for effect in entry.promoted + entry.suppressed]
        for token_id in [*effects, *(i for example in entry.examples for i in example.token_ids)]:
            counts[token_id] = counts.get(token_id, 0) + 1
    assert [counts[i] for i in ids] == sorted(counts.values(), reverse=True)
    assert set(ids) == set(counts)


def test_what_is_cut_off_or_goes_on_is_refused():
    raw = zlib.decompress(codec().pack(tiny_catalogue.entry(1)), -15)

    def deflated(data):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(data) + packer.flush()

    assert codec().unpack(deflated(raw)) == tiny_catalogue.entry(1)
    for damaged in (raw[:-1], raw[: len(raw) // 2], raw + b"\0", b""):
        with pytest.raises(DAMAGED):
            codec().unpack(deflated(damaged))


def test_a_few_bytes_that_stand_for_very_many_are_refused():
    most = bytes(MOST_INFLATED_BYTES)
    assert inflate(deflate(most)) == most
    with pytest.raises(ValueError, match=f"at most {MOST_INFLATED_BYTES} bytes"):
        inflate(deflate(most + b"\0"))
    with pytest.raises(zlib.error):
        inflate(deflate(most)[:-1])


def test_a_histogram_of_more_bins_than_there_are_is_refused():
    stream = ByteWriter()
    stream.single(1.0)
    for count in (0, 0, 1, 2**40, 7):  # nothing said, no source, one bin behind 2**40 empty ones
        stream.count(count)
    with pytest.raises(ValueError, match=f"histogram must have {len(tiny_catalogue.EDGES) - 1} bins, got 1 behind"):
        codec().unpack(deflate(stream.bytes))
