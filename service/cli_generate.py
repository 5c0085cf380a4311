"""`telltale generate` and `telltale chat`: replies with their readings."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from contextlib import aclosing

from service.cli_options import (
    add_connection_flags,
    add_generation_flags,
    add_output_flags,
    add_read_flags,
    connect,
    generate_options,
)
from service.cli_terminal import ReplyView, Terminal
from service.client import TelltaleClient
from service.client_events import Token
from service.client_request import GenerateOptions, Message, Prompt
from service.errors import ServiceError
from service.rendering import sanitize

HELP = "Commands: /reset forgets the conversation, /quit ends it, as does Ctrl-D. Ctrl-C ends a reply."


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands."""
    generate = commands.add_parser("generate", help="go on from a text", allow_abbrev=False)
    generate.add_argument("prompt", metavar="PROMPT", help="the text, or - for standard input")
    chat = commands.add_parser("chat", help="talk, through the model's chat template", allow_abbrev=False)
    chat.add_argument("--message", metavar="TEXT", help="send this one message, show the reply, and end")
    chat.add_argument("--system", metavar="TEXT", help="system message to begin with")
    generate.add_argument(
        "--baseline", action="store_true", help="with --steer: generate the same unsteered beside it, and compare"
    )
    for parser, run in ((generate, run_generate), (chat, run_chat)):
        parser.set_defaults(run=run)
        for add in (add_read_flags, add_generation_flags, add_output_flags, add_connection_flags):
            add(parser)


async def run_generate(args: argparse.Namespace) -> int:
    """Go on from one text."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    async with connect(args) as client:
        options = await generate_options(args, client)
        if args.baseline:
            options["baseline"] = True
        await _Talk(args, client, options).reply(prompt)
    return 0


async def run_chat(args: argparse.Namespace) -> int:
    """One message, or a conversation until the input ends."""
    messages = [Message("system", args.system)] if args.system is not None else []
    async with connect(args) as client:
        talk = _Talk(args, client, await generate_options(args, client))
        if args.message is not None:
            await talk.reply([*messages, Message("user", args.message)])
        else:
            await _converse(talk, messages)
    return 0


class _Talk:
    """Sends prompts and shows replies, the same way each time."""

    def __init__(self, args: argparse.Namespace, client: TelltaleClient, options: GenerateOptions) -> None:
        self.terminal = Terminal(args.color)
        self._client = client
        self._options = options
        self._as_json = args.json

    async def reply(self, prompt: Prompt) -> str:
        """Show the reply while it comes; return its text."""
        return await (self._reply_json(prompt) if self._as_json else self._reply_text(prompt))

    async def _reply_text(self, prompt: Prompt) -> str:
        view, parts = ReplyView(self.terminal), []
        try:
            async with aclosing(self._client.generate(prompt, **self._options)) as events:
                async for event in events:
                    view.show(event)
                    if isinstance(event, Token) and not event.is_prompt:
                        parts.append(event.text)
        finally:
            self.terminal.end_line()
        return "".join(parts)

    async def _reply_json(self, prompt: Prompt) -> str:
        request, parts = await self._client.generate_request(prompt, **self._options), []
        responses = self._client.stream(request, timeout_seconds=self._options.get("timeout_seconds"))
        async with aclosing(responses):
            async for response in responses:
                self.terminal.json(response)
                parts += [token.text for token in response.tokens.tokens if not token.is_prompt]
        return "".join(parts)


async def _converse(talk: _Talk, system: list[Message]) -> None:
    messages = list(system)
    if sys.stdin.isatty():
        talk.terminal.note(HELP)
    while (line := _read_line()) is not None and line != "/quit":
        if line == "/reset":
            messages = list(system)
        elif line:
            messages.append(Message("user", line))
            reply = await _interruptible_reply(talk, messages)
            # What got no answer is forgotten: two user messages in a row would confuse the chat template.
            messages = [*messages, Message("assistant", reply)] if reply is not None else messages[:-1]


async def _interruptible_reply(talk: _Talk, messages: list[Message]) -> str | None:
    """A reply that Ctrl-C ends without ending the conversation; None if it failed or was ended."""
    task = asyncio.ensure_future(talk.reply(messages))
    loop = asyncio.get_running_loop()
    previous = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if not task.cancelled():  # somebody cancelled us, not the reply
            raise
    except ServiceError as error:
        talk.terminal.note(f"telltale: {sanitize(str(error))}")
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, previous)
    return None


def _read_line() -> str | None:
    """The next line typed, stripped; None at the end. Blocks the event loop, which has nothing to do meanwhile."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    with _plain_ctrl_c():
        try:
            return input("> ").strip()
        except EOFError:
            sys.stdout.write("\n")  # Ctrl-D leaves the cursor behind the prompt
            return None


@contextlib.contextmanager
def _plain_ctrl_c() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt at once: asyncio's own handler would wait for the input to end."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
