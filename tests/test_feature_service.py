"""FeatureService over a real port, with a latent catalogue and without, against slow references."""

import asyncio
import math
import re
import threading
from typing import get_args

import pytest
import tiny
import tiny_catalogue
import torch
from serving import catalog, connect, eventually, serving, watchlist
from telltale.v1 import feature_pb2

from monitors.latent_words import words_of
from service.client_features import FeatureOrder
from service.errors import InvalidRequest
from service.feature_servicer import MAX_LOOKUPS, FeatureServicer
from service.reconstruction_guard import ReconstructionGuard
from service.wire_responses import ResponseWriter

ROWS = tiny_catalogue.rows()
NAMED = {feature.index: feature for feature in watchlist().features}


@pytest.fixture(scope="module")
async def server(tmp_path_factory):
    assert tiny_catalogue.NUM_LATENTS == tiny.NUM_LATENTS
    latents = tiny_catalogue.opened(tmp_path_factory.mktemp("catalogue") / "catalogue.sqlite")
    async with serving(latents=latents) as server:
        yield server
    latents.close()


@pytest.fixture
async def client(server):
    async with connect(server) as client:
        yield client


@pytest.fixture(scope="module")
async def bare():
    """A server without a catalogue."""
    async with serving() as server:
        yield server


# --- get ---


@pytest.mark.parametrize("latent", [0, 1, 3, 40, 63])
async def test_get_has_all_that_the_catalogue_has(client, latent):
    feature, row = await client.get_feature(latent), ROWS[latent]
    entry, statistics = row.entry, feature.statistics
    assert (statistics.num_tokens, statistics.num_active) == (tiny_catalogue.NUM_TOKENS, row.num_active)
    assert statistics.density_ratio == row.num_active / tiny_catalogue.NUM_TOKENS
    assert (statistics.max_reading, statistics.mean_reading) == (row.max, entry.mean_active)
    assert tuple((part.source, part.share_ratio) for part in statistics.sources) == entry.sources
    histogram = dict(zip(statistics.histogram.edges, statistics.histogram.counts, strict=False))
    assert histogram == {tiny_catalogue.EDGES[i]: n for i, n in enumerate(entry.histogram) if 5 <= i < 10}
    assert [e.text for e in feature.examples] == [e.text for e in entry.examples]
    assert [(e.reading, e.source, e.focus) for e in feature.examples] == [
        (e.reading, e.source, e.focus) for e in entry.examples
    ]
    tokens = [(t.id, t.text, t.reading) for e in feature.examples for t in e.tokens]
    assert tokens == [t for e in entry.examples for t in zip(e.token_ids, e.pieces, e.readings, strict=True)]
    for got, wanted in ((feature.promoted, entry.promoted), (feature.suppressed, entry.suppressed)):
        assert [(e.id, e.text, e.logit) for e in got] == [(e.token_id, e.text, e.logit) for e in wanted]
    assert (feature.explanation is None) == (entry.said is None)
    if entry.said is not None:
        said = feature.explanation
        assert (said.title, said.summary, said.explainer) == (entry.said.title, entry.said.summary, "m")
        assert said.dominant_tokens == entry.said.dominant_tokens and said.fuzzing is None
        assert (said.detection is None) == (entry.said.detection is None)
    assert (feature.name == "") == (latent not in NAMED)


async def test_a_silent_latent_has_figures_and_nothing_else(client):
    feature = await client.get_feature(tiny_catalogue.SILENT_LATENTS[0])
    assert (feature.statistics.num_active, feature.statistics.max_reading) == (0, 0)
    assert (feature.explanation, feature.examples, feature.promoted) == (None, (), ())
    assert feature.statistics.histogram is None and feature.decoder_norm > 0


async def test_a_name_still_has_its_evidence(client):
    feature = await client.get_feature("lying")
    assert feature.evidence == {"auroc": 0.75, "examples": ["one", "two"]} and feature.statistics is not None


# --- list ---


async def test_named_features_alone_are_listed_by_default(client):
    features = await client.list_features()
    assert [feature.index for feature in features] == sorted(NAMED)
    assert all(feature.statistics is not None and feature.examples == () for feature in features)
    assert all(feature.statistics.histogram is None for feature in features)


def figure(order, latent):
    row = ROWS[latent]
    lower_bound = row.detection.lower_bound if row.detection else -1
    return {"index": -latent, "density": row.num_active, "max_reading": row.max, "detection": lower_bound}[order]


@pytest.mark.parametrize("order", get_args(FeatureOrder))
@pytest.mark.parametrize("named_only", [True, False])
async def test_pages_have_each_latent_once_in_order(client, order, named_only):
    among = sorted(NAMED) if named_only else range(tiny.NUM_LATENTS)
    wanted = sorted(among, key=lambda latent: (-figure(order, latent), latent))
    listed = await client.list_features(order=order, include_unnamed=not named_only)
    assert [feature.index for feature in listed] == wanted
    request = feature_pb2.ListFeaturesRequest(
        page_size=7,
        include_unnamed=not named_only,
        order=feature_pb2.FeatureOrder.Value(f"FEATURE_ORDER_{order.upper()}"),
    )
    paged = []
    while True:
        page = await client.call(client.features.ListFeatures, request)
        paged += [feature.index for feature in page.features]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
        assert len(page.features) == 7
    assert paged == wanted


async def test_the_first_of_a_list_can_be_asked_for(client):
    assert [f.index for f in await client.list_features(include_unnamed=True, limit=3)] == [0, 1, 2]


# --- search ---


def texts(latent: int) -> dict[str, str]:
    """All that is searched of a latent, by field."""
    named, entry = NAMED.get(latent), ROWS[latent].entry
    found = {"name": named.name, "description": named.description} if named else {}
    if entry.said:
        found |= {"title": entry.said.title, "summary": entry.said.summary}
        found["dominant_tokens"] = " ".join(entry.said.dominant_tokens)
    return found | {f"example {i}": example.text for i, example in enumerate(entry.examples)}


def has(word: str, text: str) -> bool:
    """Whether a text has a word or its plural, without the module under test."""
    return bool({word, word + "s"} & set(re.findall(r"[^\W_]+", text.lower())))


def scan(*words: str) -> set[int]:
    """Latents that have all words, in the slow and obvious way."""
    return {
        latent
        for latent in range(tiny.NUM_LATENTS)
        if all(any(has(word, text) for text in texts(latent).values()) for word in words)
    }


@pytest.mark.parametrize(
    "words",
    [("whale",), ("house",), ("river", "stone"), ("NEAR",), ("latent", "test"), ("calm",), ("calm", "stone"), ("17",)],
)
async def test_a_search_finds_what_a_scan_of_all_texts_finds(client, words):
    matches = await client.search_features(" ".join(words), limit=None)
    assert {match.feature.index for match in matches} == scan(*(word.lower() for word in words)) != set()
    scores = [match.score for match in matches]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0


async def test_matches_say_where_the_words_stand(client):
    for match in await client.search_features("house", limit=None):
        found, matched = texts(match.feature.index), set(match.matched)
        in_examples = [text for name, text in found.items() if name.startswith("example") and has("house", text)]
        for field in ("name", "description", "title", "summary", "dominant_tokens"):
            assert (field in matched) == has("house", found.get(field, ""))
        assert bool({"active_tokens", "context"} & matched) == bool(in_examples)
        assert [example.text in in_examples for example in match.feature.examples] == [True] * bool(in_examples)


async def test_a_title_comes_before_a_context_and_the_name_before_all(client):
    assert [match.feature.name for match in await client.search_features("calm", limit=1)] == ["calm"]
    matches = await client.search_features("river", limit=None)
    titled = [i for i, match in enumerate(matches) if "title" in match.matched]
    beside = [i for i, match in enumerate(matches) if match.matched == ("context",)]
    assert titled and beside and max(titled) < min(beside)


async def test_pages_of_a_search_have_each_match_once(client):
    request, found = feature_pb2.SearchFeaturesRequest(text="the", page_size=4), []
    while True:
        page = await client.call(client.features.SearchFeatures, request)
        found += [match.feature.index for match in page.matches]
        assert page.num_matches == len(scan("the"))
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert len(found) == len(set(found)) and set(found) == scan("the")
    assert found == [match.feature.index for match in await client.search_features("the", limit=None)]


async def test_likeness_is_the_cosine_of_decoder_rows(client, dictionary):
    wanted = torch.nn.functional.cosine_similarity(dictionary.W_dec[3][None], dictionary.W_dec, dim=1)
    order = [latent for latent in wanted.argsort(descending=True).tolist() if latent != 3]
    matches = await client.search_features(like="lying", limit=None)
    assert [match.feature.index for match in matches] == order
    assert [match.score for match in matches] == pytest.approx(wanted[order].tolist(), abs=1e-6)
    assert all(match.matched == () for match in matches)


# --- what cannot be ---

HARMLESS = [
    '"whale"', "whale*", "NEAR(whale house, 2)", "whale AND", "whale OR 1=1 --", "'; DROP TABLE latents; --",
    "title:whale", "^whale", "-whale", "{whale}", "whale\x00", "%whale_", "(", "whale house " * 20,
    "\U0001f433 whale", "wh\nale", "\\",
]  # fmt: skip
INVALID = {
    "": "have a word", '"*" ... \x00': "have a word", "x" * 10_000: "at most 256 characters. Got 10000",
    "whale " * 43: "at most 256 characters", "a b c d e f g h i": "at most 8 words. Got 9",
}  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
async def test_no_text_is_taken_for_a_query_language(client, text):
    words = words_of(text)
    if not words:
        with pytest.raises(InvalidRequest, match="have a word"):
            await client.search_features(text)
        return
    found = {match.feature.index for match in await client.search_features(text, limit=None)}
    each = [{m.feature.index for m in await client.search_features(word, limit=None)} for word in set(words)]
    assert found == set.intersection(*each)


@pytest.mark.parametrize("text", INVALID)
async def test_a_text_that_cannot_be_searched_for_is_invalid(client, text):
    with pytest.raises(InvalidRequest) as refused:
        await client.search_features(text)
    (violation,) = refused.value.violations
    assert violation.field == "text" and INVALID[text] in violation.description


@pytest.mark.parametrize(
    ("request_", "field", "wanted"),
    [
        (feature_pb2.SearchFeaturesRequest(), "query", "text or like_feature. Got none"),
        (feature_pb2.SearchFeaturesRequest(like_feature=64), "like_feature", "a latent below 64. Got 64"),
        (feature_pb2.SearchFeaturesRequest(text="x", page_size=101), "page_size", "at most 100. Got 101"),
        (feature_pb2.SearchFeaturesRequest(text="x", page_token="2"), "page_token", "Got '2'"),
        (feature_pb2.ListFeaturesRequest(order=99), "order", "FEATURE_ORDER_DENSITY, .*Got 99"),
        (feature_pb2.ListFeaturesRequest(page_token="x"), "page_token", "Got 'x'"),
    ],
)
async def test_what_cannot_be_asked_names_its_field(client, request_, field, wanted):
    is_list = isinstance(request_, feature_pb2.ListFeaturesRequest)
    with pytest.raises(InvalidRequest) as refused:
        await client.call(client.features.ListFeatures if is_list else client.features.SearchFeatures, request_)
    (violation,) = refused.value.violations
    assert violation.field == field and re.search(wanted, violation.description)


async def test_a_page_token_of_another_request_is_refused(client):
    search = client.features.SearchFeatures
    page = await client.call(search, feature_pb2.SearchFeaturesRequest(text="the", page_size=2))
    assert page.next_page_token
    again = feature_pb2.SearchFeaturesRequest(text="the", page_size=5, page_token=page.next_page_token)
    assert len((await client.call(search, again)).matches) == 5, "the size may change"
    for other in (
        feature_pb2.SearchFeaturesRequest(text="whale", page_token=page.next_page_token),
        feature_pb2.SearchFeaturesRequest(like_feature=3, page_token=page.next_page_token),
    ):
        with pytest.raises(InvalidRequest, match="page_token: must be the next_page_token of a request"):
            await client.call(search, other)
    listing = feature_pb2.ListFeaturesRequest(page_token=page.next_page_token)
    with pytest.raises(InvalidRequest, match="page_token"):
        await client.call(client.features.ListFeatures, listing)


# --- without a catalogue, and beside generations ---


async def test_without_a_catalogue_names_are_all_there_is(bare, dictionary):
    async with connect(bare) as client:
        assert [feature.index for feature in await client.list_features(include_unnamed=True)] == list(range(64))
        feature = await client.get_feature(3)
        assert (feature.name, feature.statistics, feature.explanation, feature.examples) == ("lying", None, None, ())
        (match,) = await client.search_features("latent 40")
        assert (match.feature.index, match.matched, match.feature.examples) == (40, ("description",), ())
        assert await client.search_features("whale") == []
        norms = dictionary.W_dec.norm(dim=1)
        (nearest,) = await client.search_features(like=63, limit=1)
        product = dictionary.W_dec[63] @ dictionary.W_dec[nearest.feature.index]
        assert math.isclose(nearest.score, product / norms[63] / norms[nearest.feature.index], abs_tol=1e-6)
        with pytest.raises(
            InvalidRequest, match="order: must be FEATURE_ORDER_INDEX: this server has no latent catalogue"
        ):
            await client.list_features(order="density")


async def test_searches_change_no_generation_beside_them(client):
    options = {"max_tokens": 20, "ignore_eos": True, "seed": 1}
    alone = await client.complete("The sea", **options)
    beside, *searches = await asyncio.gather(
        client.complete("The sea", **options), *(client.search_features("the old whale") for _ in range(20))
    )
    assert beside.text == alone.text and beside.readings("lying") == alone.readings("lying")
    assert len({tuple(match.feature.index for match in found) for found in searches}) == 1


async def test_searches_without_number_leave_threads_to_others():
    """Those of the event loop read requests to generate."""
    begun, go_on, searches = [], threading.Event(), []

    def cosines(latent):
        begun.append(latent)
        assert go_on.wait(20), "nobody let it go on"
        return [0.0] * tiny.NUM_LATENTS

    known = catalog(tiny.language_model())
    servicer = FeatureServicer(known, ResponseWriter(known, (), ReconstructionGuard(None, "No figures.")), cosines)
    message = feature_pb2.SearchFeaturesRequest(like_feature=3)
    try:
        searches = [asyncio.create_task(servicer.SearchFeatures(message, None)) for _ in range(50)]
        await eventually(lambda: len(begun) == MAX_LOOKUPS)
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(lambda: "a request is read") == "a request is read"
        assert len(begun) == MAX_LOOKUPS
    finally:
        go_on.set()
        answers = await asyncio.gather(*searches)
    assert len(begun) == 50 and {answer.num_matches for answer in answers} == {tiny.NUM_LATENTS - 1}
