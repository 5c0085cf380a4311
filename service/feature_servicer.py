"""telltale.v1.FeatureService: named features, and all latents as far as the latent catalogue knows them.

Everything is looked up in worker threads: the loop has streams to serve. A page bounds what is written of one call; a
search by likeness reads the whole decoder for each. So few are worked out at a time, and the others wait.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from telltale.v1 import feature_pb2

from monitors.latent_entry import LatentEntry
from monitors.watchlist import NamedFeature
from service.catalog import Catalog
from service.errors import InvalidRequest, NoDictionary
from service.feature_search import Cosines, FeatureSearch
from service.page_token import next_token, read_page
from service.wire_features import add_all, add_brief, feature_match, read_order, read_query
from service.wire_responses import ResponseWriter

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000
DEFAULT_MATCHES, MAX_MATCHES = 20, 100
MAX_LOOKUPS = 2
"""At a time, in threads of their own: those of the event loop are few, and read requests to generate."""


class NoFeatures:
    """telltale.v1.FeatureService of a server without a dictionary: it has nothing to list, and says so."""

    async def ListFeatures(self, _message: Any, _context: Any) -> Any:
        raise NoDictionary

    async def GetFeature(self, _message: Any, _context: Any) -> Any:
        raise NoDictionary

    async def SearchFeatures(self, _message: Any, _context: Any) -> Any:
        raise NoDictionary


class FeatureServicer:
    """telltale.v1.FeatureService."""

    def __init__(self, catalog: Catalog, writer: ResponseWriter, cosines: Cosines) -> None:
        self._catalog, self._writer = catalog, writer
        self._num_latents = catalog.num_latents
        self._search = FeatureSearch(catalog.watchlist, catalog.latents, cosines, self._num_latents)
        self._workers = ThreadPoolExecutor(MAX_LOOKUPS, "features")

    async def ListFeatures(self, message: Any, _context: Any) -> Any:
        return await self._look_up(self._list, message)

    async def GetFeature(self, message: Any, _context: Any) -> Any:
        return await self._look_up(self._get, message)

    async def SearchFeatures(self, message: Any, _context: Any) -> Any:
        return await self._look_up(self._find, message)

    async def _look_up(self, answer: Callable[[Any], Any], message: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._workers, answer, message)

    def _list(self, message: Any) -> Any:
        start, size = read_page(message, default=DEFAULT_PAGE_SIZE, most=MAX_PAGE_SIZE)
        order = read_order(message, has_catalogue=self._catalog.latents is not None)
        latents = self._search.listed(order, include_unnamed=message.include_unnamed)
        return feature_pb2.ListFeaturesResponse(
            features=[self._brief(latent) for latent in latents[start : start + size]],
            next_page_token=next_token(message, start + size, len(latents)),
        )

    def _get(self, message: Any) -> Any:
        latent = self._latent(message)
        feature = self._writer.feature(latent, with_evidence=True)
        if self._catalog.latents is not None:
            add_all(feature, self._catalog.latents, self._catalog.latents.entry(latent))
        return feature_pb2.GetFeatureResponse(feature=feature)

    def _find(self, message: Any) -> Any:
        start, size = read_page(message, default=DEFAULT_MATCHES, most=MAX_MATCHES)
        query = read_query(message, self._num_latents)
        found = self._search.with_words(query.words) if query.like is None else self._search.like(query.like)
        return feature_pb2.SearchFeaturesResponse(
            matches=[self._match(latent, score, query.words) for latent, score in found[start : start + size]],
            next_page_token=next_token(message, start + size, len(found)),
            num_matches=len(found),
        )

    def _match(self, latent: int, score: float, words: Sequence[str]) -> Any:
        if not words:
            return feature_match(self._brief(latent), score, None)
        latents = self._catalog.latents
        entry = latents.entry(latent) if latents is not None else None
        return feature_match(self._brief(latent, entry), score, self._search.match(latent, entry, words))

    def _brief(self, latent: int, entry: LatentEntry | None = None) -> Any:
        feature = self._writer.feature(latent, with_evidence=False)
        if self._catalog.latents is not None:
            add_brief(feature, self._catalog.latents, entry or self._catalog.latents.head(latent))
        return feature

    def _latent(self, message: Any) -> int:
        match message.WhichOneof("key"):
            case "index":
                if message.index >= self._num_latents:
                    wanted = f"must be a latent below {self._num_latents}"
                    raise InvalidRequest.field("index", f"{wanted}. Got {message.index}.")
                return int(message.index)
            case "name":
                named: NamedFeature = self._catalog.feature_by_name(message.name)
                return named.index
            case _:
                raise InvalidRequest.field("key", "must be index or name. Got none.")
