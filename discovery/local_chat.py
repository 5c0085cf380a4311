"""A `ChatModel` in this process: `--endpoint local`, for machines without a network or a server.

The model writes only what is free in the JSON; braces, keys and commas are put in for it, and a choice (0 or 1, go on
or end the list) is made by comparing logits. So its answers always have the right shape, however small the model;
whether they are any good is what the scores are for.

Takes the schemas that explaining and scoring use: an object of strings, lists of strings, and lists of numbers out of
an `enum` with `minItems` equal to `maxItems`. Greedy, and so the same at every run.

The project's own server can be asked too (`grpc_chat`), but it writes freely. It serves the same weights as this.
"""

import json
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from discovery.chat_model import ChatReply, Message
from discovery.errors import ExplainError, ReplyError
from sae_runtime.cache_argument import cache_argument
from sae_runtime.language_model import LanguageModel
from sae_runtime.last_position import last_position

_CHARACTERS_PER_TOKEN = 3
_DEFAULT_STRING_TOKENS = 60
_MOST_STRINGS = 8


class _Pen:
    """The model, half-way through an answer: what it has read, and the logits of what may come next."""

    def __init__(self, lm: LanguageModel, prompt_ids: list[int]) -> None:
        self._lm = lm
        self._cache = DynamicCache(config=lm.model.config)
        self._unread = prompt_ids
        self._logits_V = torch.empty(0)

    def _logits(self) -> Tensor:
        """[V] logits of the next token. What was written is read only now, in one pass."""
        if self._unread:
            ids_1T = torch.tensor([self._unread], device=self._lm.device)
            cache = cache_argument(self._cache)
            output = self._lm.model(input_ids=ids_1T, use_cache=True, logits_to_keep=last_position(ids_1T), **cache)
            self._logits_V = output.logits[0, -1].float()
            self._unread = []
        return self._logits_V

    def _ids(self, text: str) -> list[int]:
        return list(self._lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    def put(self, text: str) -> None:
        """Have the model read `text` as its own."""
        self._unread = self._unread + self._ids(text)

    def choose_mark(self, marks: list[str]) -> str:
        """The likeliest of marks that begin with different tokens. The model has not read it yet."""
        logits_V = self._logits()
        return max(marks, key=lambda mark: float(logits_V[self._ids(mark)[0]]))

    def choose(self, options: list[str]) -> str:
        """The option that wins where they part: token by token, those stay that go on with the likeliest. Read then.

        A tokenizer may begin every number with the same token. An option that ends where others go on stands for the
        comma or bracket behind it.
        """
        ends = [self._ids(mark)[0] for mark in (",", "]")]
        left = {option: self._ids(option) for option in options}
        while True:
            heads = {ids[0] if ids else None for ids in left.values()}
            head = heads.pop() if len(heads) == 1 else self._likeliest(heads, ends)
            left = {option: ids for option, ids in left.items() if (ids[0] if ids else None) == head}
            if len(left) == 1:
                ((option, ids),) = left.items()
                self._unread = self._unread + ids
                return option
            assert head is not None, "options must differ"
            self._unread = [*self._unread, head]
            left = {option: ids[1:] for option, ids in left.items()}

    def _likeliest(self, tokens: set[int | None], ends: list[int]) -> int | None:
        """Of the tokens that options go on with; None is their end."""
        logits_V = self._logits()
        return max(tokens, key=lambda token: float(logits_V[ends].max() if token is None else logits_V[token]))

    def string(self, max_tokens: int) -> str:
        """The model's likeliest words up to a quotation mark or line end, and the mark. Never empty."""
        ids = self._unread = [self._first_word()]
        while len(ids) < max_tokens:
            token = int(self._logits().argmax())
            if token in self._lm.eos_token_ids or _ends(self._lm.tokenizer.decode([token])):
                break
            ids, self._unread = [*ids, token], [token]
        self.put('"')
        return str(self._lm.tokenizer.decode(ids)).strip()

    def _first_word(self) -> int:
        """The likeliest token that is a piece of a word."""
        for token in self._logits().argsort(descending=True).tolist():
            text = self._lm.tokenizer.decode([token])
            if token not in self._lm.eos_token_ids and text.strip() and text.isprintable() and not _ends(text):
                return int(token)
        raise ReplyError("the model has no token to begin a text with")


def _ends(text: str) -> bool:
    return '"' in text or "\n" in text


class LocalChat:
    """Answers with a model of transformers."""

    def __init__(self, lm: LanguageModel) -> None:
        if lm.tokenizer.chat_template is None:
            raise ExplainError(f"model {lm.identity.name} must have a chat template, got none")
        self._lm = lm

    @property
    def name(self) -> str:
        return f"{self._lm.identity.name} (local)"

    async def reply(self, messages: list[Message], schema: dict[str, Any], max_tokens: int) -> ChatReply:
        """Answer `messages` with JSON of `schema`; see `ChatModel`. Holds up the event loop: there is one processor."""
        lm = self._lm
        text = lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) + max_tokens > lm.context_length:
            raise ReplyError(f"the prompt has {len(ids)} tokens, the model takes {lm.context_length - max_tokens}")
        with torch.inference_mode():
            return ChatReply(json.dumps(_write(_Pen(lm, ids), schema, max_tokens), ensure_ascii=False))


def _write(pen: _Pen, schema: dict[str, Any], max_tokens: int) -> Any:
    """What the model makes of `schema`."""
    match schema.get("type"):
        case "object":
            return _write_object(pen, schema, max_tokens)
        case "string":
            pen.put('"')
            return pen.string(_string_tokens(schema, max_tokens))
        case "array" if "enum" in schema["items"]:
            return _write_choices(pen, schema)
        case "array":
            return _write_strings(pen, schema, max_tokens)
        case kind:
            raise ExplainError(f"a local model can't write JSON of type {kind!r}")


def _string_tokens(schema: dict[str, Any], max_tokens: int) -> int:
    characters = schema.get("maxLength", _DEFAULT_STRING_TOKENS * _CHARACTERS_PER_TOKEN)
    return max(1, min(max_tokens, characters // _CHARACTERS_PER_TOKEN, _DEFAULT_STRING_TOKENS))


def _write_object(pen: _Pen, schema: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for name, part in schema["properties"].items():
        pen.put(("{" if not written else ", ") + json.dumps(name) + ": ")
        written[name] = _write(pen, part, max_tokens // len(schema["properties"]))
    return written


def _write_choices(pen: _Pen, schema: dict[str, Any]) -> list[Any]:
    options = {str(value): value for value in schema["items"]["enum"]}
    chosen: list[str] = []
    for _ in range(schema["minItems"]):
        pen.put(", " if chosen else "[")
        chosen.append(pen.choose(list(options)))
    pen.put("]")
    return [options[choice] for choice in chosen]


def _write_strings(pen: _Pen, schema: dict[str, Any], max_tokens: int) -> list[str]:
    written: list[str] = []
    pen.put('["')
    while len(written) < schema.get("maxItems", _MOST_STRINGS):
        text = pen.string(_string_tokens(schema["items"], max_tokens))
        # A small model says the same for ever.
        if text in written:
            break
        written.append(text)
        if pen.choose_mark([",", "]"]) == "]":
            break
        pen.put(', "')
    pen.put("]")
    return written
