"""YAML read strictly: the parser in C, where it is installed, gives what the one in Python gives."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from monitors import strict_files
from monitors.errors import MonitorError
from monitors.strict_files import MAX_DEPTH, read_yaml
from service.monitor_packs import SHIPPED_PACKS

PACKS = sorted(SHIPPED_PACKS.glob("*/*.pack.yaml"))
ODD = [
    "name: [",
    "name: a\nname: b\n",
    "name: {a: 1, a: 2}\n",
    "name: &x a\nkind: *x\n",
    "name: &x [1]\n",
    "kind: *x\n",
    "1: a\n",
    "? [a, b]\n: c\n",
    "name: !!python/object:os.system {}\n",
    "name: 2026-01-01\n",
    "name: \x00\n",
    "name: 'a\n",
    'name: "\\q"\n',
    "a: b: c\n",
    "\tname: a\n",
    "---\na: 1\n---\nb: 2\n",
    "%YAML 3.0\n---\na: 1\n",
    "<<: {a: 1}\nb: 2\n",
    "a: 1\t\n",
    "a:\t1\n",
    "a: {b: 1,\tc: 2}\n",
    "a: [x?]\n",
    "a: |#\n  x\n",
    "- " * (MAX_DEPTH + 1),
]
EVEN = [
    "",
    "~",
    "a: .nan\nb: 1e3\nc: 1.5e+3\nd: 0x10\ne: 010\nf: 1_000\ng: yes\nh: !!str 1\ni: '1'\nj: null\n",
    'a: |\n  one\n   two\n\nb: >-\n  one\n  two\nc: "\\u00e9 \\\n  x"\n',
    "\ufeffa: é\n",
    "a: !\n",
    "a: ! 12\n",
    "a: '\t'\n",
    "a: {b: [1, x], c: []}\n",
    "- " * MAX_DEPTH,
]
PIECES = [
    *"ab1é'\":,?!|>#-{}[]%@`~\\=+.0 \n\t\r\u2028",
    *["  ", "\n ", "\n  ", ": ", "- ", "? ", " #", ", ", "!!str ", "&a ", "*a", "\n---\n", "\n...\n", "\nb: ", "<<: "],
]
COMMON = [piece for piece in PIECES if piece not in "!|>\t\r\u2028"]
"""Without what the parser in C is not asked about at all."""


def answer(text: bytes) -> object:
    """The value, NaN made comparable, or every problem in words."""
    try:
        return repr(read_yaml(text))
    except MonitorError as error:
        return error.problems


@pytest.fixture
def in_python(monkeypatch):
    """As where PyYAML came without libyaml."""
    monkeypatch.setattr(strict_files, "LOADERS", strict_files.LOADERS[-1:])
    assert not issubclass(strict_files.LOADERS[0], getattr(yaml, "CSafeLoader", ()))


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML came without libyaml")
def test_both_parsers_read_the_shipped_packs_alike(request):
    assert issubclass(strict_files.LOADERS[0], yaml.CSafeLoader)
    assert len(PACKS) > 5
    values = [read_yaml(path.read_bytes()) for path in PACKS]
    request.getfixturevalue("in_python")
    assert values == [read_yaml(path.read_bytes()) for path in PACKS]


@pytest.mark.parametrize("text", [*ODD, *EVEN])
def test_both_parsers_answer_alike(text, request):
    found = answer(text.encode())
    request.getfixturevalue("in_python")
    assert found == answer(text.encode())
    assert isinstance(found, str) == (text in EVEN)


@pytest.mark.parametrize("pieces", [PIECES, COMMON], ids=["all", "common"])
def test_both_parsers_answer_alike_whatever_the_text(pieces, request):
    rng = random.Random(7)
    texts = []
    for _ in range(4000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, rng.choice([4, 8, 16]))))
        before, after = rng.choice([("", ""), ("a: ", "\n"), ("- ", "\nc: d\n"), ("- [", "]\n"), ("a: {b: ", "}\n")])
        texts.append(before + text + after)
    found = [answer(text.encode()) for text in texts]
    request.getfixturevalue("in_python")
    unlike = [text for text, one in zip(texts, found, strict=True) if one != answer(text.encode())]
    assert unlike == []
    assert sum(isinstance(one, str) for one in found) > 500  # or both would merely refuse


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML came without libyaml")
@pytest.mark.parametrize("path", PACKS, ids=lambda path: path.stem)
def test_what_we_write_is_parsed_in_c(path):
    """It refuses whatever parsers differ in; a pack that it refused would take five times as long."""
    assert yaml.load(path.read_bytes(), strict_files.LOADERS[0])["name"]


def test_it_does_without_the_parser_in_c():
    """As PyYAML's source builds without libyaml's headers: the module is not there at all."""
    code = (
        "import sys; sys.modules['yaml._yaml'] = None\n"
        "import yaml; from monitors import strict_files\n"
        "assert not yaml.__with_libyaml__ and len(strict_files.LOADERS) == 1\n"
        "print(strict_files.read_yaml(b'a: 1'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{'a': 1}\n", "")
