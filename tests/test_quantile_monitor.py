"""The monitor of a named feature: a pack that says what its threshold is, and no more."""

import pytest
import torch
from serving import manifest, named_feature

from discovery.quantile_monitor import monitor_of, wrong_firings
from monitors.bank import MonitorBank
from monitors.components import Inputs

REPLIES = [torch.full((12, 2), float(i)) for i in range(99)]
"""99 replies of 12 tokens; latent 1 of reply i reads i at each."""


def test_a_named_feature_becomes_a_pack_with_its_quantile_as_threshold():
    pack = monitor_of(named_feature(17, "hedging"), REPLIES, 1, manifest(), "replies of a test")
    assert (pack.name, pack.kind, pack.validated) == ("hedging", "feature", False)
    assert pack.bindings.sae_sha256 == manifest().sae_sha256
    assert (pack.bindings.model_sha256, pack.bindings.quantization) == ("0" * 64, "none")
    assert pack.calibration is not None and pack.calibration.method == "plain_quantile"
    assert "The plain 99% quantile" in pack.calibration.source and "replies of a test" in pack.calibration.source
    assert pack.thresholds is not None and pack.thresholds.levels.warning is not None
    # ceil(100 * 0.99) = the 99th smallest of readings divided by the reference scale, 2.
    assert pack.thresholds.levels.warning.offset == 98 / 2.0
    assert pack.thresholds.levels.critical is None


def test_it_scores_whose_words_it_is_told_to():
    roles = ("assistant", "reasoning")
    asking = monitor_of(named_feature(17, "hedging"), REPLIES, 1, manifest(), "a test", roles=roles)
    usual = monitor_of(named_feature(17, "hedging"), REPLIES, 1, manifest(), "a test")
    assert (asking.roles, usual.roles) == (roles, ("assistant",)) and asking.thresholds == usual.thresholds


@pytest.mark.parametrize(("reading", "fires"), [(98.0, False), (98.5, True)])
def test_it_fires_on_replies_above_all_but_one_in_a_hundred(reading, fires):
    bank = MonitorBank([monitor_of(named_feature(17, "hedging"), REPLIES, 1, manifest(), "a test").spec()])
    for position in range(1, 13):
        bank.observe(position, Inputs({17: reading}), "assistant")
    assert (bank.summaries()[0].num_fired > 0) == fires


def test_wrong_firings_are_counted_by_the_same_statistic():
    assert wrong_firings(REPLIES, 48.0, 1, 2.0) == {"replies": 99, "fired": 2, "share": round(2 / 99, 4)}
