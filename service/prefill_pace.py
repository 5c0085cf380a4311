"""How many prompt tokens are read between two tokens of everybody, so that a long prompt does not make streams stutter.

Where a pass takes as long as it has tokens to compute - as with the native kernels, which read weights once for a block
of tokens and are busy computing from a handful on - a chunk is made to take about as long as a decode pass does. Where
a pass takes its time whatever it holds, smaller chunks would only make prompts slower: no pace is kept there.

Requests that arrive together begin together: while replies have only just begun, prompts that fit into one chunk are
read at once, since passes with few rows are wasteful, and a pause among the first tokens of a reply is none in it.
"""

from service.records import Phase, StepRecord

SHARE = 1.0
"""Of a decode pass's time that prompts get between two of them: with the pass itself, streams wait twice as long as
without prompts, and somewhat more than three times at the 99th percentile, since passes don't all take alike."""
LEAST_TOKENS = 8
"""Fewer would read the weights for little: with 4 a prompt took half as long again."""
JUST_BEGUN = 4
"""Tokens, at most, that the longest reply has where others still begin with it."""
_WEIGHT = 0.2
"""Of the latest pass in the running means."""


class PrefillPace:
    """Keeps the pace of one engine, by the times its passes take."""

    def __init__(self) -> None:
        self._decode_seconds: float | None = None
        self._seconds_per_token: float | None = None

    def observe(self, record: StepRecord) -> None:
        """Take note of a pass."""
        if record.phase is Phase.DECODE:
            self._decode_seconds = _moved(self._decode_seconds, record.step_seconds)
        elif record.num_tokens >= LEAST_TOKENS:
            self._seconds_per_token = _moved(self._seconds_per_token, record.step_seconds / record.num_tokens)

    def budget(self, limit: int, num_unread: int, longest_reply: int | None) -> int:
        """Prompt tokens to read in this step, at most `limit`: that many where nobody waits for a token.

        Args:
            num_unread: tokens of all prompts that are to be read.
            longest_reply: tokens of the longest of the replies that are being written; None if none is.
        """
        if longest_reply is None or (longest_reply <= JUST_BEGUN and num_unread <= limit):
            return limit
        return min(limit, self._share())

    def _share(self) -> int:
        if self._decode_seconds is None or self._seconds_per_token is None:
            return LEAST_TOKENS
        return max(LEAST_TOKENS, int(SHARE * self._decode_seconds / self._seconds_per_token))


def _moved(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
