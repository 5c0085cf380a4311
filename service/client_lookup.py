"""What the client is asked to look up -> wire requests for latents, and the pages of the answers."""

from collections.abc import Awaitable, Callable
from typing import Any, get_args

from telltale.v1 import feature_pb2

from service.client_features import FeatureOrder
from service.errors import InvalidRequest

MAX_PAGE, MAX_MATCHES = 1000, 100
"""Most items that the server puts on a page of a list, of alerts too, and of a search."""


def check_is_list(field: str, given: object, of: str) -> None:
    """InvalidRequest for a text, which is a list too: of one-letter names, to Python."""
    if isinstance(given, str):
        raise InvalidRequest.field(field, f"must be a list of {of}. Got {given!r}.")


def list_request(*, include_unnamed: bool, order: FeatureOrder) -> Any:
    """A ListFeaturesRequest."""
    if order not in get_args(FeatureOrder):
        raise InvalidRequest.field("order", f"must be one of {', '.join(get_args(FeatureOrder))}. Got {order!r}.")
    return feature_pb2.ListFeaturesRequest(include_unnamed=include_unnamed, order=f"FEATURE_ORDER_{order.upper()}")


def search_request(text: str | None, *, like: int | None) -> Any:
    """A SearchFeaturesRequest for one of the two."""
    if (text is None) == (like is None):
        raise InvalidRequest.field("query", f"must be one of text and like. Got {'none' if text is None else 'both'}.")
    try:
        return feature_pb2.SearchFeaturesRequest(text=text, like_feature=like)
    except (ValueError, UnicodeError) as error:
        raise InvalidRequest.field("query", f"can't be sent: {error}.") from None


async def all_pages(
    call: Callable[[Any], Awaitable[Any]], request: Any, field: str, *, most_of_page: int, limit: int | None
) -> list[Any]:
    """The first `limit` items of a list, which stand in `field` of its pages; all of them for None."""
    if limit is not None and limit < 0:
        raise InvalidRequest.field("limit", f"must be 0 or more. Got {limit}.")
    found: list[Any] = []
    while limit is None or len(found) < limit:
        request.page_size = most_of_page if limit is None else min(most_of_page, limit - len(found))
        page = await call(request)
        found += getattr(page, field)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return found[:limit]
