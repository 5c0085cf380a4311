"""output_places: what can't be written is refused before anything is computed, in the words that were given."""

import pytest
from as_another_user import as_another_user

from discovery.errors import LabError, PageError
from discovery.output_places import check_output, made_for
from discovery.page_site import check_site
from service import cli


def test_what_can_be_written_is_let_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.html").write_text("old")
    check_output("--report", None)
    for path in (tmp_path / "new.html", tmp_path / "old.html", tmp_path / "a" / "b" / "new.html"):
        check_output("--report", path)
        check_output("--report", path.relative_to(tmp_path))
    check_output("--output", tmp_path, is_folder=True)
    check_output("--output", tmp_path / "a" / "b", is_folder=True)
    check_site("--page", tmp_path / "a" / "pages")
    assert [path.name for path in tmp_path.iterdir()] == ["old.html"]
    made_for(tmp_path / "a" / "b" / "new.html").write_text("new")


def test_a_folder_is_no_file_nor_a_file_a_folder(tmp_path):
    (tmp_path / "text").write_text("")
    with pytest.raises(LabError, match=f"--report must be a file, got a folder: {tmp_path}"):
        check_output("--report", tmp_path)
    with pytest.raises(LabError, match=f"--output must be a folder, got a file: {tmp_path}/text"):
        check_output("--output", tmp_path / "text", is_folder=True)
    with pytest.raises(
        LabError, match=f"--report {tmp_path}/text/a/b.html can't be written: {tmp_path}/text is no fol"
    ):
        check_output("--report", tmp_path / "text" / "a" / "b.html")
    with pytest.raises(PageError, match=f"--page {tmp_path} must be a new folder or one of pages"):
        check_site("--page", tmp_path)


def refusal(path, is_folder, is_replaced):
    try:
        check_output("--output", path, is_folder=is_folder, is_replaced=is_replaced)
    except LabError as error:
        return str(error)
    return None


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    closed = tmp_path / "closed"
    (closed / "open").mkdir(parents=True)
    (closed / "open").chmod(0o777)
    closed.chmod(0o555)
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    try:
        said = as_another_user(refusal, closed / "a" / "b.html", False, False)
        assert said == (
            f"--output {closed}/a/b.html can't be written: {closed} is read-only, or not for this user to write to"
        )
        assert as_another_user(refusal, closed / "open", True, False) is None
        # Built beside the old one and renamed.
        assert f"{closed} is read-only" in as_another_user(refusal, closed / "open", True, True)
    finally:
        closed.chmod(0o755)


COMMANDS = {
    "chat-corpus": ["FILE"],
    "harvest": ["corpus.jsonl", "--output", "FOLDER"],
    "train": ["--source", "harvest", "--output", "FOLDER"],
    "tune": ["--source", "harvest", "--validation", "harvest", "--output", "FOLDER"],
    "evaluate": ["dictionary", "--set", "a=b", "--report", "FILE"],
    "import": ["dictionary", "--output", "FOLDER"],
    "export": ["dictionary", "FOLDER", "--format", "saelens"],
    "examples": ["dictionary", "--harvest", "harvest", "--output", "FILE"],
    "catalogue": ["dictionary", "--store", "a.sqlite", "--quote-sources", "a", "--output", "FILE"],
    "contrasts": ["corpus.jsonl", "--chat", "chat.jsonl", "--output", "FILE"],
    "pages": ["dictionary", "--output", "FOLDER"],
    "causal": ["dictionary", "--output", "FILE"],
    "steer": ["dictionary", "medical", "--output", "FILE"],
    "steer --page": ["dictionary", "medical", "--page", "FOLDER"],
    "monitor fit": ["a.jsonl", "--output", "FILE.pack.yaml"],
    "monitor combine": ["a.pack.yaml", "--rule", "min", "--output", "FILE.pack.yaml"],
    "monitor calibrate": ["a.pack.yaml", "--benign", "a.jsonl", "--output", "FILE"],
    "monitor evaluate": ["a.jsonl", "--monitor", "a", "--report", "FILE"],
    "monitor elicit": ["--output", "FILE"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_looks_at_its_place_before_its_inputs(command, tmp_path, capsys, monkeypatch):
    """None of the inputs is there either: what is refused first is the output, a path below a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("")
    name, *sub = command.removesuffix(" --page").split()
    words = [word.replace("FILE", "text/a").replace("FOLDER", "text/a") for word in COMMANDS[command]]
    assert cli.main(["lab", name, *sub, *words]) == 1
    said = capsys.readouterr().err
    assert "text/a" in said and "can't be written" in said and "text is no folder" in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
