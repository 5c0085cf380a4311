import torch
from transformers import DynamicCache

from sae_runtime.cache_argument import cache_argument


def test_the_installed_transformers_takes_it_without_a_word(model):
    """Warnings are errors here, those about an old name included."""
    cache = DynamicCache(config=model.model.config)
    ids_BT = torch.tensor([[1, 5, 6, 7]])
    with torch.inference_mode():
        model.model(input_ids=ids_BT[:, :3], use_cache=True, **cache_argument(cache))
        assert cache.get_seq_length() == 3
        output = model.model(input_ids=ids_BT[:, 3:], use_cache=True, **cache_argument(cache))
        wanted = model.model(input_ids=ids_BT).logits[:, -1]
    torch.testing.assert_close(output.logits[:, -1], wanted, rtol=1e-4, atol=1e-5)
