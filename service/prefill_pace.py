"""How many prompt tokens are read between two tokens of everybody, so that a long prompt does not make streams stutter.

Where a pass takes as long as it has tokens to compute - as with the native kernels, which read weights once for a block
of tokens and are busy computing from a handful on - a chunk is made to take about as long as a decode pass does. Where
a pass takes its time whatever it holds, smaller chunks would only make prompts slower: no pace is kept there.

Prompts that all fit into one chunk are read at once now and then, since requests that arrive together would otherwise
begin one after another, and passes with few rows are wasteful. That is one gap in a hundred at most, so that the 99th
percentile of the times between two tokens does not know of it.
"""

from service.records import Phase, StepRecord

SHARE = 1.25
"""Of a decode pass's time that prompts get between two of them: with the pass itself, streams wait 2.25 times as long
as without prompts, and now and then a little more."""
LEAST_TOKENS = 8
"""Fewer would read the weights for little."""
PASSES_BETWEEN = 100
"""Decode passes, at least, from a chunk that is read beyond its share to the next."""
_WEIGHT = 0.2
"""Of the latest pass in the running means."""


class PrefillPace:
    """Keeps the pace of one engine, by the times its passes take."""

    def __init__(self) -> None:
        self._decode_seconds: float | None = None
        self._seconds_per_token: float | None = None
        self._passes_since = PASSES_BETWEEN

    def observe(self, record: StepRecord) -> None:
        """Take note of a pass."""
        if record.phase is Phase.DECODE:
            self._passes_since += 1
            self._decode_seconds = _moved(self._decode_seconds, record.step_seconds)
        elif record.num_tokens >= LEAST_TOKENS:
            self._seconds_per_token = _moved(self._seconds_per_token, record.step_seconds / record.num_tokens)

    def budget(self, limit: int, num_unread: int, *, is_anybody_writing: bool) -> int:
        """Prompt tokens to read in this step, at most `limit`: that many where nobody waits for a token.

        `num_unread` are those of all prompts that are to be read.
        """
        if not is_anybody_writing:
            return limit
        share = min(limit, self._share())
        if share < num_unread <= limit and self._passes_since >= PASSES_BETWEEN:
            self._passes_since = 0
            return limit
        return share

    def _share(self) -> int:
        if self._decode_seconds is None or self._seconds_per_token is None:
            return LEAST_TOKENS
        return max(LEAST_TOKENS, int(SHARE * self._decode_seconds / self._seconds_per_token))


def _moved(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
