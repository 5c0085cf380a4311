"""The hash that binds monitors to a chat template: one of its text, online and offline."""

import hashlib

import tiny

from sae_runtime.chat_template import template_sha256
from service.assembly import model_facts


def test_the_hash_is_of_the_text():
    tokenizer = tiny.byte_tokenizer()
    wanted = hashlib.sha256(tiny.CHAT_TEMPLATE.encode()).hexdigest()
    assert template_sha256(tokenizer) == wanted == model_facts(tiny.language_model()).chat_template_sha256
    tokenizer.chat_template = tiny.CHAT_TEMPLATE + " "
    assert template_sha256(tokenizer) != wanted
    tokenizer.chat_template = None
    assert template_sha256(tokenizer) is None


def test_several_templates_have_one_hash_whatever_their_order():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = {"default": "é", "tools": "b"}
    first = template_sha256(tokenizer)
    tokenizer.chat_template = {"tools": "b", "default": "é"}
    assert template_sha256(tokenizer) == first
    tokenizer.chat_template = {"tools": "é", "default": "b"}
    assert template_sha256(tokenizer) != first
