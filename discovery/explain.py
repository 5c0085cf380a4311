"""Has a language model explain latents, and scores what it says: `telltale lab explain`.

    telltale lab explain DICTIONARY --store examples.sqlite --endpoint http://localhost:11434/v1 --model qwen3:8b
    telltale lab explain DICTIONARY --store examples.sqlite --endpoint local --latents named
    telltale lab explain DICTIONARY --store examples.sqlite --endpoint tokens
    telltale lab explain DICTIONARY --store examples.sqlite --endpoint grpc://127.0.0.1:50051

The endpoint is a URL that speaks OpenAI's chat protocol; `grpc://HOST:PORT`, a running `telltale serve`; `local`, a
model in this process; or `tokens`, no model at all. The key for an endpoint is read from the environment. Killed or
stopped, the same command goes on where it was.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from tqdm import tqdm

from discovery.call_limits import Meter, Pace, SpendingLimits
from discovery.call_retries import Patience, on_stderr
from discovery.chat_endpoint import KEY_VARIABLE, ChatEndpoint, EndpointSettings, key_from_environment
from discovery.chat_model import ChatModel
from discovery.command_parser import command_parser
from discovery.errors import ExplainError
from discovery.example_split import ExampleSplit, SplitSettings
from discovery.example_store import ExampleStore
from discovery.explain_run import ExplainRun, Outcome, RunSettings
from discovery.explanation_book import ExplanationBook
from discovery.explanation_report import report
from discovery.latent_names import load_watchlist
from discovery.result_lines import claimed
from sae_runtime.checkpoint import load_manifest
from sae_runtime.language_model import EMBEDDED

LOCAL, TOKENS = "local", "tokens"


# --- which latents --------------------------------------------------------------------------------------------------


def chosen_latents(words: Iterable[str], store: ExampleStore, features: dict[str, int]) -> list[int]:
    """Latents named by `words`, each once, in the order asked for; ExplainError for a word that names none.

    A word is an index, a range (`0-99`), a feature's name, `named` (all of those), `all` (the most frequent first) or
    `random:N` (the same N at each run).
    """
    return list(dict.fromkeys(latent for word in words for latent in _latents_of(word, store, features)))


def _latents_of(word: str, store: ExampleStore, features: dict[str, int]) -> list[int]:
    first, dash, last = word.partition("-")
    if word == "all":
        return store.latents("num_active")
    if word == "named" and features:
        return list(features.values())
    if word in features:
        return [features[word]]
    if word.startswith("random:") and word[7:].isdecimal():
        latents = store.latents()
        return random.Random(0).sample(latents, min(int(word[7:]), len(latents)))
    if first.isdecimal() and (last.isdecimal() if dash else True):
        found = list(range(int(first), int(last or first) + 1))
        if found and found[-1] < store.num_latents:
            return found
    known = f", named or a feature ({', '.join(features)})" if features else ""
    raise ExplainError(f"latents must be 0 to {store.num_latents - 1}, a range, random:N, all{known}, got {word!r}")


# --- what is asked --------------------------------------------------------------------------------------------------


async def open_model(args: argparse.Namespace, meter: Meter, stack: AsyncExitStack) -> ChatModel | None:
    """The model of `--endpoint`; None for the token rule."""
    if args.endpoint == TOKENS:
        return None
    if args.endpoint == LOCAL:
        from discovery.local_chat import LocalChat  # late: an endpoint elsewhere needs no torch
        from sae_runtime.language_model import load_language_model

        return LocalChat(load_language_model(args.model or EMBEDDED, progress=True))
    pace = Pace(args.requests_per_minute, args.tokens_per_minute)
    if is_grpc(args.endpoint):
        return await stack.enter_async_context(open_server(args, pace, meter))
    if not args.endpoint.startswith(("http://", "https://")):
        raise ExplainError(
            f"--endpoint must be a URL (http, https, grpc, grpcs), `{LOCAL}` or `{TOKENS}`, got {args.endpoint!r}"
        )
    if not args.model:
        raise ExplainError("--model must name the endpoint's model, got nothing")
    settings = EndpointSettings(
        url=args.endpoint,
        model=args.model,
        key=key_from_environment(args.api_key_variable),
        key_variable=args.api_key_variable,
        timeout_seconds=args.timeout,
        max_attempts=args.attempts,
        temperature=args.temperature,
    )
    return await stack.enter_async_context(ChatEndpoint(settings, pace=pace, meter=meter, notice=on_stderr))


def is_grpc(endpoint: str) -> bool:
    """Whether it is a server of our own."""
    return endpoint.startswith(("grpc://", "grpcs://"))


def open_server(args: argparse.Namespace, pace: Pace, meter: Meter) -> AbstractAsyncContextManager[ChatModel]:
    """A running `telltale serve`. It has one model: `--model` says nothing new."""
    from discovery.grpc_chat import GrpcChat  # late: nobody else needs gRPC

    if args.model:
        raise ExplainError("--model must be left out: a server of our own has one model")
    return GrpcChat(
        args.endpoint,
        key=key_from_environment(args.api_key_variable),
        timeout_seconds=args.timeout,
        temperature=args.temperature,
        patience=Patience(args.attempts, notice=on_stderr),
        pace=pace,
        meter=meter,
    )


async def explain(args: argparse.Namespace, book: ExplanationBook, latents: list[int], meter: Meter) -> Outcome:
    """Do what is left of `latents`, showing progress on stderr."""
    settings = RunSettings(
        concurrency=1 if args.endpoint == LOCAL else args.concurrency,
        batch_size=args.batch_size,
        answer_tokens=args.answer_tokens,
        label_tokens=args.label_tokens,
        replace=args.replace,
        with_scores=not args.no_scores,
    )
    split = ExampleSplit(book.store, SplitSettings(args.shown, args.scored, args.seed))
    bar = tqdm(total=len(latents), desc="explaining", unit="latent", mininterval=1)

    def show(outcome: Outcome) -> None:
        bar.set_postfix(
            tokens=meter.used.total, cost=f"{meter.cost:.4g}", kept=outcome.kept, lost=len(outcome.lost), refresh=False
        )
        bar.update()

    async with AsyncExitStack() as stack:
        model = await open_model(args, meter, stack)
        with bar:
            return await ExplainRun(book, split, model, settings, on_done=show).run(latents)


# --- the command ----------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("Have a language model explain latents, and score what it says.")
    parser.add_argument("dictionary", type=Path, help="its folder")
    parser.add_argument("--store", type=Path, required=True, help="example file; explanations are written into it")
    parser.add_argument(
        "--endpoint", required=True, help=f"URL ending in /v1, grpc://HOST:PORT, `{LOCAL}` or `{TOKENS}`"
    )
    parser.add_argument("--model", help=f"the endpoint's name for it; with `{LOCAL}` a model to load ({EMBEDDED})")
    parser.add_argument(
        "--latents", nargs="+", default=["all"], help="indices, ranges, feature names, named, random:N or all (default)"
    )
    parser.add_argument(
        "--replace", action="store_true", help="also where another model has explained, or another --seed"
    )
    parser.add_argument("--no-scores", action="store_true", help="explain, and leave scoring to another run")
    parser.add_argument("--json", action="store_true", help="one JSON line for each latent, then one with the totals")
    scoring = parser.add_argument_group("examples and scores")
    scoring.add_argument("--shown", type=int, default=16, help="active windows that the explainer sees")
    scoring.add_argument("--scored", type=int, default=20, help="active windows held out, and as many silent ones")
    scoring.add_argument("--batch-size", type=int, default=5, help="questions to a prompt")
    scoring.add_argument("--seed", type=int, default=0, help="of the division into shown and held out")
    calls = parser.add_argument_group("calls")
    calls.add_argument("--api-key-variable", default=KEY_VARIABLE, help="environment variable with the key")
    calls.add_argument("--concurrency", type=int, default=4, help="latents at a time, each with one call")
    calls.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        help="seconds for an answer; doubled after silence",
    )
    calls.add_argument("--attempts", type=int, default=6, help="for each call")
    calls.add_argument("--temperature", type=float, default=0.0, help="of answers; 0: the likeliest token")
    calls.add_argument(
        "--answer-tokens",
        type=int,
        default=800,
        help="longest explanation; doubled if it is cut off",
    )
    calls.add_argument("--label-tokens", type=int, default=200, help="longest answer in scoring; the same")
    calls.add_argument("--requests-per-minute", type=int, help="default: no limit")
    calls.add_argument("--tokens-per-minute", type=int, help="default: no limit")
    calls.add_argument("--max-cost", type=float, help="of this run, in the currency of the prices")
    calls.add_argument("--price-prompt", type=float, default=0.0, help="of 1,000 prompt tokens")
    calls.add_argument("--price-completion", type=float, default=0.0, help="of 1,000 answered tokens")
    calls.add_argument("--max-tokens-total", type=int, help="of this run, prompts and answers together")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    limits = SpendingLimits(args.max_cost, args.max_tokens_total, args.price_prompt, args.price_completion)
    meter = Meter(limits)
    manifest = load_manifest(args.dictionary)
    watchlist = load_watchlist(args.dictionary, manifest)
    features = {feature.name: feature.index for feature in watchlist.features} if watchlist else {}
    with ExplanationBook(args.store, sae_sha256=manifest.sae_sha256) as book, claimed(args.store):
        latents = chosen_latents(args.latents, book.store, features)
        outcome = asyncio.run(explain(args, book, latents, meter))
        return report(book, latents, outcome, meter, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
