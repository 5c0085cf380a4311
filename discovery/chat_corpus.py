"""Chat written by the served model itself: there is little of it in any corpus, and the served model reads little else.

Every conversation has the same number of tokens, and all rows of a batch advance in lock step from position 0. A row
is either *forced* (template, or a prompt of ours) or sampled, so there is no padding, no mask and no prefill. Half of
the rows let the model write the user's turn as well; the others ask `task x topic`. A finished turn opens the next one,
until the row is full.

    python -m discovery.chat_corpus chat.jsonl --conversations 3840

The output is one JSON line per conversation: `{"tokens": [...], "source": "chat_self" | "chat_prompted", "id": "..."}`.
Killed and started again it goes on where it was: batches are appended whole, and each has a seed of its own.

Shape suffixes: B rows, T tokens, V vocabulary, K candidates, H heads, E head width.
"""

import hashlib
import json
import os
import random
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import Cache, DynamicCache

from discovery.argument_checks import check_counts
from discovery.chat_prompts import SYSTEMS, TASKS, TOPICS
from discovery.command_parser import command_parser
from discovery.output_places import check_output, made_for
from sae_runtime.cache_argument import cache_argument
from sae_runtime.language_model import EMBEDDED, LanguageModel, load_language_model
from sae_runtime.whole_files import named_faults


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How conversations are written. Part of the seed: other settings are another corpus."""

    num_tokens: int = 320
    """Tokens of each conversation, template included."""
    batch_size: int = 512
    temperature: float = 0.8
    top_k: int = 50
    seed: int = 0
    topics: tuple[str, ...] = ()
    """What prompts may be about; none given: everything."""
    self_ratio: float = 0.5
    """Share of the conversations whose user's turn the model writes as well."""

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.batch_size < 1 or self.top_k < 1:
            raise ValueError(f"num_tokens, batch_size and top_k must be at least 1, got {self}")
        if unknown := set(self.topics) - set(TOPICS):
            raise ValueError(f"topics must be among those of discovery.chat_prompts, got {', '.join(sorted(unknown))}")
        if not 0 <= self.self_ratio <= 1:
            raise ValueError(f"self_ratio must lie in [0, 1], got {self.self_ratio}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


DEFAULTS = ChatSettings()


@dataclass(frozen=True, slots=True)
class ChatMarks:
    """The template's pieces as token ids."""

    end: int
    """Ends a turn."""
    to_assistant: tuple[int, ...]
    """From the end of the user's turn to the assistant's first token."""
    to_user: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatMarks":
        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

        (end,) = ids("<|im_end|>")
        return cls(end, ids("\n<|im_start|>assistant\n"), ids("\n<|im_start|>user\n"))


@dataclass(slots=True)
class Row:
    """One conversation being written."""

    source: str
    marks: ChatMarks
    forced: deque[int]
    """Tokens still to be fed before sampling goes on."""
    is_user: bool
    """Whose turn is being sampled."""
    tokens: list[int] = field(default_factory=list)

    def take(self, sampled: int) -> int:
        """The token at the next position: a forced one if there is any, else the sampled one."""
        token = self.forced.popleft() if self.forced else sampled
        self.tokens.append(token)
        if not self.forced and token == self.marks.end:
            self.forced.extend(self.marks.to_assistant if self.is_user else self.marks.to_user)
            self.is_user = not self.is_user
        return token


class LockstepCache(DynamicCache):  # type: ignore[misc]
    """Keys and values of rows that all have the same length, written in place.

    transformers' own cache grows by concatenation, which copies everything at every step: at 512 rows x 320 tokens
    that is more memory traffic than the model itself.
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self._buffers: dict[int, tuple[Tensor, Tensor, int]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, H, T, E] keys and values of one layer; returns all of them so far."""
        if layer_idx not in self._buffers:
            B, H, _, E = key_states.shape
            keys = key_states.new_empty(B, H, self.num_tokens, E)
            self._buffers[layer_idx] = (keys, torch.empty_like(keys), 0)
        keys, values, start = self._buffers[layer_idx]
        end = start + key_states.shape[2]
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self._buffers[layer_idx] = (keys, values, end)
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._buffers[layer_idx][2] if layer_idx in self._buffers else 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        length = query_length if isinstance(query_length, int) else len(query_length)
        return self.get_seq_length(layer_idx) + length, 0


def open_rows(tokenizer: Any, settings: ChatSettings, batch: int) -> list[Row]:
    """The rows of batch `batch`, with their prompts still to be fed."""
    rng = random.Random(f"{settings.seed}/{batch}")
    marks = ChatMarks.of(tokenizer)
    return [_open_row(tokenizer, marks, rng, settings) for _ in range(settings.batch_size)]


def _open_row(tokenizer: Any, marks: ChatMarks, rng: random.Random, settings: ChatSettings) -> Row:
    messages = [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.25 else []
    writes_own_prompt = rng.random() < settings.self_ratio
    prompt = "" if writes_own_prompt else rng.choice(TASKS).format(topic=rng.choice(settings.topics or TOPICS))
    text = tokenizer.apply_chat_template([*messages, {"role": "user", "content": prompt}], tokenize=False)
    if writes_own_prompt:
        # The template closes the empty turn: reopen it.
        text = text[: text.rindex("<|im_start|>user\n") + len("<|im_start|>user\n")]
        return Row("chat_self", marks, deque(tokenizer(text)["input_ids"]), is_user=True)
    text = text.removesuffix("\n") + "\n<|im_start|>assistant\n"
    return Row("chat_prompted", marks, deque(tokenizer(text)["input_ids"]), is_user=False)


@torch.inference_mode()
def write_batch(lm: LanguageModel, settings: ChatSettings, batch: int, bar: Any = None) -> list[Row]:
    """Write all conversations of one batch, `settings.num_tokens` tokens each."""
    rows = open_rows(lm.tokenizer, settings, batch)
    digest = hashlib.sha256(f"{settings.seed}/{batch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
    cache: Cache = LockstepCache(settings.num_tokens)
    sampled_B = [0] * len(rows)
    for position in range(settings.num_tokens):
        tokens_B1 = torch.tensor([[row.take(token)] for row, token in zip(rows, sampled_B, strict=True)])
        logits_BV = lm.model(
            input_ids=tokens_B1,
            position_ids=torch.full_like(tokens_B1, position),
            use_cache=True,
            **cache_argument(cache),
        ).logits[:, -1]
        sampled_B = sample(logits_BV, settings, generator).tolist()
        if bar is not None:
            bar.update(len(rows))
    return rows


def sample(logits_BV: Tensor, settings: ChatSettings, generator: torch.Generator) -> Tensor:
    """[B] token ids, drawn from the `top_k` likeliest at `temperature`."""
    values_BK, indices_BK = logits_BV.float().topk(min(settings.top_k, logits_BV.shape[-1]), dim=-1)
    choice_B1 = torch.multinomial((values_BK / settings.temperature).softmax(-1), 1, generator=generator)
    return indices_BK.gather(1, choice_B1)[:, 0]


def write_corpus(lm: LanguageModel, path: Path, settings: ChatSettings, num_batches: int) -> int:
    """Append batches to `path` until it has `num_batches`; returns how many were written now."""
    done = _whole_batches(path, settings.batch_size)
    with tqdm(
        total=num_batches * settings.batch_size * settings.num_tokens,
        initial=done * settings.batch_size * settings.num_tokens,
        desc="chat",
        unit="tok",
        unit_scale=True,
        mininterval=5,
    ) as bar:
        for batch in range(done, num_batches):
            lines = list(_lines(write_batch(lm, settings, batch, bar), batch))
            with named_faults(path), made_for(path).open("a", encoding="utf-8") as file:
                file.write("".join(lines))
                file.flush()
                os.fsync(file.fileno())
    return max(num_batches - done, 0)


def _lines(rows: list[Row], batch: int) -> Iterator[str]:
    for index, row in enumerate(rows):
        yield json.dumps({"id": f"{batch}/{index}", "source": row.source, "tokens": row.tokens}) + "\n"


def _whole_batches(path: Path, batch_size: int) -> int:
    """Batches already in `path`. Cuts off what a kill left of an unfinished one."""
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    done = len(lines) // batch_size
    whole = sum(len(line) for line in lines[: done * batch_size])
    os.truncate(path, whole)
    return done


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("Let the served model write chat, for training a dictionary on it.")
    parser.add_argument("output", type=Path, help="JSON lines of token ids; continued if it exists")
    parser.add_argument("--model", default=EMBEDDED, help="embedded, a folder, a .gguf file or a hub name")
    parser.add_argument("--conversations", type=int, default=3840, help="rounded up to whole batches")
    parser.add_argument("--tokens", type=int, default=DEFAULTS.num_tokens, help="tokens per conversation")
    parser.add_argument("--batch-size", type=int, default=DEFAULTS.batch_size, help="conversations at a time")
    parser.add_argument("--temperature", type=float, default=DEFAULTS.temperature, help="of the drawing of tokens")
    parser.add_argument("--top-k", type=int, default=DEFAULTS.top_k, help="tokens to draw from, the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="of questions and tokens")
    parser.add_argument("--topic", action="append", default=[], help="ask about nothing else; repeat")
    parser.add_argument(
        "--self-ratio", type=float, default=DEFAULTS.self_ratio, help="share with a user's turn written too"
    )
    args = parser.parse_args(argv)
    check_counts(args, "conversations", "tokens", "batch_size", "top_k")
    settings = ChatSettings(
        args.tokens,
        args.batch_size,
        args.temperature,
        args.top_k,
        args.seed,
        tuple(args.topic),
        args.self_ratio,
    )
    check_output("output", args.output)
    lm = load_language_model(args.model, progress=True)
    num_batches = -(-args.conversations // settings.batch_size)
    written = write_corpus(lm, args.output, settings, num_batches)
    print(json.dumps({"batches_written": written, "conversations": num_batches * settings.batch_size}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
