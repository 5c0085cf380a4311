"""`telltale lab`: the offline half's commands, one module each.

A command is imported only when it is asked for: `telltale lab --help` needs no torch. Each module's `main(argv)` parses
its own flags, which `telltale lab COMMAND --help` lists, and `python -m discovery.MODULE` is the same thing.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from discovery.errors import LabError

EXTRAS = {
    **dict.fromkeys(("datasets", "httpx", "jinja2", "lightning", "plotly"), "discovery"),
    **dict.fromkeys(("scipy", "sklearn", "tenacity", "tensorboard", "umap"), "discovery"),
    "ray": "ray",
    "bitsandbytes": "gpu",
}
"""Libraries that an extra of ours installs, by the name they are imported by."""

EXIT_FAILED = 1
EXIT_USAGE = 2


class Command(NamedTuple):
    """A command's module and what `--help` says of it."""

    module: str
    help: str
    goes_on: bool = False
    """Whether the same words go on with a run that ended early."""


COMMANDS = {
    "chat-corpus": Command("discovery.chat_corpus", "let the model write conversations to train on", goes_on=True),
    "harvest": Command("discovery.harvest", "write the residuals at a hook point to disk", goes_on=True),
    "train": Command(
        "discovery.train", "train a dictionary on harvested residuals or straight from a model", goes_on=True
    ),
    "tune": Command("discovery.tune", "search over recipes with Ray Tune, on one machine or a cluster", goes_on=True),
    "evaluate": Command("discovery.evaluate", "held-out figures of a dictionary"),
    "fidelity": Command("discovery.fidelity", "compare a dictionary's readings on two quantisations of a model"),
    "import": Command("discovery.import_sae", "read a dictionary in another library's format"),
    "export": Command("discovery.export_sae", "write a dictionary in another library's format"),
    "examples": Command("discovery.examples", "collect top examples of every latent in one pass", goes_on=True),
    "latent": Command("discovery.latent_view", "show one latent of an example file"),
    "search": Command("discovery.search", "find latents by contrast, text, direction or sentence"),
    "explain": Command(
        "discovery.explain", "have a language model say what latents are about, and score it", goes_on=True
    ),
    "catalogue": Command("discovery.catalogue", "ship what is known of every latent in one small file"),
    "pages": Command("discovery.pages", "write pages about a dictionary's latents, to open in a browser"),
    "steer": Command(
        "discovery.steering_study", "steer along a feature at a grid of strengths, and measure the texts", goes_on=True
    ),
    "causal": Command("discovery.causal_test", "test whether named features do what their names say", goes_on=True),
    "monitor": Command("discovery.monitor_lab", "make monitors, and say what they are worth"),
    "contrasts": Command("discovery.contrasts", "build labelled contrasts out of a corpus and chat"),
    "name": Command("discovery.name_features", "measure chosen latents and write a feature file"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong usage raises SystemExit(2), as argparse does."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in ("", "-h", "--help"):
        print(usage(), file=sys.stderr if not name else sys.stdout)
        return 0 if name else EXIT_USAGE
    if name not in COMMANDS:
        print(f"telltale lab: the command must be one of {', '.join(COMMANDS)}, got {name!r}", file=sys.stderr)
        return EXIT_USAGE
    return run(name, rest[:-1])


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # Without a card torch raises a plain RuntimeError, and its allocator's name is all that tells it from others.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def run(name: str, argv: list[str]) -> int:
    """Run command `name`. What goes wrong in a known way ends as a line on stderr and an exit code."""
    program, sys.argv[0] = sys.argv[0], f"telltale lab {name}"  # what argparse calls the program in its messages
    try:
        module = import_module(COMMANDS[name].module)
        from sae_runtime.errors import RuntimeFault  # late, like the command: it imports torch's side of the project

        try:
            return int(module.main(argv))
        except (LabError, RuntimeFault, ValueError, OSError) as error:
            print(f"telltale lab {name}: {_words(error)}{_way_on(name, error)}", file=sys.stderr)
            return EXIT_FAILED
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or "no memory is left"
            print(f"telltale lab {name}: out of memory: {reason}; smaller batches take less", file=sys.stderr)
            return EXIT_FAILED
    except ModuleNotFoundError as error:
        library = (error.name or str(error)).partition(".")[0]
        # Of anything else we don't know what brings it.
        hint = f": run `pip install 'telltale-llm[{EXTRAS[library]}]'`" if library in EXTRAS else ""
        print(f"telltale lab {name}: the library {library} is not installed{hint}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        sys.argv[0] = program


def _words(error: Exception) -> str:
    """What went wrong. Of the system's own errors: the file and the reason, without the number."""
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str):
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _way_on(name: str, error: Exception) -> str:
    """What to do about a full disk. Where a module has caught it, its own message says so."""
    from sae_runtime.whole_files import FAULTS_OF_DISKS

    if COMMANDS[name].goes_on and isinstance(error, OSError) and error.errno in FAULTS_OF_DISKS:
        return "; what was written before is kept, and the same command goes on"
    return ""


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: telltale lab COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "`telltale lab COMMAND --help` lists a command's options.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
