"""The catalogue file: what is written is read, the same input gives the same bytes, and what is damaged is refused."""

import sqlite3
import subprocess
import sys
import threading

import pytest
import tiny_catalogue

from monitors.errors import CatalogueError
from monitors.latent_catalogue import LatentCatalogue, content_sha256
from monitors.latent_entry import SILENT, Score
from monitors.latent_words import entry_words, word_weights


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_catalogue.write(tmp_path_factory.mktemp("catalogue") / "catalogue.sqlite")


@pytest.fixture
def catalogue(path):
    opened = LatentCatalogue.open(path)
    yield opened
    opened.close()


def test_what_was_written_is_read(catalogue):
    rows = tiny_catalogue.rows()
    assert len(catalogue.figures) == len(rows) == tiny_catalogue.NUM_LATENTS
    for latent, row in enumerate(rows):
        assert catalogue.entry(latent) == row.entry
        assert (catalogue.head(latent).said, catalogue.head(latent).mean_active) == (
            row.entry.said,
            row.entry.mean_active,
        )
        figures = catalogue.figures[latent]
        assert (figures.num_active, figures.max, figures.detection) == (row.num_active, row.max, row.detection)
    assert catalogue.entry(tiny_catalogue.SILENT_LATENTS[0]) == SILENT
    assert catalogue.num_tokens == tiny_catalogue.NUM_TOKENS
    assert catalogue.histogram_edges == tiny_catalogue.EDGES


def test_words_find_what_a_scan_of_all_entries_finds(catalogue):
    weights = [word_weights(entry_words(row.entry)) for row in tiny_catalogue.rows()]
    words = {word for of_latent in weights for word in of_latent}
    assert {"whale", "cafe", "ship", "river"} <= words
    for word in [*words, "nothing"]:
        wanted = {latent: of_latent[word] for latent, of_latent in enumerate(weights) if word in of_latent}
        assert catalogue.latents_with(word) == wanted


def test_orders_are_those_of_a_sort(catalogue):
    rows = tiny_catalogue.rows()
    latents = range(len(rows))
    assert list(catalogue.ordered("index")) == list(latents)
    assert catalogue.ordered("density") == sorted(latents, key=lambda i: (-rows[i].num_active, i))
    assert catalogue.ordered("max_reading") == sorted(latents, key=lambda i: (-rows[i].max, i))
    scored = [i for i in latents if rows[i].detection is not None]
    unscored = [i for i in latents if rows[i].detection is None]
    assert catalogue.ordered("detection") == [
        *sorted(scored, key=lambda i: (-rows[i].detection.lower_bound, i)),
        *unscored,
    ]


def test_a_latent_that_is_not_there_is_refused(catalogue):
    for latent in (-1, tiny_catalogue.NUM_LATENTS):
        with pytest.raises(IndexError, match=rf"0\.\.63, got {latent}"):
            catalogue.entry(latent)


def test_the_same_input_gives_the_same_bytes(path, tmp_path):
    assert tiny_catalogue.write(tmp_path / "again").read_bytes() == path.read_bytes()
    other = tiny_catalogue.write(tmp_path / "other", tiny_catalogue.rows(seed=1))
    assert other.read_bytes() != path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again", "other"]


def test_only_its_own_dictionary_may_have_it(catalogue):
    catalogue.check_binding("0" * 64, tiny_catalogue.NUM_LATENTS)
    with pytest.raises(CatalogueError, match=r"sae_sha256: wanted 'f{64}', the dictionary's, got '0{64}'"):
        catalogue.check_binding("f" * 64, tiny_catalogue.NUM_LATENTS)
    with pytest.raises(CatalogueError, match="num_latents: wanted 65"):
        catalogue.check_binding("0" * 64, tiny_catalogue.NUM_LATENTS + 1)


def change(source, target, statement):
    target.write_bytes(source.read_bytes())
    connection = sqlite3.connect(target)
    with connection:
        connection.execute(statement)
    connection.close()
    return target


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE manifest SET value = '2' WHERE key = 'format_version'", "format_version: wanted 1, got 2"),
        ("DELETE FROM manifest WHERE key = 'format_version'", "format_version: wanted 1, got None"),
        ("UPDATE manifest SET value = '{' WHERE key = 'sources'", "file: wanted a latent catalogue, got JSON"),
        ("UPDATE latents SET max = max + 1 WHERE latent = 3", "content_sha256"),
        ("UPDATE latents SET entry = x'00' WHERE latent = 3", "content_sha256"),
        ("DELETE FROM words WHERE word = 'whale'", "content_sha256"),
        ("DROP TABLE words", "file: wanted a latent catalogue, got OperationalError: no such table: words"),
    ],
)
def test_a_changed_file_is_refused(path, tmp_path, statement, problem):
    changed = change(path, tmp_path / "changed", statement)
    with pytest.raises(CatalogueError) as refused:
        LatentCatalogue.open(changed)
    assert f"cannot use latent catalogue {changed}:\n{problem}" in str(refused.value)


@pytest.mark.parametrize(
    ("statement", "got"),
    [
        ("DELETE FROM latents WHERE latent = 63", "63 of 64, 0 to 62"),
        ("UPDATE latents SET latent = 64 WHERE latent = 63", "64 of 64, 0 to 64"),
        ("DELETE FROM latents", "0 of 64, None to None"),
        ("UPDATE manifest SET value = 'null' WHERE key = 'num_latents'", "64 of None, 0 to 63"),
    ],
)
def test_a_file_that_lacks_latents_is_refused_whoever_made_it(path, tmp_path, statement, got):
    changed = change(path, tmp_path / "changed", statement)
    connection = sqlite3.connect(changed)
    with connection:  # as its writer would have it
        digest = (f'"{content_sha256(connection)}"',)
        connection.execute("UPDATE manifest SET value = ? WHERE key = 'content_sha256'", digest)
    connection.close()
    with pytest.raises(CatalogueError, match="latents: wanted a row for each of num_latents, from 0 on, got " + got):
        LatentCatalogue.open(changed)


def test_foreign_files_are_refused(tmp_path, path):
    (tmp_path / "text").write_text("no database, but long enough to be taken for one" * 100)
    (tmp_path / "empty").touch()
    (tmp_path / "half").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name in ("text", "empty", "half"):
        with pytest.raises(CatalogueError, match=f"cannot use latent catalogue .*{name}"):
            LatentCatalogue.open(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        LatentCatalogue.open(tmp_path / "none")


def test_threads_and_other_processes_read_at_once(path, catalogue):
    reader = (
        "import sys; from pathlib import Path; from monitors.latent_catalogue import LatentCatalogue;"
        "c = LatentCatalogue.open(Path(sys.argv[1])); print(c.entry(1).mean_active, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", reader, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert float(other.stdout.readline()) == catalogue.entry(1).mean_active, "it has the file open"
        rows, failures = tiny_catalogue.rows(), []

        def read(first):
            for latent in [*range(first, tiny_catalogue.NUM_LATENTS), *range(first)]:
                if catalogue.entry(latent) != rows[latent].entry or not catalogue.latents_with("whale"):
                    failures.append(latent)

        threads = [threading.Thread(target=read, args=(8 * number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other.stdin.close()
    assert failures == [] and other.returncode == 0


def test_nothing_is_written_beside_it_even_in_a_read_only_folder(path):
    path.parent.chmod(0o500)
    try:
        opened = LatentCatalogue.open(path)
        assert opened.latents_with("whale")
        opened.close()
    finally:
        path.parent.chmod(0o700)
    assert [file.name for file in path.parent.iterdir()] == ["catalogue.sqlite"]


def test_few_windows_do_not_come_first():
    """Wilson's interval, where it can be worked out by hand."""
    assert Score(1.0, 4).lower_bound < Score(0.95, 40).lower_bound < 0.95
    assert Score(1.0, 5).lower_bound == pytest.approx(5 / (5 + 1.96**2))
    assert Score(0.0, 5).lower_bound == pytest.approx(0.0)
    assert Score(0.8, 10**9).lower_bound == pytest.approx(0.8, abs=1e-4)
