"""The feature file: what is read, what is written, and every way a file can be wrong, by field path."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitors.errors import MonitorError, WatchlistError
from monitors.watchlist import MAX_DEFAULT_WATCHED, NamedFeature, Watchlist

SHA = "0123456789abcdef" * 4
OTHER_SHA = "f" * 64

FILE: dict[str, Any] = {
    "format_version": 2,
    "sae_sha256": SHA,
    "features": [
        {
            "index": 41,
            "name": "lying",
            "description": "Says what it does not hold true.",
            "reference_scale": 2.5,
            "validated": False,
            "default_watched": True,
            "evidence": {"method": "contrast", "auroc_heldout": 0.71, "fires_on": [{"text": "«no»", "value": 3.5}]},
        },
        {
            "index": 7,
            "name": "refusal",
            "description": "",
            "reference_scale": 1,
            "validated": True,
            "default_watched": False,
            "evidence": {},
        },
    ],
}


def write(folder: Path, content: object) -> Path:
    path = folder / "features.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def changed(path: str, value: object) -> dict[str, Any]:
    """The good file with one value put at a dotted path."""
    content = copy.deepcopy(FILE)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = content
    for part in parents:
        target = target[part]
    target[last] = value
    return content


def without(path: str) -> dict[str, Any]:
    content = changed(path, None)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = content
    for part in parents:
        target = target[part]
    del target[last]
    return content


def refusal(folder: Path, content: object) -> WatchlistError:
    with pytest.raises(WatchlistError) as caught:
        Watchlist.load(write(folder, content))
    return caught.value


@pytest.fixture
def watchlist(tmp_path: Path) -> Watchlist:
    return Watchlist.load(write(tmp_path, FILE))


def test_reads_every_field(watchlist):
    feature = watchlist.features[0]
    assert feature == NamedFeature(
        index=41,
        name="lying",
        description="Says what it does not hold true.",
        reference_scale=2.5,
        validated=False,
        default_watched=True,
        evidence=FILE["features"][0]["evidence"],
    )
    assert watchlist.sae_sha256 == SHA


def test_look_ups(watchlist):
    lying, refusing = watchlist.features
    assert watchlist.by_name == {"lying": lying, "refusal": refusing}
    assert watchlist.by_index == {41: lying, 7: refusing}
    assert watchlist.default_watched == (lying,)


def test_slug_is_index_and_name(watchlist):
    assert [feature.slug for feature in watchlist.features] == ["f41_lying", "f7_refusal"]


def test_saving_and_loading_changes_nothing(watchlist, tmp_path):
    path = tmp_path / "again.json"
    watchlist.save(path)
    assert Watchlist.load(path) == watchlist
    assert json.loads(path.read_text(encoding="utf-8")) == FILE
    assert "«no»" in path.read_text(encoding="utf-8")


def test_saving_replaces_the_old_file_and_leaves_no_draft(watchlist, tmp_path):
    path = tmp_path / "features.json"
    replace(watchlist, features=()).save(path)
    assert Watchlist.load(path).features == ()
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.json"]


def test_a_failed_save_keeps_the_old_file_and_leaves_no_draft(watchlist, tmp_path, monkeypatch):
    path = tmp_path / "features.json"
    before = path.read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("monitors.strict_files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(watchlist, features=()).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.json"]


def test_readers_never_see_half_a_file(watchlist, tmp_path, monkeypatch):
    path = tmp_path / "features.json"
    shorter = replace(watchlist, features=())
    seen = []

    def look(_descriptor: int) -> None:
        [draft] = set(tmp_path.iterdir()) - {path}
        seen.extend([Watchlist.load(path), Watchlist.load(draft)])

    monkeypatch.setattr("monitors.strict_files.os.fsync", look)
    shorter.save(path)
    assert seen == [watchlist, shorter]


def test_an_empty_list_is_a_list(tmp_path):
    content = {"format_version": 2, "sae_sha256": SHA, "features": []}
    watchlist = Watchlist.load(write(tmp_path, content))
    assert watchlist.features == ()


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Watchlist.load(tmp_path / "features.json")


# Binding


def test_bound_to_its_own_dictionary(watchlist):
    watchlist.check_binding(SHA, num_latents=42)  # its last latent is 41
    with pytest.raises(WatchlistError, match="wanted a latent below 41, got 41"):
        watchlist.check_binding(SHA, num_latents=41)


def test_another_dictionary_is_refused(watchlist):
    with pytest.raises(WatchlistError, match=rf"^sae_sha256: wanted '{OTHER_SHA}', .*, got '{SHA}'$"):
        watchlist.check_binding(OTHER_SHA, num_latents=1001)


def test_an_index_out_of_the_dictionary_is_refused(watchlist):
    with pytest.raises(WatchlistError) as caught:
        watchlist.check_binding(SHA, num_latents=41)
    assert str(caught.value).splitlines() == [
        "features.0.index: wanted a latent below 41, got 41",
    ]


# Refusals


def test_the_good_file_is_good(tmp_path):
    """Every refusal below differs from this file in one place."""
    assert Watchlist.load(write(tmp_path, changed("features.0.index", 41))).features[0].index == 41


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("format_version", 1, "2"),
        ("sae_sha256", "abc", "a sha256 of 64 lower-case hex digits"),
        ("features", {}, "a valid array"),
        ("features.0", 3, "an object"),
        ("features.0.index", -1, "a whole number of at least 0"),
        ("features.0.index", "41", "a valid integer"),
        ("features.0.index", 41.0, "a valid integer"),
        ("features.0.name", "Lying", "a name matching [a-z][a-z0-9_]*"),
        ("features.0.name", "", "a name matching"),
        ("features.0.description", None, "a valid string"),
        ("features.0.reference_scale", 0.0, "a finite number above 0"),
        ("features.0.reference_scale", float("nan"), "a finite number above 0"),
        ("features.0.reference_scale", "2", "a valid number"),
        ("features.0.reference_scale", True, "a valid number"),
        ("features.0.validated", 0, "a valid boolean"),
        ("features.0.default_watched", "yes", "a valid boolean"),
        ("features.0.evidence", [], "an object"),
        ("features.0.evidence", {"auroc": float("nan")}, "a JSON object without NaN or infinity"),
        ("features.1.name", "lying", "a value of its own, unlike features.0.name"),
        ("features.1.index", 41, "a value of its own, unlike features.0.index"),
    ],
)
def test_a_bad_value_is_refused_by_path_wanted_and_got(tmp_path, path, value, wanted):
    error = refusal(tmp_path, changed(path, value))
    [problem] = error.problems
    assert problem.field == path
    assert problem.wanted.startswith(wanted)
    assert problem.got == repr(value)
    header, line = str(error).splitlines()
    assert header == f"cannot use feature file {tmp_path / 'features.json'}:"
    assert line == f"{path}: wanted {problem.wanted}, got {problem.got}"


KEYS = [
    *FILE,
    *(f"features.0.{key}" for key in FILE["features"][0]),
]


@pytest.mark.parametrize("path", KEYS)
def test_every_key_is_required(tmp_path, path):
    error = refusal(tmp_path, without(path))
    assert [str(problem) for problem in error.problems] == [f"{path}: wanted a value, got nothing"]


@pytest.mark.parametrize("owner", ["", "features.0."])
def test_an_unknown_key_is_refused(tmp_path, owner):
    error = refusal(tmp_path, changed(f"{owner}colour", "red"))
    assert [str(problem) for problem in error.problems] == [f"{owner}colour: wanted no such key, got 'red'"]


def test_a_file_with_monitors_in_it_is_refused(tmp_path):
    """As files of version 1 had them: they would not run."""
    error = refusal(tmp_path, FILE | {"format_version": 1, "monitors": []})
    assert [problem.field for problem in error.problems] == ["format_version", "monitors"]


@pytest.mark.parametrize("text", ["", "{", "[1, 2", '{"format_version": 2,}'])
def test_what_is_not_json_is_refused(tmp_path, text):
    [problem] = refusal(tmp_path, text).problems
    assert (problem.field, problem.wanted) == ("file", "JSON")
    assert "line 1" in problem.got


def test_json_of_another_kind_is_refused(tmp_path):
    [problem] = refusal(tmp_path, "[]").problems
    assert (problem.field, problem.wanted, problem.got) == ("file", "an object", "[]")


def test_undecodable_bytes_are_refused(tmp_path):
    path = tmp_path / "features.json"
    path.write_bytes(b'{"sae_sha256": "\xff"}')
    with pytest.raises(WatchlistError) as caught:
        Watchlist.load(path)
    assert caught.value.problems[0].wanted == "JSON"


def test_all_problems_are_listed_one_a_line(tmp_path):
    content = changed("features.0.index", "41")
    content["features"][1].update(reference_scale=0, name="No")
    content["colour"] = "red"
    error = refusal(tmp_path, content)
    fields = [line.split(":")[0] for line in str(error).splitlines()[1:]]
    paths = ["features.0.index", "features.1.name", "features.1.reference_scale", "colour"]
    assert fields == paths


def test_a_long_value_is_cut_in_the_message(tmp_path):
    [problem] = refusal(tmp_path, changed("features.0.name", "X" * 10_000)).problems
    assert len(problem.got) < 200
    assert problem.got.endswith("...")


def many(num_watched: int) -> tuple[NamedFeature, ...]:
    return tuple(
        NamedFeature(
            index=i,
            name=f"n{i}",
            description="",
            reference_scale=1.0,
            validated=False,
            default_watched=i < num_watched,
            evidence={},
        )
        for i in range(MAX_DEFAULT_WATCHED + 2)
    )


def test_the_cap_is_on_default_watched_features_only():
    assert MAX_DEFAULT_WATCHED == 64
    assert len(Watchlist(SHA, many(64)).default_watched) == 64
    with pytest.raises(WatchlistError, match=r"^features: wanted at most 64 default_watched, got 65$"):
        Watchlist(SHA, many(65))


def test_built_in_python_it_is_checked_as_well(watchlist):
    feature = watchlist.features[0]
    with pytest.raises(WatchlistError, match=r"^features\.1\.name: .*\nfeatures\.1\.index: "):
        replace(watchlist, features=(feature, feature))
    with pytest.raises(WatchlistError, match=r"^sae_sha256: "):
        Watchlist("", ())
    with pytest.raises(MonitorError, match=r"^evidence: wanted a JSON object"):
        replace(feature, evidence={"path": Path()})
    with pytest.raises(MonitorError, match=r"^evidence: wanted a JSON object"):
        replace(feature, evidence=["method"])  # type: ignore[arg-type]
    with pytest.raises(MonitorError, match=r"^validated: wanted true or false, got 1"):
        replace(feature, validated=1)  # type: ignore[arg-type]
    with pytest.raises(MonitorError, match=r"^default_watched: wanted true or false, got None"):
        replace(feature, default_watched=None)  # type: ignore[arg-type]
