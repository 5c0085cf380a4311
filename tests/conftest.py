"""Fixtures shared by all tests; the parts are made in `tests/tiny.py`."""

import os
import tempfile
from collections.abc import Callable, Iterator

import pytest

# What a test starts is begun by a fork that soon becomes something else. gRPC's own threads, begun anew in it, were
# seen to end it before it had: "epoll_wait error: Bad file descriptor". Read when gRPC is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import native_models
import tiny
import torch

from sae_runtime.errors import ModelError
from sae_runtime.language_model import LanguageModel, load_language_model
from sae_runtime.sae import SAE

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session", autouse=True)
def state_home() -> Iterator[None]:
    """Servers that tests start keep their alerts in a folder of the tests' own."""
    with tempfile.TemporaryDirectory(prefix="telltale-state-") as folder:
        os.environ["XDG_STATE_HOME"] = folder
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> Iterator[None]:
    """Not by `atexit`: the processes that share the tests' files don't come to it."""
    yield
    native_models.drop_library()


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return tiny.language_model()


@pytest.fixture(scope="session")
def dictionary() -> SAE:
    return tiny.sae()


@pytest.fixture
def load_model(tmp_path) -> Callable[..., LanguageModel]:
    """load_language_model on the CPU, with a cache of its own."""

    def load(source: object, **settings: object) -> LanguageModel:
        return load_language_model(str(source), **({"device": "cpu", "cache_dir": tmp_path / "cache"} | settings))

    return load


@pytest.fixture
def model_refusal(load_model) -> Callable[..., str]:
    """The one line of the ModelError that loading ends in."""

    def refusal(source: object, **settings: object) -> str:
        with pytest.raises(ModelError) as error:
            load_model(source, **settings)
        assert "\n" not in str(error.value)
        return str(error.value)

    return refusal
