"""`telltale lab monitor`: the commands that make a monitor and say what it is worth, one module each.

fit         labelled conversations -> a frozen monitor, NAME.pack.yaml
combine     several frozen monitors -> one, under a rule
calibrate   benign replies -> its thresholds
evaluate    labelled conversations -> what it reaches, beside baselines
elicit      a running server -> labelled conversations: its lies, truths and mistakes, or benign replies
"""

import argparse
import sys
from importlib import import_module

from discovery.lab import Command

COMMANDS = {
    "fit": Command("discovery.monitor_fit", "fit a monitor on labelled conversations, and freeze it"),
    "combine": Command("discovery.monitor_combine", "make one monitor of several frozen ones, under a rule"),
    "calibrate": Command("discovery.monitor_calibrate", "set a frozen monitor's thresholds by benign replies"),
    "evaluate": Command("discovery.monitor_evaluate", "measure a monitor on labelled conversations, beside baselines"),
    "elicit": Command(
        "discovery.elicit", "have the served model answer under many instructions, and label what it says"
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Wrong usage raises SystemExit(2), as argparse does."""
    lines = "\n".join(f"  {name:<10} {command.help}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        description="Make monitors, and say what they are worth.",
        epilog=f"commands:\n{lines}\n\n`telltale lab monitor COMMAND --help` lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the command")
    args = parser.parse_args(argv)
    program = sys.argv[0]
    sys.argv[0] = f"{program} {args.command}" if program.endswith(" monitor") else program
    try:
        return int(import_module(COMMANDS[args.command].module).main(args.options))
    finally:
        sys.argv[0] = program


if __name__ == "__main__":
    sys.exit(main())
