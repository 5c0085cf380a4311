"""reconstruction: every figure equals an obvious computation of it."""

import pytest
import tiny
import torch

from discovery.errors import LabError
from discovery.reconstruction import ReconstructionSums, measure_reconstruction


def test_reconstruction_figures_equal_their_definitions(dictionary):
    x_ND = torch.randn(90, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    figures = measure_reconstruction(dictionary, [x_ND[:50], x_ND[50:]]).figures()
    f_NF = dictionary.encode(x_ND)
    error_N = (x_ND - dictionary.decode(f_NF)).square().sum(-1)
    spread_N = (x_ND - dictionary.resid_mean).square().sum(-1)
    assert figures["tokens"] == 90
    spread = x_ND.var(0, correction=0).sum() * 90
    assert figures["variance_explained"] == pytest.approx(float(1 - error_N.sum() / spread), rel=1e-5)
    assert figures["median_token_variance_explained"] == pytest.approx(float((1 - error_N / spread_N).median()))
    assert figures["l0"] == pytest.approx(float((f_NF > 0).sum(-1).float().mean()))
    assert figures["dense_ratio"] == pytest.approx(float(((f_NF > 0).float().mean(0) > 0.1).float().mean()))
    assert figures["dead_ratio"] == pytest.approx(float((f_NF == 0).all(0).float().mean()))


def test_variance_is_against_the_mean_of_the_tokens_whatever_the_dictionary_knows():
    sae = tiny.sae()
    x_ND = 0.1 * torch.randn(90, tiny.D_MODEL, generator=torch.Generator().manual_seed(3)) + 20
    mean_D = x_ND.mean(0)
    sae.b_dec.copy_(mean_D)
    sae.b_enc.fill_(-1e6)  # silent: the reconstruction is the mean
    for of_training in (torch.zeros(tiny.D_MODEL), mean_D):
        sae.resid_mean.copy_(of_training)
        figures = measure_reconstruction(sae, [x_ND[:50], x_ND[50:]], mean_D=mean_D).figures()
        assert figures["variance_explained"] == pytest.approx(0, abs=1e-3)
        assert figures["median_token_variance_explained"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("num", [0, 1])
def test_tokens_that_do_not_differ_have_no_figures(dictionary, num):
    sums = measure_reconstruction(dictionary, [torch.randn(num, tiny.D_MODEL)] if num else [])
    with pytest.raises(LabError, match=f"tokens that differ, got {num}"):
        sums.figures()


def test_massive_tokens_are_counted_and_left_out(dictionary):
    x_ND = torch.randn(40, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    with_massive_ND = torch.cat([x_ND[:10], 1000 * x_ND[:1], x_ND[10:]])
    figures = measure_reconstruction(dictionary, [with_massive_ND]).figures()
    clean = measure_reconstruction(dictionary, [x_ND]).figures()
    assert figures.pop("massive_tokens_left_out") == 1
    assert clean.pop("massive_tokens_left_out") == 0
    assert figures == pytest.approx(clean, rel=1e-5)


def test_sums_of_two_sets_are_the_sums_of_both(dictionary):
    x_ND = torch.randn(40, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    parts = [ReconstructionSums.of(dictionary), ReconstructionSums.of(dictionary)]
    parts[0].add(dictionary, x_ND[:15])
    parts[1].add(dictionary, x_ND[15:])
    whole = measure_reconstruction(dictionary, [x_ND]).figures()
    assert (parts[0] + parts[1]).figures() == pytest.approx(whole, rel=1e-5)


def test_the_histogram_holds_every_latent_once(dictionary):
    x_ND = torch.randn(300, tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    sums = measure_reconstruction(dictionary, [x_ND])
    histogram = sums.density_histogram()
    density_F = (dictionary.encode(x_ND) > 0).float().mean(0)
    assert sum(histogram.counts) + histogram.num_dead == tiny.NUM_LATENTS
    assert histogram.num_dead == int((density_F == 0).sum())
    assert histogram.edges[0] == -3 and histogram.edges[-1] == 0
    fullest = histogram.counts.index(max(histogram.counts))
    low, high = (10**edge for edge in histogram.edges[fullest : fullest + 2])
    assert histogram.counts[fullest] == int(((density_F >= low) & (density_F < high)).sum()) > 0
