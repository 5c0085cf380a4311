"""decoder_geometry: cosines against the obvious full matrix."""

import numpy as np
import pytest
import tiny
import torch

from discovery import decoder_geometry
from discovery.decoder_geometry import geometry_figures, max_cosines


def test_largest_cosines_are_those_of_the_full_matrix(dictionary, monkeypatch):
    monkeypatch.setattr(decoder_geometry, "_CHUNK_ROWS", 7)  # no divisor of the number of latents
    cosine_FF = torch.nn.functional.cosine_similarity(dictionary.W_dec[:, None], dictionary.W_dec[None], dim=-1)
    cosine_FF.fill_diagonal_(-2)
    torch.testing.assert_close(max_cosines(dictionary), cosine_FF.max(-1).values)


def test_the_histogram_counts_every_row_once():
    cosine_F = torch.tensor([-0.5, 0.0, 0.019, 0.021, 0.5, 1.0])
    histogram = decoder_geometry.cosine_histogram(cosine_F)
    wanted, _ = np.histogram(cosine_F.clamp(0, 1).numpy(), bins=histogram["edges"])
    assert histogram["counts"] == wanted.tolist() and sum(wanted) == 6 and wanted[0] == 3
    assert sum(geometry_figures(tiny.sae())["max_cosine_histogram"]["counts"]) == tiny.NUM_LATENTS


def test_twins_are_seen():
    sae = tiny.sae("relu")
    with torch.no_grad():
        sae.W_dec[5] = 3 * sae.W_dec[9]
    figures = geometry_figures(sae)
    before = geometry_figures(tiny.sae("relu"))
    assert figures["twin_ratio"] == pytest.approx(before["twin_ratio"] + 2 / tiny.NUM_LATENTS)
    assert max_cosines(sae)[[5, 9]].tolist() == pytest.approx([1, 1])
    assert figures["decoder_norm_max"] >= before["decoder_norm_max"]
