"""Tokens that say where the next page of a list begins, and of which list.

A token holds the number of items before the page and a fingerprint of the request, so that a token of one request is
not taken for a place in another's results.
"""

import hashlib
from typing import Any

from service.errors import InvalidRequest

_DIGEST_BYTES = 6
_MAX_DIGITS = 9


def read_page(message: Any, *, default: int, most: int) -> tuple[int, int]:
    """(items before the page, items on it) of a request with page_size and page_token."""
    if message.page_size > most:
        raise InvalidRequest.field("page_size", f"must be at most {most}. Got {message.page_size}.")
    size = int(message.page_size) or default
    if not message.page_token:
        return 0, size
    start, _, fingerprint = message.page_token.partition(".")
    if not (start.isascii() and start.isdigit() and len(start) <= _MAX_DIGITS) or fingerprint != _fingerprint(message):
        wanted = "must be the next_page_token of a request that is the same in all but page_size"
        raise InvalidRequest.field("page_token", f"{wanted}. Got {message.page_token[:40]!r}.")
    return int(start), size


def next_token(message: Any, end: int, total: int) -> str:
    """Token of the page that begins behind `end` items of `total`; empty if there is none."""
    return f"{end}.{_fingerprint(message)}" if end < total else ""


def _fingerprint(message: Any) -> str:
    rest = type(message)()
    rest.CopyFrom(message)
    rest.ClearField("page_size")
    rest.ClearField("page_token")
    content = rest.DESCRIPTOR.full_name.encode() + b"\0" + rest.SerializeToString(deterministic=True)
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
