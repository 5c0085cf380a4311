"""pack_lookup: shipped monitors are found by name on the model they were made for, with the dictionary they read."""

from argparse import Namespace

import pytest

from discovery import monitor_combine, monitor_fit
from discovery.errors import MonitorLabError
from discovery.pack_lookup import Dictionaries, find_pack
from sae_runtime.gguf_file import EMBEDDED_NAME, EMBEDDED_SHA256
from sae_runtime.language_model import ModelIdentity

NO_DICTIONARY = Namespace(dictionary=None, unverified=False)


def model(sha256: str) -> Namespace:
    """As much of a language model as the lookup asks for."""
    return Namespace(identity=ModelIdentity(EMBEDDED_NAME, sha256, "gguf-q4_1", "float32", "cpu"), device="cpu")


def test_a_shipped_monitor_is_found_by_name_with_its_dictionary():
    embedded = model(EMBEDDED_SHA256)
    pack, path = find_pack("medical", embedded)
    assert (pack.name, path.name) == ("medical", "medical.pack.yaml")
    assert pack.bindings.sae_sha256 is not None
    dictionaries = Dictionaries(NO_DICTIONARY, embedded)
    sae = dictionaries.of(pack)
    assert sae is not None and sae.manifest.sae_sha256 == pack.bindings.sae_sha256
    assert dictionaries.of(pack) is sae  # loaded once


def test_on_another_model_there_is_no_such_monitor():
    with pytest.raises(MonitorLabError, match=r"or a monitor of .* \(none\), got 'medical'"):
        find_pack("medical", model("1" * 64))


@pytest.mark.parametrize("command", ["fit", "combine"])
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("two-words.pack.yaml", r"--output must be NAME.pack.yaml with a name matching \S+, got two-words.pack.yaml"),
        ("lies.yaml", "--output must end with .pack.yaml, got lies.yaml"),
    ],
)
def test_a_name_that_no_monitor_can_have_is_refused_before_anything_is_read(command, name, fault):
    """Neither the data nor the model nor the packs named here exist."""
    module = {"fit": monitor_fit, "combine": monitor_combine}[command]
    how = ["--rule", "min"] if command == "combine" else []
    with pytest.raises(MonitorLabError, match=fault):
        module.main(["nothing.jsonl", "--output", name, *how])
