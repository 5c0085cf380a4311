"""How large a large reading is: the histogram's answer beside the readings' own, on random readings."""

import numpy as np
import pytest
import torch

from discovery.example_collector import HISTOGRAM_EDGES, histogram_bin
from discovery.named_features import reference_scale
from discovery.reading_scale import reading_scale

BIN = 2**0.25
OCTAVES = HISTOGRAM_EDGES[::4]


def counts_of(values, edges):
    places = np.searchsorted(edges[1:-1], values[values > 0], side="right")
    return np.bincount(places, minlength=len(edges) - 1).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_feature_files_scale_to_within_a_bin(seed):
    generator = np.random.default_rng(seed)
    num_tokens = int(generator.integers(1, 30_000))
    values = np.exp(generator.normal(0.0, generator.uniform(0.05, 1.5), num_tokens)).astype(np.float32)
    values[generator.random(num_tokens) > generator.choice([0.0003, 0.002, 0.3])] = 0
    maximum = float(values.max())
    if maximum == 0:
        assert reading_scale([0, 0], [1.0, 2.0, 4.0], num_tokens=num_tokens, maximum=0.0) is None
        return
    wanted = reference_scale(torch.from_numpy(values))
    for edges, width in ((HISTOGRAM_EDGES, BIN), (OCTAVES, 2.0)):
        found = reading_scale(counts_of(values, edges), edges, num_tokens=num_tokens, maximum=maximum)
        assert wanted / width < found.reference < wanted * width and found.reference <= maximum == found.maximum


@pytest.mark.parametrize("edges", [HISTOGRAM_EDGES, OCTAVES], ids=["example_file", "catalogue"])
@pytest.mark.parametrize("factor", [100.0, 2_000.0, 1e6])
def test_readings_above_the_last_edge_are_bounded_by_the_maximum_alone(edges, factor):
    """The last bin has them all."""
    generator = np.random.default_rng(0)
    values = np.zeros(100_000, np.float32)
    values[:500] = generator.uniform(1.0, 4.0, 500) * factor
    maximum = float(values.max())
    wanted = reference_scale(torch.from_numpy(values))
    found = reading_scale(counts_of(values, edges), edges, num_tokens=len(values), maximum=maximum)
    width = max(edges[-1], maximum) / edges[-2]
    assert wanted / width < found.reference < wanted * width and found.reference <= maximum
    assert factor < 1024 or found.reference > 1024


def test_five_hundred_readings_up_to_eight_times_the_last_edge():
    """A hundred of them are above the percentile: it lies a fifth of the way down, by the logarithm."""
    counts = [0, 500]
    found = reading_scale(counts, [256.0, 512.0, 1024.0], num_tokens=100_000, maximum=8192.0)
    assert found == (pytest.approx(8192 * (512 / 8192) ** (100.5 / 500)), 8192.0)


def test_a_rare_latents_is_its_maximum():
    counts = np.bincount(histogram_bin(np.array([0.5, 2.0], np.float32)), minlength=len(HISTOGRAM_EDGES) - 1).tolist()
    assert reading_scale(counts, HISTOGRAM_EDGES, num_tokens=10_000, maximum=2.0) == (2.0, 2.0)


def test_between_bins_readings_lie_evenly_by_their_logarithm():
    """Of four tokens in one octave, the two largest being above the percentile, the third is 5/8 down."""
    found = reading_scale([0, 4, 0], [0.5, 1.0, 2.0, 4.0], num_tokens=2_000, maximum=2.0)
    assert found.reference == pytest.approx(2.0 * 0.5 ** (2.5 / 4))
