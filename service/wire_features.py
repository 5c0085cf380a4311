"""Requests for latents -> what is asked, and what the latent catalogue knows -> wire messages."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from telltale.v1 import feature_pb2

from monitors.latent_catalogue import LatentCatalogue, Order
from monitors.latent_entry import Effect, LatentEntry, QuotedExample, Said, Score
from monitors.latent_words import Field, words_of
from service.feature_search import Match
from service.violations import Violations

MAX_QUERY_CHARACTERS = 256
MAX_QUERY_WORDS = 8

_ORDERS: dict[int, Order] = {
    feature_pb2.FEATURE_ORDER_UNSPECIFIED: "index",
    feature_pb2.FEATURE_ORDER_INDEX: "index",
    feature_pb2.FEATURE_ORDER_DENSITY: "density",
    feature_pb2.FEATURE_ORDER_MAX_READING: "max_reading",
    feature_pb2.FEATURE_ORDER_DETECTION: "detection",
}
_FIELDS = {
    Field.NAME: feature_pb2.MATCHED_FIELD_NAME,
    Field.DESCRIPTION: feature_pb2.MATCHED_FIELD_DESCRIPTION,
    Field.TITLE: feature_pb2.MATCHED_FIELD_TITLE,
    Field.SUMMARY: feature_pb2.MATCHED_FIELD_SUMMARY,
    Field.DOMINANT_TOKENS: feature_pb2.MATCHED_FIELD_DOMINANT_TOKENS,
    Field.ACTIVE_TOKENS: feature_pb2.MATCHED_FIELD_ACTIVE_TOKENS,
    Field.CONTEXT: feature_pb2.MATCHED_FIELD_CONTEXT,
}


class Query(NamedTuple):
    """What to search for: words, or likeness to a latent."""

    words: tuple[str, ...]
    like: int | None


# --- requests -------------------------------------------------------------------------------------------------------


def read_order(message: Any, *, has_catalogue: bool) -> Order:
    """The order of a ListFeaturesRequest."""
    wrong = Violations()
    order = wrong.choice("order", _ORDERS, message.order, feature_pb2.FeatureOrder)
    if order not in (None, "index") and not has_catalogue:
        got = feature_pb2.FeatureOrder.Name(message.order)
        wrong.add("order", f"must be FEATURE_ORDER_INDEX: this server has no latent catalogue. Got {got}.")
    wrong.raise_if_any()
    return order


def read_query(message: Any, num_latents: int) -> Query:
    """What a SearchFeaturesRequest looks for."""
    wrong = Violations()
    words: tuple[str, ...] = ()
    like = None
    match message.WhichOneof("query"):
        case "text":
            words = _read_words(message.text, wrong)
        case "like_feature":
            like = int(message.like_feature)
            wrong.require(like < num_latents, "like_feature", f"be a latent below {num_latents}", like)
        case _:
            wrong.add("query", "must be text or like_feature. Got none.")
    wrong.raise_if_any()
    return Query(words, like)


def _read_words(text: str, wrong: Violations) -> tuple[str, ...]:
    if len(text) > MAX_QUERY_CHARACTERS:
        wrong.add("text", f"must have at most {MAX_QUERY_CHARACTERS} characters. Got {len(text)}.")
        return ()
    words = tuple(dict.fromkeys(words_of(text)))
    wrong.require(bool(words), "text", "have a word, of letters or digits", repr(text[:40]))
    wrong.require(len(words) <= MAX_QUERY_WORDS, "text", f"have at most {MAX_QUERY_WORDS} words", len(words))
    return words


# --- answers --------------------------------------------------------------------------------------------------------


def add_brief(feature: Any, catalogue: LatentCatalogue, entry: LatentEntry) -> None:
    """What lists say of a latent beside its name: the figures, and the explanation."""
    figures = catalogue.figures[feature.index]
    feature.statistics.CopyFrom(
        feature_pb2.LatentStatistics(
            num_tokens=catalogue.num_tokens,
            num_active=figures.num_active,
            density_ratio=figures.num_active / max(catalogue.num_tokens, 1),
            max_reading=figures.max,
            mean_reading=entry.mean_active,
        )
    )
    if entry.said is not None:
        feature.explanation.CopyFrom(explanation(entry.said))


def add_all(feature: Any, catalogue: LatentCatalogue, entry: LatentEntry) -> None:
    """Everything that the catalogue knows."""
    add_brief(feature, catalogue, entry)
    for source, share in entry.sources:
        feature.statistics.sources.add(source=source, share_ratio=share)
    if entry.histogram:
        edges, counts = _trimmed(catalogue.histogram_edges, entry.histogram)
        feature.statistics.histogram.CopyFrom(feature_pb2.Histogram(edges=edges, counts=counts))
    feature.examples.extend(map(example, entry.examples))
    feature.promoted.extend(map(effect, entry.promoted))
    feature.suppressed.extend(map(effect, entry.suppressed))


def feature_match(feature: Any, score: float, match: Match | None) -> Any:
    """A latent that was found; without a match it was found by likeness."""
    found = feature_pb2.FeatureMatch(feature=feature, score=score)
    if match is not None:
        found.matched.extend(_FIELDS[field] for field in match.fields)
        if match.example is not None:
            found.feature.examples.append(example(match.example))
    return found


def explanation(said: Said) -> Any:
    return feature_pb2.Explanation(
        title=said.title,
        summary=said.summary,
        dominant_tokens=said.dominant_tokens,
        explainer=said.explainer,
        detection=_score(said.detection),
        fuzzing=_score(said.fuzzing),
    )


def example(quoted: QuotedExample) -> Any:
    rows = zip(quoted.token_ids, quoted.pieces, quoted.readings, strict=True)
    return feature_pb2.Example(
        reading=quoted.reading,
        source=quoted.source,
        focus=quoted.focus,
        tokens=[feature_pb2.ExampleToken(id=id_, text=text, reading=reading) for id_, text, reading in rows],
    )


def effect(of: Effect) -> Any:
    return feature_pb2.TokenEffect(id=of.token_id, text=of.text, logit=of.logit)


def _score(score: Score | None) -> Any:
    if score is None:
        return None
    return feature_pb2.ExplanationScore(balanced_accuracy=score.balanced_accuracy, num_windows=score.num_windows)


def _trimmed(edges: Sequence[float], counts: Sequence[int]) -> tuple[Sequence[float], Sequence[int]]:
    """Without the empty bins at both ends."""
    filled = [i for i, number in enumerate(counts) if number]
    return edges[filled[0] : filled[-1] + 2], counts[filled[0] : filled[-1] + 1]
