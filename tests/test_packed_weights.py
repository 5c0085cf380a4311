"""Packing: what a GGUF file had in 4 or 8 bits is found again exactly, the rest is kept as well as bf16 keeps it."""

import math

import native_models as native
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_runtime.packed_weights import GROUP, by_turns, pack, pack_bfloat16


@pytest.mark.parametrize(("kind", "bits"), [("Q4_1", 4), ("Q8_0", 8)])
def test_weights_of_a_gguf_file_are_kept_exactly(kind, bits):
    """As the library that writes such files makes and reads them."""
    weights = np.random.default_rng(0).normal(size=(48, 96)).astype(np.float32)
    kind = GGMLQuantizationType[kind]
    stored = torch.from_numpy(dequantize(quantize(weights, kind), kind).copy())
    packed = pack(stored)
    assert (packed.bits, packed.num_outputs, packed.num_inputs) == (bits, 48, 96)
    assert torch.equal(native.unpack(packed), stored)


def test_q4_0_which_uses_one_end_of_the_scale_is_found_too():
    weights = np.random.default_rng(0).normal(size=(48, 96)).astype(np.float32)
    stored = torch.from_numpy(
        dequantize(quantize(weights, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0).copy()
    )
    packed = pack(stored)
    assert packed.bits == 4
    torch.testing.assert_close(native.unpack(packed), stored, rtol=0, atol=float(stored.abs().max()) * 2**-10)


def test_scales_that_are_no_fp16_numbers_are_rounded_less_than_bf16_would_round_the_weights():
    """As those of Q4_K, which are products of two numbers."""
    stored = native.q4_1(64, 64) * 1.0007
    packed = pack(stored)
    assert packed.bits == 4
    assert 0 < (native.unpack(packed) - stored).norm() < 0.5 * (stored.bfloat16().float() - stored).norm()


def test_groups_that_use_few_of_the_numbers_are_found():
    """All multiples of 3 of 0..15, a single value, and zeros alone."""
    stored = native.q4_1(16, 96)
    stored[:, :32] = 0.25 * 3 * torch.randint(0, 5, (16, 32)) - 0.5
    stored[3, 32:64], stored[5, 64:] = 0.125, 0.0
    packed = pack(stored)
    assert packed.bits == 4
    assert torch.equal(native.unpack(packed)[[3, 5]], stored[[3, 5]])
    torch.testing.assert_close(native.unpack(packed), stored, rtol=0, atol=1e-3)


def test_other_weights_are_kept_as_bf16():
    weights = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    packed = pack(weights)
    assert packed.bits == 16
    assert torch.equal(native.unpack(packed), weights.bfloat16().float())
    assert torch.equal(native.unpack(pack_bfloat16(native.q4_1(32, 64))), native.q4_1(32, 64).bfloat16().float())


def test_one_group_that_is_not_of_4_bits_keeps_the_matrix_from_it():
    weights = native.q4_1(1024, 64)
    weights[1000, :32] = torch.randn(32, generator=torch.Generator().manual_seed(0))
    packed = pack(weights)
    assert packed.bits == 16
    assert torch.equal(native.unpack(packed), weights.bfloat16().float())


@pytest.mark.parametrize("bits", [4, 8])
@settings(deadline=None)
@given(st.floats(0.5, 2), st.floats(1e-3, 10), st.integers(0, 2**31))
def test_no_weight_is_off_by_more_than_a_small_part_of_the_largest_of_its_group(bits, off, scale, seed):
    """Of scales that fp16 rounds."""
    weights = (native.q4_1 if bits == 4 else native.q8_0)(16, 64, seed=seed) * (off * scale)
    packed, groups = pack(weights), weights.view(16, -1, GROUP)
    if scale > 0.25:  # smaller ones may lie where fp16 has few digits
        assert packed.bits == bits
    if packed.bits == 16:
        assert torch.equal(native.unpack(packed), weights.bfloat16().float())
    else:
        lost = (native.unpack(packed).view_as(groups) - groups).abs().amax(-1)
        assert (lost <= 2**-9 * groups.abs().amax(-1)).all()


def test_a_group_that_loses_more_than_that_keeps_the_matrix_from_4_bits():
    """Its scale lies where fp16 has few digits."""
    weights = native.q4_1(16, 64)
    weights[3, :32] = 1.3e-6 * torch.arange(32).remainder(16)
    assert pack(native.q4_1(16, 64)).bits == 4
    packed = pack(weights)
    assert packed.bits == 16
    assert torch.equal(native.unpack(packed), weights.bfloat16().float())


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("make", [native.q4_1, native.q8_0])
def test_what_is_not_finite_is_kept_so(make, number):
    weights = make(32, 64)
    weights[5, 40] = number
    packed = pack(weights)
    assert packed.bits == 16
    torch.testing.assert_close(native.unpack(packed), weights.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["Q5_0", "Q6_K"])
def test_other_kinds_of_a_gguf_file_are_kept_as_bf16(kind):
    numbers = np.random.default_rng(0).integers(0, 256, size=(16, GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1] * 2))
    stored = torch.from_numpy(dequantize(numbers.astype(np.uint8) & 0x3B, GGMLQuantizationType[kind]).copy())
    packed = pack(stored)
    assert packed.bits == 16
    assert torch.equal(native.unpack(packed), stored.bfloat16().float())


def test_two_matrices_lie_tile_by_tile():
    first, second = native.q4_1(32, 32, seed=1), native.q4_1(32, 32, seed=2)
    together = by_turns(first, second)
    assert torch.equal(together[:16], first[:16])
    assert torch.equal(together[16:32], second[:16])
    assert torch.equal(together[32:48], first[16:])


@pytest.mark.parametrize("shape", [(24, 32), (16, 48)])
def test_shapes_that_do_not_divide_are_refused(shape):
    with pytest.raises(ValueError, match=r"multiples of 16 by 32, got \[" + f"{shape[0]}, {shape[1]}"):
        pack(torch.zeros(shape))
