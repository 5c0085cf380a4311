"""The argument parser of every command: its help says of each option what holds where it is not given."""

import argparse


class HelpWithDefaults(argparse.HelpFormatter):
    """Adds an option's default to its help, unless the words already say what the default is."""

    # Its only hook for that, private though the name looks: argparse's own ArgumentDefaultsHelpFormatter overrides it.
    def _get_help_string(self, action: argparse.Action) -> str:
        words, shown = action.help or "", default_words(action.default)
        return words if not shown or "default" in words else f"{words}; default {shown}".replace("%", "%%")


def default_words(default: object) -> str:
    """A default as it would be typed; empty for none: nothing, a switch, a list without members."""
    if default is None or isinstance(default, bool) or default == argparse.SUPPRESS:
        return ""
    if isinstance(default, list | tuple):
        return ",".join(map(default_words, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def command_parser(description: str) -> argparse.ArgumentParser:
    """A parser without arguments as yet."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpWithDefaults)
