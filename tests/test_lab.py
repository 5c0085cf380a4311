"""`telltale lab`: the commands are there, load late, and fail in one line."""

import argparse
import errno
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from rich.table import Table

from discovery import lab, monitor_lab
from discovery.command_parser import default_words
from discovery.errors import HarvestError
from discovery.tables import table_console
from discovery.train import recipe_help
from discovery.train_settings import TrainSettings, defaults_for
from sae_runtime.sae import ACTIVATIONS
from service import cli
from service.cli_terminal import Terminal


@pytest.mark.parametrize("name", lab.COMMANDS)
def test_every_command_is_a_module_with_a_help(name, capsys):
    assert callable(import_module(lab.COMMANDS[name].module).main)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["lab", name, "--help"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: telltale lab {name} ")


@pytest.mark.parametrize("argv", [["--help"], ["-h"]])
def test_the_list_of_commands_goes_to_stdout(argv, capsys):
    assert cli.main(["lab", *argv]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and command.help in out for name, command in lab.COMMANDS.items())


class Parsed(Exception):
    """Raised in place of parsing, with the parser."""


def parsers(monkeypatch):
    """The parser of every command."""

    def stop(self, *_args, **_kwargs):
        raise Parsed(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for name, command in (lab.COMMANDS | monitor_lab.COMMANDS).items():
        with pytest.raises(Parsed) as caught:
            import_module(command.module).main([])
        yield name, caught.value.args[0]


def test_every_option_has_a_help_with_its_default(monkeypatch):
    num_defaults = 0
    for name, parser in parsers(monkeypatch):
        for action in parser._actions:
            assert (action.help or "").strip(), f"{name} {action.option_strings or action.dest} has no help"
            shown = " ".join(parser._get_formatter()._expand_help(action).split())
            if action.option_strings and default_words(action.default):
                num_defaults += 1
                assert "default" in shown, f"{name} {action.option_strings}: {shown}"
    assert num_defaults > 150


def test_the_helps_default_is_the_one_that_holds(monkeypatch):
    shown = {name: parser.format_help() for name, parser in parsers(monkeypatch)}
    helps = {name: " ".join(text.split()) for name, text in shown.items()}
    assert "--held-out-share HELD_OUT_SHARE of documents, by a hash of their text; default 0.02" in helps["harvest"]
    assert "layers.N.output or layers.N.input; default layers.15.output" in helps["harvest"]
    assert "which documents are read; default train" in helps["harvest"]
    assert "which documents are read; default all" in helps["examples"]
    assert "so many, at each report; default 16384" in helps["tune"]
    for name, value in asdict(TrainSettings()).items():
        assert f"--{name.replace('_', '-')}" in helps["train"]
        defaults = {default_words(getattr(defaults_for(activation), name)) for activation in ACTIVATIONS}
        if name not in ("activation", "l0_target", "precision"):  # what they depend on stands there in words
            assert all(re.search(rf"default .*\b{re.escape(default)}\b", recipe_help(name)) for default in defaults)
        assert default_words(value) in recipe_help(name) or name == "l0_target"
    assert recipe_help("learning_rate").endswith("default 0.001 (relu topk batchtopk), 0.003 (jumprelu gated)")


def test_no_command_is_wrong_usage(capsys):
    assert cli.main(["lab"]) == 2
    assert "usage: telltale lab COMMAND" in capsys.readouterr().err


def test_an_unknown_command_names_those_there_are(capsys):
    assert cli.main(["lab", "harvset"]) == 2
    error = capsys.readouterr().err
    assert "'harvset'" in error
    assert "harvest" in error


def test_a_known_failure_is_one_line(capsys, monkeypatch):
    def fail(_argv):
        raise HarvestError("there is nothing to harvest")

    monkeypatch.setattr(import_module("discovery.harvest"), "main", fail)
    assert cli.main(["lab", "harvest"]) == 1
    assert capsys.readouterr().err == "telltale lab harvest: there is nothing to harvest\n"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore"), MemoryError()]
)
def test_a_lack_of_memory_is_one_line_with_the_way_out(error, capsys, monkeypatch):
    def fail(_argv):
        raise error

    monkeypatch.setattr(import_module("discovery.harvest"), "main", fail)
    assert cli.main(["lab", "harvest"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "out of memory" in said and said.endswith("smaller batches take less\n")


def test_what_torch_cant_allocate_without_a_card_is_that_too(capsys, monkeypatch):
    monkeypatch.setattr(import_module("discovery.harvest"), "main", lambda _argv: torch.empty(10**14))
    assert cli.main(["lab", "harvest"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "out of memory: " in said and "can't allocate memory" in said
    assert said.endswith("; smaller batches take less\n")


def test_any_other_error_of_torch_is_not_taken_for_it(monkeypatch):
    def fail(_argv):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(import_module("discovery.harvest"), "main", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["lab", "harvest"])


@pytest.mark.parametrize(("command", "goes_on"), [("chat-corpus", True), ("search", False)])
def test_a_full_disk_is_named_with_the_way_on(command, goes_on, capsys, monkeypatch):
    def fail(_argv):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "chat.jsonl")

    monkeypatch.setattr(import_module(lab.COMMANDS[command].module), "main", fail)
    assert cli.main(["lab", command]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"telltale lab {command}: chat.jsonl: No space left on device")
    assert said.endswith("; what was written before is kept, and the same command goes on\n") == goes_on


def missing(name, capsys, monkeypatch):
    """What is said of a command that needs the module."""

    def fail(_argv):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(import_module("discovery.harvest"), "main", fail)
    assert cli.main(["lab", "harvest"]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "extra"),
    [("lightning", "discovery"), ("ray", "ray"), ("ray.tune", "ray"), ("bitsandbytes", "gpu"), ("umap", "discovery")],
)
def test_a_missing_library_names_its_extra(capsys, monkeypatch, name, extra):
    top = name.partition(".")[0]
    assert missing(name, capsys, monkeypatch) == (
        f"telltale lab harvest: the library {top} is not installed: run `pip install 'telltale-llm[{extra}]'`\n"
    )


def test_a_missing_module_of_no_extra_gets_no_false_hint(capsys, monkeypatch):
    assert missing("ghost", capsys, monkeypatch) == "telltale lab harvest: the library ghost is not installed\n"
    monkeypatch.setitem(lab.COMMANDS, "ghost", lab.Command("discovery_ghost", "not there"))
    assert cli.main(["lab", "ghost"]) == 1
    assert capsys.readouterr().err == "telltale lab ghost: the library discovery_ghost is not installed\n"


def test_every_library_of_an_extra_is_known_by_its_module():
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    modules = packages_distributions()
    for extra in ("discovery", "ray", "gpu"):
        for requirement in extras["optional-dependencies"][extra]:
            library = re.split(r"[\[<>=]", requirement)[0]
            mine = {module for module, names in modules.items() if library in map(str.lower, names)}
            assert {lab.EXTRAS.get(module) for module in mine} >= {extra}, library


def test_listing_the_commands_needs_no_torch():
    code = "import sys; from service import cli; cli.main(['lab', '--help']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.endswith("False\n") and "harvest" in result.stdout


def test_the_systems_errors_name_the_file_and_the_reason(capsys, monkeypatch):
    def fail(_argv):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "ro/harvest")

    monkeypatch.setattr(import_module("discovery.harvest"), "main", fail)
    assert cli.main(["lab", "harvest"]) == 1
    assert capsys.readouterr().err == "telltale lab harvest: ro/harvest: Read-only file system\n"


def test_tables_in_a_file_keep_their_columns(capsys, monkeypatch):
    """80 columns, which rich assumes, are too few for them."""
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table(*(f"column {number:02d}" for number in range(10)))
    table.add_row(*(f"{number:.8f}" for number in range(10)))
    table_console().print(table)
    Terminal().show(table)
    shown = capsys.readouterr().out
    assert shown.count("9.00000000") == 2 and "…" not in shown


def test_tables_in_a_pipe_are_as_wide_as_columns_says(capsys, monkeypatch):
    table = Table("word")
    table.add_row("a" * 200)
    for columns, is_whole in (("220", True), ("90", False), ("wide", False)):
        monkeypatch.setenv("COLUMNS", columns)
        for show in (table_console().print, Terminal().show):
            show(table)
            shown = capsys.readouterr().out
            assert ("a" * 200 in shown) == is_whole
            assert max(map(len, shown.splitlines())) == {"220": 204, "90": 90, "wide": 150}[columns]
