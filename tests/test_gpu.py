"""The reference shape on a GPU, shortened to two blocks: nf4 through bitsandbytes, tap, dictionary, engine."""

from argparse import Namespace

import pytest

from benchmarks import reference


@pytest.mark.gpu
def test_the_reference_shape_is_tapped_and_read_right(tmp_path):
    args = Namespace(
        device="cuda", quantization="nf4", layers=2, latents=4096, streams=[1, 8], tokens=32, eager_tokens=32, repeats=1
    )
    result = reference.measure(args, tmp_path)  # asserts that every token was tapped
    assert result["decoding"] == "CUDA graphs"
    for streams in ("1", "8"):
        monitored = result[streams]["monitored"]
        # bf16: a pass over one row and one over eight differ in low bits.
        assert monitored["max_reading_error_ratio"] < 0.05 and monitored["active_readings_compared"] > 100
