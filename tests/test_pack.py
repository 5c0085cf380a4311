"""The monitor pack: what is written is read, the hash covers all of it, and every refusal by its field."""

import base64
import copy
import dataclasses
import json
import math
import struct
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_packs import SERVED, feature_component, pack, probe_component, thresholds

from monitors.combination import Cascade, Ensemble, Single
from monitors.components import FeatureScore, ProbeScore
from monitors.errors import MonitorError, PackError
from monitors.pack import HASH_KEY, PACK_SUFFIX, MonitorPack
from monitors.pack_parts import PackCalibration
from monitors.pack_tensors import PackTensor
from monitors.strict_files import content_sha256
from monitors.thresholds import Levels, LevelThreshold, Stratum

DIRECTION = [0.1 * i for i in range(32)]
PACK = pack(
    "deception",
    [
        probe_component("disbelief", direction="disbelief", hook_point="layers.2.output", center=-1.5, scale=0.25),
        feature_component(3, 41, name="latents", transform="log1p"),
    ],
    evidence={"auroc": 0.75, "sets": ["a", "b"], "n": 3},
    tensors={"disbelief": PackTensor.of(DIRECTION)},
    thresholds=thresholds(1.0, 2.0),
    roles=("assistant", "user"),
)
FACTS: dict[str, Any] = json.loads(json.dumps(PACK.as_json()))


def write(folder: Path, facts: Any, *, signed: bool = True) -> Path:
    """A pack file of these facts, with the right hash unless told otherwise."""
    path = folder / f"deception{PACK_SUFFIX}"
    if isinstance(facts, dict) and signed:
        facts = facts | {HASH_KEY: content_sha256(facts)}
    path.write_text(facts if isinstance(facts, str) else yaml.safe_dump(facts), encoding="utf-8")
    return path


def changed(path: str, value: object) -> dict[str, Any]:
    """The good facts with one value put at a dotted path; `...` takes the key away."""
    facts = copy.deepcopy(FACTS)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = facts
    for part in parents:
        target = target[part]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return facts


def refusal(folder: Path, facts: Any, *, signed: bool = True) -> PackError:
    # A value that JSON has not can't be signed either; it is found before the hash is looked at.
    try:
        path = write(folder, facts, signed=signed)
    except ValueError:
        path = write(folder, facts, signed=False)
    with pytest.raises(PackError) as caught:
        MonitorPack.load(path)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"cannot use monitor pack {path}:\n")
    return caught.value


def fields(error: MonitorError) -> list[str]:
    return [problem.field for problem in error.problems]


# What is read and written


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / f"deception{PACK_SUFFIX}"
    PACK.save(path)
    assert MonitorPack.load(path) == PACK
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_made_by_hand_is_read(tmp_path):
    """Comments, order and layout are free."""
    text = "# a comment\n" + yaml.safe_dump(dict(reversed(FACTS.items())) | {HASH_KEY: PACK.content_sha256})
    assert MonitorPack.load(write(tmp_path, text)) == PACK


def test_tensors_keep_their_bits():
    values = [math.pi, -1e-30, 3.4e38, 0.0]
    tensor = PackTensor.of(values)
    assert tensor.values == struct.unpack("<4f", struct.pack("<4f", *values))
    assert base64.b64decode(tensor.data) == struct.pack("<4f", *values)


def test_save_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / f"deception{PACK_SUFFIX}"
    PACK.save(path)
    monkeypatch.setattr("os.fsync", lambda _handle: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        replace(PACK, version=2).save(path)
    monkeypatch.undo()
    assert MonitorPack.load(path).version == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# Hashes


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"version": 2},
        {"limits": "Other words."},
        {"validated_reason": "Other words."},
        {"window": 5},
        {"thresholds": thresholds(1.0, 2.5)},
        {"evidence": {}},
        {"tensors": {"disbelief": PackTensor.of([*DIRECTION[:-1], 9.0])}},
        {"bindings": replace(PACK.bindings, temperatures=(0.7,))},
    ],
)
def test_the_content_hash_covers_everything(change):
    assert replace(PACK, **change).content_sha256 != PACK.content_sha256
    assert replace(PACK).content_sha256 == PACK.content_sha256


def test_the_frozen_hash_covers_what_decides_the_score_and_nothing_else():
    later = replace(
        PACK, version=9, thresholds=None, calibration=None, evidence={}, limits="Other words.",
        bindings=replace(PACK.bindings, temperatures=(0.0, 0.7)),
    )  # fmt: skip
    assert later.frozen_sha256 == PACK.frozen_sha256
    for change in ({"window": 5}, {"rule": "max"}, {"tensors": {"disbelief": PackTensor.of([1.0] * 32)}}):
        assert replace(PACK, **change).frozen_sha256 != PACK.frozen_sha256
    assert replace(PACK, bindings=replace(PACK.bindings, model_sha256="a" * 64)).frozen_sha256 != PACK.frozen_sha256


def test_a_change_by_hand_is_refused(tmp_path):
    path = tmp_path / f"deception{PACK_SUFFIX}"
    PACK.save(path)
    path.write_text(
        path.read_text().replace("validated: false", "validated: true").replace("by_hand", "conformal_by_length")
    )
    with pytest.raises(PackError) as caught:
        MonitorPack.load(path)
    assert fields(caught.value) == [HASH_KEY]
    assert PACK.content_sha256 in caught.value.problems[0].got


@pytest.mark.parametrize("hash_", [None, 7, "f" * 64])
def test_a_missing_or_other_hash_is_refused(tmp_path, hash_):
    assert fields(refusal(tmp_path, FACTS | ({} if hash_ is None else {HASH_KEY: hash_}), signed=False)) == [HASH_KEY]


# Monitors and probes


def test_the_monitor_it_makes():
    spec = PACK.spec()
    assert (spec.name, spec.kind, spec.window, spec.roles) == ("deception", "ensemble", 4, ("assistant", "user"))
    assert spec.combination == Ensemble("min", (1.0, 1.0))
    assert spec.components[0].score == ProbeScore("deception.disbelief")
    assert (spec.components[0].center, spec.components[0].scale) == (-1.5, 0.25)
    assert isinstance(spec.components[1].score, FeatureScore)
    assert (spec.latents, spec.probes) == ((3, 41), ("deception.disbelief",))
    assert (spec.thresholds, spec.pack_sha256) == (PACK.thresholds, PACK.content_sha256)


def test_the_probes_it_holds():
    [probe] = PACK.probes()
    assert (probe.name, probe.hook_point, probe.bias) == ("deception.disbelief", "layers.2.output", 0.5)
    assert probe.direction == pytest.approx(DIRECTION)


def test_kinds_of_combination():
    assert pack().spec().combination == Single()
    weighted = pack(components=[feature_component(3, name="a", weight=2.0), feature_component(4, name="b")], rule="sum")
    assert weighted.spec().combination == Ensemble("sum", (2.0, 1.0))
    two = [probe_component("a"), probe_component("b", hook_point="layers.3.input")]
    cascade = pack(components=two, kind="cascade", rule=None, gate_threshold=0.5, closed_score=-4.0)
    assert cascade.spec().combination == Cascade(0.5, -4.0)


def gated(rule="min", **weights):
    """Two under a rule, and a gate."""
    three = [feature_component(i, name=name, weight=weights.get(name, 1.0)) for i, name in enumerate("abc")]
    return pack(components=three, kind="cascade", rule=rule, gate_threshold=0.5, closed_score=-4.0)


def test_a_gate_may_have_an_ensemble_behind_it(tmp_path):
    made = gated()
    assert made.spec().combination == Cascade(0.5, -4.0, Ensemble("min", (1.0, 1.0)))
    assert gated("sum", a=2.0).spec().combination == Cascade(0.5, -4.0, Ensemble("sum", (2.0, 1.0)))
    made.save(tmp_path / "gated.pack.yaml")
    assert MonitorPack.load(tmp_path / "gated.pack.yaml").spec().combination == made.spec().combination


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gated(None), "rule: wanted a value for a cascade of 3 components, got nothing"),
        (
            lambda: pack(
                components=[feature_component(3, name="a"), feature_component(4, name="b")],
                kind="cascade", rule="min", gate_threshold=0.5, closed_score=-4.0,
            ),
            "rule: wanted null for a cascade of 2 components, got 'min'",
        ),
        (lambda: gated("sum", c=2.0), r"components.2.weight: wanted 1, since a gate has no weight, got 2"),
    ],
)  # fmt: skip
def test_what_a_cascade_needs_goes_by_its_components(make, message):
    with pytest.raises(MonitorError, match=message):
        make()


def of_two(closed_score, **changes):
    two = [feature_component(3, name="a"), feature_component(4, name="gate")]
    facts = {"kind": "cascade", "rule": None, "gate_threshold": 0.5, "closed_score": closed_score}
    return pack(components=two, **(facts | changes))


def test_a_closed_gate_raises_no_alert():
    """Thresholds are 0.5 at first and higher in long replies; the lowest at which it may fire counts."""
    rising = replace(thresholds(0.5), strata=(Stratum(64, 0.0), Stratum(256, 1.0), Stratum(1024, 2.0)))
    of_two(0.5, thresholds=rising)
    of_two(1.5, thresholds=rising, min_tokens=65)
    of_two(1e6, thresholds=None, calibration=None)
    for min_tokens, closed_score, most in ((64, 0.6, "0.5"), (65, 1.6, "1.5")):
        with pytest.raises(MonitorError, match=f"^closed_score: wanted at most {most}, above which an alert is raised"):
            of_two(closed_score, thresholds=rising, min_tokens=min_tokens)


def test_a_level_stands_somewhere_from_the_first_token_that_counts():
    short = LevelThreshold(0.01, 0.5, (64,), (256, 1024))
    partly = replace(thresholds(0.5), levels=Levels(short, None))
    pack(thresholds=partly, min_tokens=64)
    with pytest.raises(MonitorError, match=r"^min_tokens: wanted at most 64, up to which a level stands, got 65$"):
        pack(thresholds=partly, min_tokens=65)
    pack(thresholds=None, calibration=None, min_tokens=65)


def test_a_frozen_monitor_is_a_pack_and_not_a_monitor(tmp_path):
    frozen = replace(PACK, thresholds=None, calibration=None)
    path = tmp_path / f"deception{PACK_SUFFIX}"
    frozen.save(path)
    assert MonitorPack.load(path) == frozen
    with pytest.raises(PackError, match=r"^thresholds: wanted calibrated thresholds, got nothing$"):
        frozen.spec()


def test_a_pack_cannot_change():
    with pytest.raises(FrozenInstanceError):
        PACK.window = 3  # type: ignore[misc]


# Broken files


@pytest.mark.parametrize(
    ("text", "wanted", "got"),
    [
        ("name: [", "YAML", "expected the node content"),
        ("name: a\nname: b\n", "YAML", "key 'name' is given twice"),
        ("name: &x a\nkind: *x\n", "YAML", "anchors and aliases are not allowed"),
        ("1: a\n", "YAML", "key 1 is not a text"),
        ("name: !!python/object:os.system {}\n", "YAML", "could not determine a constructor"),
        ("name: 2026-01-01\n", "YAML of texts", "date is not JSON"),
        ("\xff\xfe\x00", "YAML", ""),
        ("- a\n", "a JSON object", "['a']"),
        ("", "a JSON object", "None"),
    ],
)
def test_what_is_no_pack_at_all_is_refused(tmp_path, text, wanted, got):
    path = tmp_path / f"deception{PACK_SUFFIX}"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PackError) as caught:
        MonitorPack.load(path)
    [problem] = caught.value.problems
    assert problem.field == "file"
    assert problem.wanted.startswith(wanted)
    assert got in problem.got


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("format_version", 2, "format_version"),
        ("name", "Deception", "name"),
        ("name", ..., "name"),
        ("version", 0, "version"),
        ("version", "1", "version"),
        ("kind", "oracle", "kind"),
        ("description", " ", "description"),
        ("limits", "", "limits"),
        ("validated", "no", "validated"),
        ("validated_reason", ..., "validated_reason"),
        ("author", "somebody", "author"),
        ("bindings.model_sha256", "abc", "bindings.model_sha256"),
        ("bindings.model_name", "", "bindings.model_name"),
        ("bindings.temperatures", [-1.0], "bindings.temperatures.0"),
        ("bindings.sae_sha256", None, "bindings.sae_sha256"),
        ("bindings.device", "cpu", "bindings.device"),
        ("components", [], "components"),
        ("components.0.name", "two words", "components.0.name"),
        ("components.0.name", "latents", "components.1.name"),
        ("components.0.reads", "", "components.0.reads"),
        ("components.0.center", math.nan, "components.0.center"),
        ("components.0.scale", 0, "components.0.scale"),
        ("components.0.weight", 2.0, "components.0.weight"),
        ("components.0.hook_point", "blocks.2", "components.0.hook_point"),
        ("components.0.hook_point", None, "components.0.hook_point"),
        ("components.0.transform", "linear", "components.0.features"),
        ("components.0.probe.method", "oracle", "components.0.probe.method"),
        ("components.0.probe.direction", "elsewhere", "components.0.probe.direction"),
        ("components.0.probe.bias", math.inf, "components.0.probe.bias"),
        ("components.0.probe.bias", "0.5", "components.0.probe.bias"),
        ("components.0.probe", None, "components.0.features"),
        ("components.1.features", [], "components.1.features"),
        ("components.1.features.1.feature", 3, "components.1.features.1.feature"),
        ("components.1.features.0.weight", 0.0, "components.1.features.0.weight"),
        ("components.1.transform", None, "components.1.transform"),
        ("components.1.hook_point", "layers.1.output", "components.1.hook_point"),
        ("rule", None, "rule"),
        ("rule", "median", "rule"),
        ("gate_threshold", 1.0, "gate_threshold"),
        ("closed_score", 1.0, "closed_score"),
        ("window", 0, "window"),
        ("min_tokens", 0, "min_tokens"),
        ("cooldown_tokens", -1, "cooldown_tokens"),
        ("roles", [], "roles"),
        ("roles.1", "narrator", "roles.1"),
        ("thresholds", None, "thresholds"),
        ("thresholds.strata", [], "thresholds.strata"),
        ("thresholds.strata.1.max_tokens", 64, "thresholds.strata.1.max_tokens"),
        ("thresholds.strata.1.offset", math.nan, "thresholds.strata.1.offset"),
        ("thresholds.levels.warning.strata", [64, 256], "thresholds.levels.warning"),
        ("thresholds.levels.critical", ..., "thresholds.levels.critical"),
        ("thresholds.levels.critical.offset", 0.5, "thresholds.levels.critical.offset"),
        ("thresholds.levels.critical.alpha", 0.5, "thresholds.levels.critical.alpha"),
        ("thresholds.strata.0.offset", 9.0, "thresholds.strata.1.offset"),
        ("min_tokens", 1025, "min_tokens"),
        ("thresholds.levels.info", None, "thresholds.levels.info"),
        ("thresholds.levels.warning.alpha", 1.5, "thresholds.levels.warning.alpha"),
        ("thresholds.clear_offset", 5.0, "thresholds.clear_offset"),
        ("calibration", None, "calibration"),
        ("calibration.method", "guess", "calibration.method"),
        ("calibration.source", "", "calibration.source"),
        ("calibration.figures", {"rate": math.nan}, "calibration.figures"),
        ("evidence", {"auroc": math.inf}, "evidence"),
        ("evidence", [], "evidence"),
        ("tensors.disbelief.dtype", "F16", "tensors.disbelief.dtype"),
        ("tensors.disbelief.shape", [31], "tensors.disbelief.data"),
        ("tensors.disbelief.shape", [4, 8], "tensors.disbelief.shape"),
        ("tensors.disbelief.shape", [0], "tensors.disbelief.shape.0"),
        ("tensors.disbelief.data", "not base64!", "tensors.disbelief.data"),
        ("tensors.disbelief", ..., "components.0.probe.direction"),
        ("tensors.spare", {"dtype": "F32", "shape": [32], "data": PackTensor.of(DIRECTION).data}, "tensors.spare"),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(tmp_path, path, value, field):
    error = refusal(tmp_path, changed(path, value))
    assert field in fields(error)
    assert all(problem.wanted and problem.got for problem in error.problems)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_that_is_not_finite_is_refused_by_name_and_place(tmp_path, value):
    data = base64.b64encode(struct.pack("<32f", *DIRECTION[:5], value, *DIRECTION[6:])).decode()
    [problem] = refusal(tmp_path, changed("tensors.disbelief.data", data)).problems
    assert str(problem) == f"tensors.disbelief.data.5: wanted a finite number, got {value}"


def test_a_threshold_missing_for_a_stratum_is_refused_by_name(tmp_path):
    facts = changed("thresholds.levels.critical.strata", [64, 256])
    [problem] = refusal(tmp_path, facts).problems
    assert str(problem) == (
        "thresholds.levels.critical: wanted the stratum up to 1024 tokens, in strata or in absent, got neither"
    )


def test_tensors_of_two_widths_are_refused():
    two = [probe_component("a", direction="a"), probe_component("b", direction="b")]
    with pytest.raises(MonitorError) as caught:
        pack(components=two, tensors={"a": PackTensor.of([1.0]), "b": PackTensor.of([1.0, 2.0])})
    assert fields(caught.value) == ["tensors.a.shape", "tensors.b.shape"]


def test_every_fault_is_told_at_once(tmp_path):
    facts = changed("limits", "") | {"version": 0, "evidence": []}
    assert set(fields(refusal(tmp_path, facts))) >= {"evidence"}
    with pytest.raises(MonitorError) as caught:
        replace(PACK, limits="", version=0, evidence=[])  # type: ignore[arg-type]
    assert fields(caught.value) == ["version", "limits", "evidence"]


def test_validated_needs_a_calibration_that_bounds_something():
    with pytest.raises(MonitorError, match=r"^validated: wanted false while the calibration is by_hand, got true$"):
        replace(PACK, validated=True)
    with pytest.raises(MonitorError, match=r"^validated: wanted false while the calibration is missing, got true$"):
        replace(PACK, validated=True, thresholds=None, calibration=None)
    calibrated = PackCalibration(method="conformal_by_length", source="Benign replies.")
    assert replace(PACK, validated=True, calibration=calibrated).spec().validated


# What it is bound to


def test_a_pack_fits_what_it_was_made_for():
    assert (PACK.mismatches(SERVED), PACK.misfits(SERVED)) == ([], [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_sha256", "f" * 64),
        ("quantization", "nf4"),
        ("dtype", "bfloat16"),
        ("chat_template_sha256", "d" * 64),
        ("chat_template_sha256", None),
    ],
)
def test_another_model_is_a_mismatch_by_name(field, value):
    bound = replace(PACK, bindings=replace(PACK.bindings, dtype="float32", chat_template_sha256="c" * 64))
    assert bound.mismatches(SERVED) == []
    [problem] = bound.mismatches(replace(SERVED, **{field: value}))
    assert problem.field == f"bindings.{field}"
    assert repr(value) in problem.wanted
    assert problem.got == repr(getattr(bound.bindings, field))


def test_what_is_not_bound_may_be_anything():
    assert PACK.mismatches(replace(SERVED, dtype="bfloat16", chat_template_sha256=None)) == []


@pytest.mark.parametrize(
    ("served", "field"),
    [
        ({"sae_sha256": "f" * 64}, "bindings.sae_sha256"),
        ({"sae_sha256": None}, "bindings.sae_sha256"),
        ({"num_latents": 41}, "components.1.features.1.feature"),
        ({"d_model": 64}, "components.0.probe.direction"),
        ({"num_layers": 2}, "components.0.hook_point"),
    ],
)
def test_what_can_not_be_computed_is_a_misfit_by_name(served, field):
    assert [problem.field for problem in PACK.misfits(replace(SERVED, **served))] == [field]


def test_a_probe_of_another_models_width_says_of_which_model_it_is():
    [problem] = PACK.misfits(replace(SERVED, d_model=64))
    assert problem.got == f"32, of {PACK.bindings.model_name}"


def test_a_probe_needs_no_dictionary():
    alone = pack(components=[probe_component()])
    assert alone.misfits(replace(SERVED, sae_sha256=None, num_latents=0)) == []
    assert alone.mismatches(replace(SERVED, sae_sha256=None, num_latents=0)) == []


def test_every_field_of_a_pack_is_in_the_file(tmp_path):
    PACK.save(tmp_path / "x.pack.yaml")
    written = yaml.safe_load((tmp_path / "x.pack.yaml").read_text())
    assert set(written) == {*(field.name for field in dataclasses.fields(MonitorPack)), HASH_KEY}
