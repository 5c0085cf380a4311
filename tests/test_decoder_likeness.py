"""Cosines of decoder rows, piece by piece, against torch's own over all at once."""

import pytest
import torch

from service.decoder_likeness import _MOST_ENTRIES, DecoderLikeness


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_give_what_all_rows_at_once_give(dtype):
    w_dec_FD = torch.randn(300, 400, generator=torch.Generator().manual_seed(0)).to(dtype)
    w_dec_FD[7] = 0
    likeness = DecoderLikeness(w_dec_FD)
    pieces = list(likeness._pieces())
    assert len(pieces) > 2 and max(piece.numel() for piece in pieces) <= _MOST_ENTRIES
    assert torch.equal(torch.cat(pieces), w_dec_FD.float())
    for latent in (0, 299):
        wanted_F = torch.nn.functional.cosine_similarity(w_dec_FD[latent].float()[None], w_dec_FD.float(), dim=1)
        assert likeness.cosines(latent) == pytest.approx(wanted_F.tolist(), abs=1e-6)
    assert likeness.cosines(7) == [0.0] * 300, "a row of zeros is like none"


def test_a_row_wider_than_a_piece_is_one():
    w_dec_FD = torch.ones(3, _MOST_ENTRIES + 1)
    assert DecoderLikeness(w_dec_FD).cosines(1) == pytest.approx([1.0, 1.0, 1.0], abs=1e-5)
