"""What transformers calls the keys and values of earlier tokens: `cache`, before 5.24 `past_key_values`.

model(input_ids=ids, **cache_argument(cache))
"""

from inspect import signature
from typing import Any

from transformers import LlamaForCausalLM

_NAME = "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def cache_argument(cache: Any) -> dict[str, Any]:
    """`cache` as the keyword argument that models take it as."""
    return {_NAME: cache}
