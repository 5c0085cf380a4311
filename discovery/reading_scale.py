"""How large a large reading of a latent is, as far as a histogram of its readings tells.

    reference   99.9th percentile of the readings at all tokens, silent ones included; the maximum where the latent is
                active at fewer tokens than that
    maximum     the largest

It is the `reference_scale` of a feature file, there taken from the readings themselves. Within a bin they are taken to
lie evenly by their logarithm, so it is off by less than the bin: a quarter of an octave (19 %) in an example file, an
octave in a catalogue. The last bin holds all that lies above the edges too and ends at the maximum; the first holds all
that lies below them, and its readings are taken for larger than they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

REFERENCE_QUANTILE = 0.999


class ReadingScale(NamedTuple):
    """Two large readings of a latent; see the module."""

    reference: float
    maximum: float


def reading_scale(
    counts: Sequence[int], edges: Sequence[float], *, num_tokens: int, maximum: float
) -> ReadingScale | None:
    """The scale by a histogram of the active tokens' readings, bin i [edges[i], edges[i + 1]); None if it never fires.

    The first and the last bin hold what lies beyond the edges, as `example_collector.histogram_bin` puts it there.
    `num_tokens` are all tokens, those at which the latent is silent among them.
    """
    if maximum <= 0:
        return None
    edges = [*edges[:-1], max(edges[-1], maximum)]
    above = num_tokens - max(1, int(REFERENCE_QUANTILE * num_tokens))
    for count, low, high in reversed(list(zip(counts, edges[:-1], edges[1:], strict=True))):
        if count > above:
            low, high = min(low, maximum), min(high, maximum)
            # `above` of the bin's readings are larger, and each stands in the middle of its own part of the bin.
            return ReadingScale(float(high * (low / high) ** ((above + 0.5) / count)), maximum)
        above -= count
    return ReadingScale(maximum, maximum)
