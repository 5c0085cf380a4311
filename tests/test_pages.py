"""pages: what they say is what the file holds, in a real browser too, and no text of theirs becomes markup."""

import html
import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_examples
import torch
from browser import needs_browser, open_page
from full_disk import room_for

from discovery import lab
from discovery.decoder_map import decoder_map
from discovery.errors import PageError
from discovery.example_store import ExampleStore
from discovery.latent_names import load_names
from discovery.latent_record import Example, Explanation
from discovery.page_site import MARKER, Site, SiteFacts
from discovery.page_views import example_view, histogram_view, level_of, percentage
from discovery.pages import Extras, Subject, choose_latents, overview, write_pages
from discovery.result_views import read_result, result_view
from discovery.training_log import read_log, running_mean
from monitors.watchlist import NamedFeature, Watchlist
from sae_runtime.checkpoint import load_sae
from service import cli

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
NAMED, EXPLAINED = 3, 9
LOG = "step,variance_explained,l0,comment\n" + "".join(f"{n},{n / 100},{60 + n % 3},x\n" for n in range(0, 50, 5))
EVIDENCE = {
    "method": "a contrast",
    "auroc_heldout": 0.66,
    "fires_wrongly_on": [EVIL],
    "transfer": {"other": {"auroc": 0.5, "num_positive": 3, "num_negative": 4}},
    "causal": {
        "ablation": {"positions": 2, "passed": False, "reason": EVIL},
        "pinning": {"mean": 0.25, "low": 0.125, "high": 0.375, "control_p95": 0.5, "passed": False},
        "passed": False,
    },
    "steering": [{"prompt": "Hello", "strength": 4.0, "plain": "plain words", "steered": EVIL}],
}


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Example file with explanations, feature file, log and search results."""
    folder = tmp_path_factory.mktemp("pages")
    with ExampleStore.open(tiny_examples.write_example_file(model, folder), writable=True) as store:
        store.save(
            Explanation(EXPLAINED, f"sea voyages {EVIL}", EVIL, dominant_tokens=(EVIL,), detection=0.8, detection_n=40)
        )
    feature = NamedFeature(
        index=NAMED,
        name="lying",
        description=EVIL,
        reference_scale=1.5,
        validated=False,
        default_watched=False,
        evidence=EVIDENCE,
    )
    sha = load_sae(folder / "dictionary").manifest.sae_sha256
    Watchlist(sha, (feature,)).save(folder / "dictionary" / "features.json")
    (folder / "log.csv").write_text(LOG)
    found = [{"latent": NAMED, "cosine": 0.5}, {"latent": 20, "cosine": 0.25}]
    (folder / "like.json").write_text(json.dumps({"like": EVIL, "latents": found}))
    return folder


@pytest.fixture
def subject(folder):
    with ExampleStore.open(folder / "examples.sqlite") as store:
        sae = load_sae(folder / "dictionary")
        yield Subject(sae, store, load_names(folder / "dictionary", sae.manifest, store))


@pytest.fixture(scope="module")
def pages(folder):
    argv = [str(folder / "dictionary"), "--store", str(folder / "examples.sqlite"), "--output", str(folder / "pages")]
    argv += ["--log", str(folder / "log.csv"), "--results", str(folder / "like.json"), "--map", "pca", "--num-top", "5"]
    assert lab.run("pages", argv) == 0
    return folder / "pages"


def text_of(markup: str) -> str:
    """What a reader sees of some markup."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


# --- what is written ------------------------------------------------------------------------------------------------


def test_pages_are_made_for_named_explained_found_and_top_latents(pages, subject):
    top = subject.store.latents("max")[:5]
    assert {int(page.stem) for page in (pages / "latents").iterdir()} == {NAMED, EXPLAINED, 20, *top}
    assert (pages / "assets" / "plotly.min.js").stat().st_size > 10**6
    assert sorted(page.name for page in pages.glob("*.html")) == [
        "index.html",
        "map.html",
        "results.html",
        "training.html",
    ]


def test_by_default_the_best_explained_have_pages_and_no_more_than_are_asked_for(folder, tmp_path):
    shutil.copy(folder / "examples.sqlite", tmp_path)
    with ExampleStore.open(tmp_path / "examples.sqlite", writable=True) as store:
        quiet = store.latents("max")[-3:]
        for latent, detection in zip(quiet, (0.9, 0.95, 0.7), strict=True):
            store.save(Explanation(latent, "tokens", "counted", dominant_tokens=("a",), detection=detection))
        sae = load_sae(folder / "dictionary")
        subject = Subject(sae, store, load_names(folder / "dictionary", sae.manifest, store))
        chosen = set(choose_latents(None, subject, 2, []))
        assert chosen == {NAMED, quiet[1], quiet[0], *store.latents("max")[:2]}
        assert set(choose_latents("all", subject, 2, [])) >= {*quiet, EXPLAINED}


@pytest.mark.parametrize(
    ("figures", "mean"), [({}, "the training data's mean"), ({"dense_ratio": 0.01}, "the mean of the text measured")]
)
def test_the_variance_explained_says_against_which_mean(subject, figures, mean):
    metrics = {"corpus": {"variance_explained": 0.5}, "all": {"variance_explained": 0.9, **figures}}
    subject.sae.manifest = subject.sae.manifest.model_copy(update={"metrics": metrics})
    tiles = {tile["name"]: tile["value"] for tile in overview(subject, 5)["tiles"]}
    assert tiles[f"variance explained, against {mean}"] == "0.900"


def test_a_page_shows_what_the_file_holds(pages, subject):
    page = (pages / "latents" / f"{NAMED}.html").read_text()
    record = subject.store.latent(NAMED)
    windows = re.findall(r'<q class="window">(.*?)</q>', page, re.S)
    wanted = [*record.top, *(example for bin_ in reversed(record.quantiles) for example in bin_)]
    assert [text_of(window).lstrip(" ") for window in windows] == [example.text.lstrip(" ") for example in wanted]
    focused = [html.unescape(text) for text in re.findall(r'class="t\d+ focus"[^>]*>(.*?)</span>', page)]
    assert focused == [example.pieces[example.focus].lstrip(" ") or " " for example in wanted]
    assert page.count("<rect") == len(histogram_view(record.histogram, subject.store.histogram_edges).bars)
    for effect in record.promoted:
        assert f"<span>{effect.logit:+.2f}</span>" in page
    assert "0.66" in page and "plain words" in page and "not validated" in page
    assert "not passed" in page and '<td class="num">+0.125 to +0.375</td><td class="num">+0.500</td>' in page


def test_neighbours_are_linked_where_they_have_a_page(pages, subject):
    page = (pages / "latents" / f"{NAMED}.html").read_text()
    near = re.search(r'<ol class="near">(.*?)</ol>', page, re.S)[1]
    linked = {int(latent) for latent in re.findall(r'href="../latents/(\d+).html"', near)}
    assert all((pages / "latents" / f"{latent}.html").exists() for latent in linked)
    rows_FD = torch.nn.functional.normalize(subject.sae.W_dec, dim=-1)
    cosine_F = rows_FD @ rows_FD[NAMED]
    cosine_F[NAMED] = -2
    assert [int(latent) for latent in re.findall(r"<b>(\d+)</b>", near)] == cosine_F.topk(8).indices.tolist()


def test_nothing_is_loaded_from_elsewhere_and_no_text_becomes_markup(pages):
    for path in pages.rglob("*.html"):
        page = path.read_text()
        for address in re.findall(r'(?:src|href|action)="([^"]*)"', page):
            target = address.split("#")[0]
            assert target == "data:," or (path.parent / target).exists(), f"{path}: {address}"
        assert "<img" not in page and "owned'</script>" not in page
        assert html.escape(EVIL[:8]) in page or path.name not in ("results.html", f"{NAMED}.html", f"{EXPLAINED}.html")
    for name in ("latents.js", "map-data.js"):
        assert "</script" not in (pages / "assets" / name).read_text()


def test_all_and_chosen_latents(subject):
    assert len(choose_latents("all", subject, 5, [])) == tiny.NUM_LATENTS
    assert choose_latents("30,9,30,2", subject, 5, []) == [9, 30, 2]
    assert choose_latents("30", subject, 5, [{"latents": [{"latent": 4}]}]) == [30, 4]
    assert choose_latents("20-22, 1", subject, 5, []) == [20, 21, 22, 1]
    bad = [
        ("64", r"0\.\.63, got 64"),
        ("60-99", r"0\.\.63, got 99"),
        *((text, "`all`, or numbers") for text in ("x", "4-3", "1,,2")),
    ]
    for text, message in bad:
        with pytest.raises(PageError, match=message):
            choose_latents(text, subject, 5, [])


def test_pages_replace_pages_and_nothing_else(subject, tmp_path):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    extras = Extras([], [], "none")
    with pytest.raises(PageError, match="mine must be a new folder or one of pages"):
        write_pages(other, subject, [1], extras)
    assert (other / "thesis.txt").exists()
    write_pages(tmp_path / "pages", subject, [1, 2], extras)
    write_pages(tmp_path / "pages", subject, [2], extras)
    assert [page.name for page in (tmp_path / "pages" / "latents").iterdir()] == ["2.html"]
    assert not (tmp_path / "pages" / "map.html").exists() and (tmp_path / "pages" / MARKER).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "pages"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["pages.old", "pages.partial"])
def test_folders_of_others_beside_the_pages_are_refused_and_kept(subject, tmp_path, name, there):
    """They have the names that the pages take on the way."""
    extras = Extras([], [], "none")
    if there:
        write_pages(tmp_path / "pages", subject, [1], extras)
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    wanted = f"{name} is in the way of output .*/pages: it must not be there, or hold {MARKER}"
    with pytest.raises(PageError, match=wanted):
        write_pages(tmp_path / "pages", subject, [2], extras)
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, *(["pages"] if there else [])])


def test_a_folder_of_others_that_appears_meanwhile_is_kept_too(tmp_path):
    facts, old = SiteFacts("name", "footer", []), tmp_path / "pages.old"
    with pytest.raises(PageError, match=r"pages\.old is in the way"), Site(tmp_path / "pages", facts):
        old.mkdir()
        (old / "thesis.txt").write_text("years of work")
    assert [path.name for path in tmp_path.rglob("*")] == ["pages.old", "thesis.txt"]


def test_pages_take_the_place_of_what_a_kill_left_half_written(tmp_path):
    facts = SiteFacts("name", "footer", [])
    site = Site(tmp_path / "pages", facts).__enter__()  # and no exit
    site.write("page.html", "half")
    assert [path.name for path in tmp_path.iterdir()] == ["pages.partial"]
    with Site(tmp_path / "pages", facts) as site:
        site.write("page.html", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


def test_what_a_kill_leaves_of_old_pages_still_says_whose_it_is(tmp_path, monkeypatch):
    facts = SiteFacts("name", "footer", [])
    with Site(tmp_path / "pages", facts):
        pass

    def end(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), Site(tmp_path / "pages", facts):
        patched.setattr(shutil, "rmtree", end)
    assert (tmp_path / "pages.old" / MARKER).is_file()
    with Site(tmp_path / "pages", facts):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


def test_pages_that_fail_leave_the_old_ones(subject, tmp_path, monkeypatch):
    extras = Extras([], [], "none")
    write_pages(tmp_path / "pages", subject, [1], extras)
    monkeypatch.setattr("discovery.pages.index_entry", lambda *_args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_pages(tmp_path / "pages", subject, [2], extras)
    assert [page.name for page in (tmp_path / "pages" / "latents").iterdir()] == ["1.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_is_named_and_leaves_the_old_pages(subject, tmp_path, there):
    extras = Extras([], [], "none")
    if there:
        write_pages(tmp_path / "pages", subject, [1], extras)
    kept = "the pages that are there stay as they are" if there else "there are no pages"
    wanted = rf"{tmp_path}/pages/\S+ can't be written: File too large; {kept}"
    with room_for(2000), pytest.raises(PageError, match=wanted):
        write_pages(tmp_path / "pages", subject, [2], extras)
    assert [path.name for path in tmp_path.iterdir()] == (["pages"] if there else [])


def test_templates_are_part_of_the_package():
    root = Path(__file__).parents[1]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["discovery"]
    shipped = {path for pattern in patterns for path in (root / "discovery").glob(pattern)}
    assert {path for path in (root / "discovery" / "templates").rglob("*") if path.is_file()} <= shipped


def test_a_store_is_needed(folder, tmp_path, capsys):
    assert lab.run("pages", [str(folder / "dictionary"), "--output", str(tmp_path / "x")]) == 1
    assert "give --store" in capsys.readouterr().err


# --- views ----------------------------------------------------------------------------------------------------------


def test_levels_are_tenths_of_the_scale():
    assert [level_of(reading, 2.0) for reading in (0, 0.001, 0.2, 0.21, 1.99, 2.0, 9.0)] == [0, 1, 1, 2, 10, 10, 10]
    assert level_of(1.0, 0.0) == 0


def test_runs_join_silent_tokens_and_leave_blanks_plain():
    pieces = (" a", " b", " c", "\n", " d")
    example = Example(2.0, "s", 0, 5, 2, (1, 2, 3, 4, 5), (0.0, 0.0, 2.0, 1.0, 0.0), pieces)
    runs = example_view(example, 2.0).runs
    assert [(run.text, run.level, run.is_focus) for run in runs] == [
        ("a b ", 0, False),
        ("c", 10, True),
        ("⏎", 5, False),
        (" d", 0, False),
    ]
    assert runs[1].reading == "2.00"


def test_histograms_show_the_bins_that_are_not_empty():
    edges = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    view = histogram_view([0, 1000, 0, 1, 0], edges)
    assert [bar.label for bar in view.bars] == ["1 to 2: 1,000 tokens", "2 to 4: 0 tokens", "4 to 8: 1 tokens"]
    assert view.bars[0].height == view.height and view.bars[1].height == 0 and 1 < view.bars[2].height < 3
    assert histogram_view([0] * 5, edges) is None


def test_percentages():
    wanted = {
        0: "0 %",
        0.5: "50 %",
        0.0123: "1.2 %",
        0.00001234: "0.001 %",
        0.996: "100 %",
        1: "100 %",
        1e-7: "0.00001 %",
    }
    assert {share: percentage(share) for share in wanted} == wanted


def test_training_logs(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,note\n1,2.0,x\n2,nan,y\n3,4.0,z\n")
    run = read_log(tmp_path)
    assert run.steps == [1, 2, 3]
    (curve,) = run.curves
    assert (curve.name, curve.values) == ("loss", [2.0, None, 4.0])
    assert running_mean([2.0, None, 4.0], 2) == [2.0, 2.0, 4.0]
    assert running_mean([1.0, 3.0, 8.0], 2) == [1.0, 2.0, 5.5]
    (tmp_path / "log.csv").write_text("loss\n1\n")
    with pytest.raises(PageError, match="column 'step', got loss"):
        read_log(tmp_path)
    with pytest.raises(PageError, match="can't be read"):
        read_log(tmp_path / "none.csv")


def test_long_logs_are_thinned(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n" + "".join(f"{n},{n}\n" for n in range(9000)))
    run = read_log(tmp_path / "log.csv")
    assert 1500 <= len(run.steps) <= 2000 and run.steps[:2] == [0, 5]


def test_search_results_of_every_kind(subject, tmp_path):
    contrast = {
        "num_positive": 3,
        "num_negative": 4,
        "num_held_out": 0,
        "candidates": [{"latent": NAMED, "auroc_selection": 0.9, "auroc_held_out": None, "p_value": 0.5}],
        "permuted_best_selection": [0.7, 0.95],
    }
    view = result_view(contrast, subject.names, {NAMED})
    assert [column.name for column in view.columns] == ["AUROC", "p"]
    assert view.rows[0].name == "lying" and view.rows[0].linked and "0.950" in view.note
    sentence = {
        "sentence": "ab",
        "latents": [{"latent": 5, "max": 2.0, "num_active": 1}],
        "tokens": [
            {"text": "a", "read": False, "latents": []},
            {"text": "b\n", "read": True, "latents": [{"latent": 5, "value": 2.0}]},
        ],
    }
    view = result_view(sentence, subject.names, set())
    assert [(token.text, token.level) for token in view.tokens] == [("a", 0), ("b⏎", 10)]
    assert not view.rows[0].linked
    for content in ("", "[]", "{}", "no json"):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(PageError, match=r"r\.json"):
            read_result(tmp_path / "r.json")


def test_principal_map_keeps_directions_apart():
    rows_ND = torch.cat([torch.eye(3)[:1] + 0.01 * torch.randn(5, 3), torch.eye(3)[1:2] + 0.01 * torch.randn(5, 3)])
    places = decoder_map(rows_ND, "pca")
    assert np.abs(places[:5].mean(0) - places[5:].mean(0)).max() > 10 * places[:5].std(0).max()
    with pytest.raises(PageError, match="finite"):
        decoder_map(torch.full((3, 3), torch.nan), "pca")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_umap_is_seeded_and_keeps_groups_together(capsys):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 16, generator=generator)
    rows_ND = centres.repeat_interleave(20, 0) + 0.1 * torch.randn(60, 16, generator=generator)
    places = decoder_map(rows_ND, "umap", seed=1)
    assert capsys.readouterr() == ("", "")
    assert np.array_equal(places, decoder_map(rows_ND, "umap", seed=1, progress=True))
    shown = capsys.readouterr()
    assert not shown.out and "by UMAP" in shown.err and "100%" in shown.err
    groups = places.reshape(3, 20, 2)
    spread = max(group.std(0).max() for group in groups)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(groups[a].mean(0) - groups[b].mean(0)) > 3 * spread


# --- in a browser ---------------------------------------------------------------------------------------------------


@needs_browser
def test_a_latents_page_in_a_browser(pages, subject, tmp_path):
    opened = open_page(pages / "latents" / f"{NAMED}.html", tmp_path)
    assert opened.console == opened.requests == []
    assert "<title>3 lying" in opened.dom and "owned'" not in re.findall("<title>(.*?)</title>", opened.dom)[0]
    best = subject.store.latent(NAMED).top[0]
    assert f'<span class="t10 focus" title="{best.value:.2f}">{best.pieces[best.focus].strip()}</span>' in opened.dom


@needs_browser
def test_searching_the_index_in_a_browser(pages, tmp_path):
    everything = open_page(pages / "index.html", tmp_path)
    assert everything.console == everything.requests == []
    num_pages = len(list((pages / "latents").iterdir()))
    assert f"{num_pages} of {num_pages} latents" in everything.dom
    assert "<img" not in everything.dom and "<title>latents" in everything.dom
    found = open_page(pages / "index.html", tmp_path, query="#q=sea%20voyages")
    assert found.console == found.requests == []
    rows = re.search(r'<tbody id="rows">(.*?)</tbody>', found.dom, re.S)[1]
    assert rows.count("<tr>") == 1 and f'href="latents/{EXPLAINED}.html"' in rows
    assert f"1 of {num_pages} latents" in found.dom
    assert "<img" not in found.dom and "<title>latents" in found.dom


@needs_browser
def test_what_was_searched_for_is_marked_as_text(pages, tmp_path):
    found = open_page(pages / "index.html", tmp_path, query="#q=%3Cb%3E")
    assert found.console == []
    assert "<mark>&lt;b&gt;</mark>" in found.dom or "<mark>&lt;</mark>" in found.dom


@needs_browser
def test_the_form_on_every_page_searches_the_index(pages, tmp_path):
    found = open_page(pages / "index.html", tmp_path, query="?q=lying")
    rows = re.search(r'<tbody id="rows">(.*?)</tbody>', found.dom, re.S)[1]
    assert f'href="latents/{NAMED}.html"' in rows and "<b>lying</b>" in rows


@needs_browser
def test_shares_in_the_index_are_never_exponents(pages, tmp_path):
    shutil.copytree(pages, tmp_path / "pages")
    path = tmp_path / "pages" / "assets" / "latents.js"
    name, _, entries = path.read_text(encoding="utf-8").partition("=")
    latents = json.loads(entries.strip().removesuffix(";"))[:3]
    for latent, density in zip(latents, (1.0, 0.996, 1e-9), strict=True):
        latent["density"] = density
    path.write_text(f"{name}= {json.dumps(latents)};", encoding="utf-8")
    found = open_page(tmp_path / "pages" / "index.html", tmp_path / "profile")
    cells = re.findall(r'<td class="num">([^<]*%)</td>', found.dom)
    assert cells == ["100 %", "100 %", "0.0000001 %"]


@needs_browser
@pytest.mark.parametrize("name", ["index.html", f"latents/{NAMED}.html", "results.html", "training.html", "map.html"])
def test_nothing_reaches_beyond_a_phones_screen(pages, tmp_path, name):
    shutil.copytree(pages, tmp_path / "pages")
    page = tmp_path / "pages" / name
    told = "<script>onload = () => parent.postMessage(document.documentElement.scrollWidth, '*')</script></body>"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", told), encoding="utf-8")
    frame = tmp_path / "frame.html"
    shows = "<script>onmessage = (event) => { document.title = `width ${event.data}`; }</script>"
    frame.write_text(f'{shows}<iframe src="pages/{name}" style="width:390px;height:800px;border:0"></iframe>')
    opened = open_page(frame, tmp_path / "profile")
    assert int(re.search("<title>width ([0-9]+)</title>", opened.dom)[1]) <= 390


@needs_browser
def test_plots_are_drawn_in_a_browser(pages, tmp_path):
    opened = open_page(pages / "map.html", tmp_path)
    assert opened.console == opened.requests == []
    assert "plotly" in opened.dom and "<canvas" in opened.dom
    training = open_page(pages / "training.html", tmp_path)
    assert training.console == training.requests == []
    assert training.dom.count('class="js-line"') >= 4
    results = open_page(pages / "results.html", tmp_path)
    assert results.console == results.requests == []
    assert "owned" not in re.findall("<title>(.*?)</title>", results.dom)[0]


@needs_browser
def test_the_browser_tells_of_errors_and_requests(tmp_path):
    """The tests above mean something only if this is so."""
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.com/x.png"><script>nothing.there()</script>')
    opened = open_page(page, tmp_path / "profile")
    assert ["nothing is not defined" in line for line in opened.console] == [True]
    assert opened.requests and all("http://example.com/x.png" in line for line in opened.requests)


def test_a_number_of_pages_below_none_is_refused(tmp_path, capsys):
    assert cli.main(["lab", "pages", str(tmp_path), "--output", str(tmp_path / "out"), "--num-top", "-5"]) == 1
    assert capsys.readouterr().err == "telltale lab pages: --num-top must not be negative, got -5\n"


@pytest.mark.parametrize("num_renames", [0, 1])
def test_pages_survive_a_kill_between_the_renames(tmp_path, monkeypatch, num_renames):
    """Two renames put new pages in the place of old ones; after `num_renames` of them all ends."""
    facts = SiteFacts("name", "footer", [])

    def write(text):
        with Site(tmp_path / "pages", facts) as site:
            site.write("page.html", text)

    write("old")
    done, rename = [], Path.replace

    def replace(path, target):
        if len(done) == num_renames:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", replace)
        write("new")
    Site(tmp_path / "pages", facts)
    assert (tmp_path / "pages" / "page.html").read_text() == "old"
    write("newer")
    assert (tmp_path / "pages" / "page.html").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]
