"""One way to write a JSON value down, so that one value has one hash.

Keys are sorted, nothing is put between tokens, text is not escaped beyond what JSON asks for, and a number is Python's
shortest form that reads back as the same number. NaN and infinity are no JSON. It differs from RFC 8785 in how floats
are spelt (`1e+16` there, `1e16` here) and in that whole numbers beyond 2^53, such as seeds, are allowed. Nobody needs
to be able to spell a line anew to check it: hashes are taken of the line as it is kept.
"""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """`value` on one line. Raises ValueError for NaN and infinity, TypeError for what JSON has no form for."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(line: str) -> str:
    """Hex digits of the sha256 of a line's UTF-8, without a line end."""
    return hashlib.sha256(line.encode("utf-8")).hexdigest()
