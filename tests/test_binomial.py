"""binomial: the interval is the one that the tail probabilities define."""

import pytest
from scipy.stats import binom

from discovery.binomial import share


@pytest.mark.parametrize(("count", "num"), [(0, 20), (1, 300), (7, 20), (20, 20)])
def test_the_interval_is_where_each_tail_has_a_fortieth(count, num):
    found = share(count, num)
    assert found.low == 0 if count == 0 else binom.sf(count - 1, num, found.low) == pytest.approx(0.025, rel=1e-2)
    assert found.high == 1 if count == num else binom.cdf(count, num, found.high) == pytest.approx(0.025, rel=1e-2)
    assert found.as_json()["share"] == pytest.approx(count / num, abs=1e-6)


def test_none_of_none_is_anything():
    assert (share(0, 0).value, share(0, 0).low, share(0, 0).high) == (None, 0.0, 1.0)
