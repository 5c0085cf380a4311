"""provenance: what is not the dictionary's is named, and what is not known is not compared."""

import pytest
from serving import manifest

from discovery.errors import FitError
from discovery.provenance import check_model, check_provenance, model_facts
from sae_runtime.formats import UNKNOWN

FACTS = {"model_sha256": "0" * 64, "quantization": "none", "hook_point": "layers.1.output", "d_model": 32}


def test_a_models_own_facts_are_the_dictionarys(model):
    check_provenance(manifest(), model_facts(model), "the model")
    check_provenance(manifest(), FACTS, "the harvest")


@pytest.mark.parametrize(
    ("name", "other"),
    [("model_sha256", "1" * 64), ("quantization", "nf4"), ("hook_point", "layers.2.output"), ("d_model", 33)],
)
def test_each_fact_is_compared(name, other):
    for got in (other, None):
        with pytest.raises(FitError, match=f"^{name} of the text must be the dictionary's {FACTS[name]}, got {got} "):
            check_provenance(manifest(), FACTS | {name: got}, "the text")


def test_two_names_of_one_place_agree():
    check_provenance(manifest(), FACTS | {"hook_point": "layers.2.input"}, "the text")


def test_what_is_unknown_of_an_imported_dictionary_is_not_compared():
    unknown = manifest(model_sha256=UNKNOWN, quantization=UNKNOWN)
    check_provenance(unknown, FACTS | {"model_sha256": "1" * 64, "quantization": "int8"}, "the text")
    with pytest.raises(FitError, match="hook_point"):
        check_provenance(unknown, FACTS | {"hook_point": "layers.0.output"}, "the text")


def test_a_model_of_another_width_is_refused_whatever_is_said(model):
    check_model(manifest(), model, unverified=False)
    other = manifest(model_sha256="1" * 64)
    with pytest.raises(FitError, match="model_sha256 of model tiny must be the dictionary's 1111"):
        check_model(other, model, unverified=False)
    check_model(other, model, unverified=True)
    for unverified in (True, False):
        with pytest.raises(FitError, match=r"d_model of model tiny must be the dictionary's 33, got 32$"):
            check_model(manifest(d_model=33), model, unverified=unverified)
