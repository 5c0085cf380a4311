"""Fixtures shared by all tests; the parts are made in `tests/tiny.py`."""

import pytest
import tiny
import torch

from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return tiny.language_model()


@pytest.fixture(scope="session")
def dictionary() -> SAE:
    return tiny.sae()
