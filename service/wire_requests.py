"""Wire messages -> requests of the engine. Checks every field and reports all that are wrong at once."""

import math
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from monitors.monitor_spec import MonitorSpec, Role
from sae_runtime.reasoning import Delimiters
from sae_runtime.steering_spec import SteeringLimits
from service import prompt as prompts
from service.catalog import Catalog
from service.prompt import Prompt
from service.request import FinishReason, Request, SamplingParams
from service.violations import Violations
from service.wire_policies import PolicyReader
from service.wire_steering import SteeringReader

MAX_WATCHED_FEATURES = 256
MAX_STOP_STRINGS = 8
MAX_STOP_BYTES = 256
MAX_LABEL_CHARACTERS = 128
NO_LATENTS = "be unset, since this server has no dictionary"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may ask for."""

    context_length: int
    """Positions a request may fill, prompt and reply."""
    max_new_tokens_default: int
    top_features_cap: int
    max_request_seconds: float
    slots: int = 1
    """Requests that run at once; a baseline takes another one."""


class RequestReader:
    """Turns wire messages into requests, for one served model and dictionary."""

    def __init__(
        self,
        catalog: Catalog,
        tokenizer: Any,
        steering: SteeringLimits,
        limits: RequestLimits,
        reasoning: Sequence[Delimiters] = (),
    ) -> None:
        """`reasoning` is what encloses reasoning in replies."""
        self.catalog, self.limits, self.reasoning = catalog, limits, tuple(reasoning)
        self._tokenizer = tokenizer
        self.steering = SteeringReader(catalog, steering)

    def read_generate(self, message: Any, *, time_remaining: float | None) -> Request:
        """A GenerateRequest; InvalidRequest with every field that is wrong."""
        return _Reading(self, message, time_remaining).generate()

    def read_score(self, message: Any, *, time_remaining: float | None) -> Request:
        """A ScoreRequest; InvalidRequest with every field that is wrong."""
        return _Reading(self, message, time_remaining).score()

    def num_places(self, message: Any) -> int:
        """Places that a message takes in the queue; one that will be refused takes one."""
        return 2 if getattr(message, "baseline", False) and self.limits.slots > 1 else 1

    def tokenize(self, message: Any, *, add_reply: bool, roles: Collection[Role]) -> Prompt:
        """The prompt, and which of its tokens are words of those `roles`."""
        match message.WhichOneof("prompt"):
            case "text":
                return prompts.from_text(self._tokenizer, message.text)
            case "chat":
                messages = [{"role": m.role, "content": m.content} for m in message.chat.messages]
                return prompts.from_chat(self._tokenizer, messages, add_reply=add_reply, roles=roles)
            case _:
                return prompts.from_ids(message.token_ids.ids)

    def with_reasoning(self, prompt: Prompt) -> Prompt:
        """The prompt with its replies' reasoning told apart."""
        return prompts.with_reasoning(self._tokenizer, prompt, self.reasoning) if self.reasoning else prompt


class _Reading:
    """One message being read."""

    def __init__(self, reader: RequestReader, message: Any, time_remaining: float | None) -> None:
        self._reader, self._message = reader, message
        self._time_remaining = time_remaining
        self._wrong = Violations()

    def generate(self) -> Request:
        message, reader = self._message, self._reader
        sampling = self._sampling()
        monitors = self._monitors()
        policies, policy_steering = PolicyReader(reader.steering, monitors, self._wrong).read(message.policies)
        self._check_baseline()
        common = self._common(monitors)
        # What the assistant said before was scored when it was written.
        roles: set[Role] = {role for monitor in monitors for role in monitor.roles} - {"assistant", "reasoning"}
        prompt = self._prompt(add_reply=True, roles=roles)
        room = reader.limits.context_length - len(prompt.ids)
        asked = sampling.max_tokens if message.sampling.HasField("max_tokens") else None
        self._wrong.require(
            room > 0, _prompt_field(message), f"leave room for a reply in {reader.limits.context_length} tokens",
            f"{len(prompt.ids)} tokens",
        )  # fmt: skip
        if asked is not None and room > 0:
            self._wrong.require(asked <= room, "sampling.max_tokens", f"be at most {room} after this prompt", asked)
        self._wrong.raise_if_any()
        max_tokens = asked if asked is not None else min(reader.limits.max_new_tokens_default, room)
        self._check_lengths(max_tokens)
        is_full = asked is None and max_tokens == room
        return Request(
            prompt_ids=prompt.ids,
            prompt_roles=prompt.roles if roles else (),
            conversation=_conversation(message),
            places=prompt.places,
            sampling=replace(sampling, max_tokens=max_tokens),
            policies=policies,
            policy_steering=policy_steering,
            reasoning=reader.reasoning,
            with_baseline=message.baseline,
            length_reason=FinishReason.CONTEXT_LENGTH if is_full else FinishReason.LENGTH,
            **common,
        )

    def score(self) -> Request:
        message, reader = self._message, self._reader
        monitors = self._monitors()
        common = self._common(monitors)
        roles: set[Role] = {role for monitor in monitors for role in monitor.roles}
        roles.add("assistant")
        prompt = self._prompt(add_reply=False, roles=roles)
        limit = reader.limits.context_length
        self._wrong.require(
            len(prompt.ids) <= limit, _prompt_field(message), f"be at most {limit} tokens", f"{len(prompt.ids)} tokens"
        )
        self._wrong.raise_if_any()
        is_chat = message.WhichOneof("prompt") == "chat"
        if not is_chat:
            common["monitors"] = tuple(monitor.for_plain_text() for monitor in monitors)
        positions = prompt.positions_of("assistant") if is_chat else frozenset(range(len(prompt.ids)))
        prompt = reader.with_reasoning(prompt)
        common["include_prompt"] = True
        return Request(
            prompt_ids=prompt.ids,
            prompt_roles=prompt.roles,
            conversation=_conversation(message),
            places=prompt.places,
            score_only=True,
            scored_positions=positions,
            **common,
        )

    def _common(self, monitors: tuple[MonitorSpec, ...]) -> dict[str, Any]:
        message, watch = self._message, self._message.watch
        seconds = self._reader.limits.max_request_seconds
        remaining = seconds if self._time_remaining is None else min(self._time_remaining, seconds)
        cap = self._reader.limits.top_features_cap
        wanted = f"be at most {cap}" if self._reader.catalog.num_latents else NO_LATENTS
        self._wrong.require(watch.top_features <= cap, "watch.top_features", wanted, watch.top_features)
        label = message.label
        self._wrong.require(
            len(label) <= MAX_LABEL_CHARACTERS and (label == "" or label.isprintable()),
            "label",
            f"be at most {MAX_LABEL_CHARACTERS} printable characters",
            f"{len(label)} characters" if label.isprintable() else "unprintable ones",
        )
        return {
            "request_id": secrets.token_hex(12),
            "watched": self._watched(),
            "monitors": monitors,
            "top_features": watch.top_features,
            "include_prompt": watch.include_prompt,
            "include_logprobs": watch.include_logprobs,
            "steering": self._reader.steering.read(message.steering, "steering", self._wrong),
            "label": label,
            "deadline": time.monotonic() + remaining,
        }

    def _prompt(self, *, add_reply: bool, roles: Collection[Role]) -> Prompt:
        message = self._message
        field = message.WhichOneof("prompt")
        if field is None:
            self._wrong.add("prompt", "must be text, chat or token_ids. Got none.")
        elif field == "chat":
            self._check_messages(message.chat.messages)
        elif field == "token_ids":
            self._check_ids(message.token_ids.ids)
        # What follows needs a prompt; what was wrong before is told first.
        self._wrong.raise_if_any()
        prompt = self._reader.tokenize(message, add_reply=add_reply, roles=roles)
        self._wrong.require(len(prompt.ids) > 0, _prompt_field(message), "hold at least one token", "none")
        self._wrong.raise_if_any()
        return prompt

    def _check_messages(self, messages: Sequence[Any]) -> None:
        self._wrong.require(len(messages) > 0, "chat.messages", "hold at least one message", "none")
        for i, message in enumerate(messages):
            self._wrong.require(
                message.role in ROLES, f"chat.messages[{i}].role", f"be one of {', '.join(ROLES)}", repr(message.role)
            )

    def _check_ids(self, ids: Sequence[int]) -> None:
        vocab_size = self._reader.catalog.model.vocab_size
        for i, token in enumerate(ids):
            if token >= vocab_size:
                self._wrong.add(f"token_ids.ids[{i}]", f"must be below {vocab_size}. Got {token}.")
                return

    def _sampling(self) -> SamplingParams:
        message, default = self._message.sampling, SamplingParams()

        def number(field: str, wanted: str, is_right: Callable[[float], bool]) -> Any:
            if not message.HasField(field):
                return getattr(default, field)
            value = getattr(message, field)
            self._wrong.require(math.isfinite(value) and is_right(value), f"sampling.{field}", wanted, f"{value:g}")
            return value

        return SamplingParams(
            temperature=number("temperature", "be 0, or lie in [0.001, 100]", lambda v: v == 0 or 1e-3 <= v <= 100),
            top_p=number("top_p", "lie in (0, 1]", lambda v: 0 < v <= 1),
            min_p=number("min_p", "lie in [0, 1]", lambda v: 0 <= v <= 1),
            # 0.01 as a 32-bit float is a little less.
            repetition_penalty=number("repetition_penalty", "lie in [0.01, 10]", lambda v: 0.00999 <= v <= 10),
            top_k=number("top_k", "be 0 or more", lambda v: v >= 0),
            max_tokens=number("max_tokens", "be at least 1", lambda v: v >= 1),
            seed=message.seed if message.HasField("seed") else secrets.randbits(63),
            stop=self._stop(message.stop),
            ignore_eos=message.ignore_eos,
        )

    def _stop(self, stop: Sequence[str]) -> tuple[str, ...]:
        self._wrong.require(
            len(stop) <= MAX_STOP_STRINGS, "sampling.stop", f"hold at most {MAX_STOP_STRINGS} strings", len(stop)
        )
        for i, text in enumerate(stop):
            size = len(text.encode())
            self._wrong.require(
                0 < size <= MAX_STOP_BYTES, f"sampling.stop[{i}]", f"have 1 to {MAX_STOP_BYTES} bytes", size
            )
        return tuple(stop)

    def _watched(self) -> tuple[int, ...]:
        watch, num_latents = self._message.watch, self._reader.catalog.num_latents
        self._wrong.require(
            len(watch.features) <= MAX_WATCHED_FEATURES,
            "watch.features",
            f"hold at most {MAX_WATCHED_FEATURES}",
            len(watch.features),
        )
        wanted = f"be a latent below {num_latents}" if num_latents else NO_LATENTS
        for i, latent in enumerate(watch.features[: MAX_WATCHED_FEATURES + 1]):
            self._wrong.require(latent < num_latents, f"watch.features[{i}]", wanted, latent)
        if len(set(watch.features)) != len(watch.features):
            self._wrong.add("watch.features", "must not name a latent twice.")
        if not watch.features and not watch.no_defaults:
            return self._reader.catalog.default_latents
        return tuple(watch.features)

    def _monitors(self) -> tuple[MonitorSpec, ...]:
        watch, catalog = self._message.watch, self._reader.catalog
        if not watch.monitors:
            return () if watch.no_defaults else catalog.default_monitors
        specs = {}
        for i, name in enumerate(watch.monitors):
            monitor = catalog.monitors_by_name.get(name)
            if monitor is None:
                known = ", ".join(catalog.monitors_by_name) or "none"
                self._wrong.add(f"watch.monitors[{i}]", f"must be one of the server's: {known}. Got {name!r}.")
            elif name in specs:
                self._wrong.add(f"watch.monitors[{i}]", f"must not be named twice. Got {name!r} again.")
            else:
                specs[name] = monitor.spec
        return tuple(specs.values())

    def _check_lengths(self, max_tokens: int) -> None:
        """A monitor that is asked for by name must know what is usual at every length the reply may have, and be able
        to fire there. One that runs by default says in Started how far its thresholds stand."""
        for i, name in enumerate(self._message.watch.monitors):
            longest = self._reader.catalog.monitors_by_name[name].spec.thresholds.max_tokens
            self._wrong.require(
                max_tokens <= longest,
                f"watch.monitors[{i}]",
                f"have thresholds for replies of up to {max_tokens} tokens (sampling.max_tokens)",
                f"{name!r}, whose thresholds stand up to {longest}",
            )
        self._wrong.raise_if_any()

    def _check_baseline(self) -> None:
        if not self._message.baseline:
            return
        is_steered = bool(self._message.steering) or any(policy.steering for policy in self._message.policies)
        wanted = "come with steering, or a policy that steers, to be compared with"
        self._wrong.require(is_steered, "baseline", wanted, "neither")
        has_room = self._reader.limits.slots > 1
        self._wrong.require(has_room, "baseline", "be unset on a server with one slot", "true")


def _prompt_field(message: Any) -> str:
    return str(message.WhichOneof("prompt") or "prompt")


def _conversation(message: Any) -> tuple[tuple[str, str], ...]:
    return tuple((m.role, m.content) for m in message.chat.messages)
