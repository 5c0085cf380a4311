"""Pages that code, and other pages, send a reader to are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("sae_runtime", "monitors", "service", "discovery", "benchmarks", "deploy", "tests", "protos/telltale")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".proto"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def named_in(path, pattern):
    return set(re.findall(pattern, path.read_text(encoding="utf-8")))


def test_every_page_named_in_the_code_exists():
    named = {(path.name, page) for path in SOURCES for page in named_in(path, r"\bdocs/[\w./-]+\.md\b")}
    assert len(named) > 10
    assert {pair for pair in named if not (ROOT / pair[1]).is_file()} == set()


def test_every_page_linked_from_a_page_exists():
    linked = {(path, page) for path in PAGES for page in named_in(path, r"\]\(([\w./-]+\.md)[)#]")}
    assert len(linked) > 20
    assert {(path.name, page) for path, page in linked if not (path.parent / page).is_file()} == set()
