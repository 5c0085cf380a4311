"""`telltale lab`: the commands are there, load late, and fail in one line."""

import subprocess
import sys
from importlib import import_module

import pytest

from discovery import lab
from discovery.errors import HarvestError
from service import cli


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


def test_a_missing_library_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(lab.COMMANDS, "ghost", lab.Command("discovery_ghost", "not there"))
    assert cli.main(["lab", "ghost"]) == 1
    error = capsys.readouterr().err
    assert "discovery_ghost" in error
    assert "telltale-llm[discovery]" in error


def test_listing_the_commands_needs_no_torch():
    code = "import sys; from service import cli; cli.main(['lab', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
