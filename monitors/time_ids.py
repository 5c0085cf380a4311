"""Ids that say when they were made, and that sort so: version 7 of RFC 9562's UUIDs.

48 bits of Unix time in milliseconds, 12 bits that count within one, 62 random bits (section 6.2, method 1: a
dedicated counter). Ids of one process rise strictly, even if its clock goes back.
"""

import secrets
import threading
import time
import uuid

_COUNTER_BITS = 12
_FRESH_COUNTER_BITS = 11
"""A new millisecond's counter starts below half, so that there is room to count up in."""


class TimeIds:
    """Makes ids. May be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        """Milliseconds and counter of the last id, as one number."""

    def new(self) -> str:
        """A new id, larger than all before: `01890a5d-ac96-774b-bcce-b302099a8057`."""
        stamp = self._stamp(time.time_ns() // 1_000_000)
        milliseconds, counter = stamp >> _COUNTER_BITS, stamp & ((1 << _COUNTER_BITS) - 1)
        number = milliseconds << 80 | 0x7 << 76 | counter << 64 | 0b10 << 62 | secrets.randbits(62)
        return str(uuid.UUID(int=number))

    def _stamp(self, milliseconds: int) -> int:
        with self._lock:
            fresh = milliseconds << _COUNTER_BITS | secrets.randbits(_FRESH_COUNTER_BITS)
            # A counter that is full runs over into the next millisecond.
            self._last = fresh if fresh >> _COUNTER_BITS > self._last >> _COUNTER_BITS else self._last + 1
            return self._last


new_id = TimeIds().new
"""A new id of this process."""
