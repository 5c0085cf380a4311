import pytest
import torch

from sae_runtime.number_format import fastest_dtype, has_fast_bfloat16

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False, "cpu_name": "some"}, torch.float32),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ],
)
def test_a_processor_without_bf16_instructions_computes_in_fp32(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fastest_dtype(CPU) == dtype
    assert fastest_dtype(GPU) == torch.bfloat16


def test_a_torch_that_can_not_say_means_bf16(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert has_fast_bfloat16(CPU)


def test_this_torch_can_say():
    assert any("bf16" in name for name in torch.cpu.get_capabilities())
