"""Which way a server with these settings would run its passes, on this machine, without loading a model.

It is in the words of the ready line, `ModelRunner.passes`, with what speaks for that way behind them. What only the
loaded model can tell - the kind and the shapes of its blocks - is said as a condition.
"""

import importlib.util

import torch

from sae_runtime.errors import ModelError
from sae_runtime.kernels import native
from sae_runtime.language_model import check_gguf_quantization, resolve_device
from sae_runtime.number_format import fastest_dtype
from sae_runtime.weights import default_cache_dir
from service.config import EMBEDDED, Settings


def planned_passes(settings: Settings) -> str:
    """`native kernels`, `CUDA graphs` or `transformers`, and in brackets why not otherwise, or on what condition; or
    `none`, where the server would not start, and why."""
    try:
        check_gguf_quantization(settings.model, settings.quantization)
        device = torch.device(resolve_device(settings.device))
    except ModelError as error:
        return f"none ({error})"
    way, reason = _on_gpu(settings) if device.type == "cuda" else _on_processor(settings, device)
    return f"{way} ({reason})" if reason else way


def _on_gpu(settings: Settings) -> tuple[str, str]:
    if not settings.cuda_graphs:
        return "transformers", "cuda_graphs is off"
    if settings.quantization == "int8":
        return "transformers", "quantization is int8"
    if importlib.util.find_spec("triton") is None:
        return "transformers", "CUDA graphs need triton"
    return "CUDA graphs", "" if settings.model == EMBEDDED else "for Llama and Qwen2 models"


def _on_processor(settings: Settings, device: torch.device) -> tuple[str, str]:
    dtype = str(fastest_dtype(device)).removeprefix("torch.") if settings.dtype == "auto" else settings.dtype
    if not settings.native_kernels:
        return "transformers", "native_kernels is off"
    if dtype != "bfloat16":
        return "transformers", f"dtype is {dtype}"
    if settings.quantization in ("nf4", "int8"):
        return "transformers", f"quantization is {settings.quantization}"
    try:
        native.check_processor()
        is_compiled = native.is_compiled(settings.cache_dir or default_cache_dir())
        compiler = "" if is_compiled else native.find_compiler()[0]
    except native.NativeKernelsMissing as error:
        return "transformers", str(error)
    conditions = ["for Llama and Qwen2 models"] if settings.model != EMBEDDED else []
    conditions += [f"once {compiler} has compiled them"] if compiler else []
    return "native kernels", ", ".join(conditions)
