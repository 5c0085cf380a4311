"""pack_building: what a probe's pack knows of the residuals that it was made on."""

import made_rows
import numpy as np
import tiny_packs

from discovery.pack_building import with_largest_norms
from monitors.components import OFF_SCALE_NORMS


def test_one_massive_norm_makes_no_other_token_usual():
    """The largest norm goes by the median of each probe's own place: in a mean the one would be a fifth of it."""
    probes = [
        tiny_packs.probe_component("one", direction="one"),
        tiny_packs.feature_component(2),
        tiny_packs.probe_component("two", direction="two", hook_point="layers.3.output"),
    ]
    norms = np.array([[1, 20], [2, 10], [3, 30], [2, 20], [4000, 20]], np.float32)
    found = with_largest_norms(tiny_packs.pack(components=probes), made_rows.readings([2, 3], norms_NP=norms))
    largest = [part.probe and part.probe.largest_norm for part in found.components]
    assert largest == [2 * OFF_SCALE_NORMS, None, 20 * OFF_SCALE_NORMS]
