"""What the command line says of monitors: when they fire, what that rests on, and that nothing is hidden."""

from dataclasses import replace

from service.client_monitors import Monitor, MonitorComponent, MonitorLevel, MonitorStratum
from service.evidence_view import readable
from service.monitor_view import brief, cautions, whole

MONITOR = Monitor(
    name="deception",
    description="Says what it does not hold true.",
    threshold=1.0,
    clear_threshold=0.25,
    window=16,
    min_tokens=8,
    cooldown_tokens=16,
    severity="critical",
    threshold_source="Benign replies.",
    validated=False,
    features=(3,),
    scores_prompt=False,
    kind="ensemble",
    version=4,
    pack_sha256="ab" * 32,
    components=(
        MonitorComponent(
            name="stance", reads="What it was told.", hook_point="layers.2.output", features=(), method="lda"
        ),
        MonitorComponent(name="latents", reads="Words of deceit.", hook_point="", features=(3, 41), method=""),
    ),
    combination="min of stance, latents",
    levels=(MonitorLevel(severity="critical", alpha=0.001, absent=(1024,)),),
    strata=(
        MonitorStratum(max_tokens=64, warning=1.0, critical=2.0, clear=0.25),
        MonitorStratum(max_tokens=1024, warning=1.5, critical=None, clear=0.75),
    ),
    roles=("assistant", "user"),
    calibration_method="conformal_by_length",
    limits="It does not show lies.",
    validated_reason="Never evaluated.",
    calibration={"num_replies": 1200},
    evidence={"auroc": 0.75},
)


def test_the_brief_account():
    assert brief(MONITOR).plain.splitlines() == [
        "monitor deception (critical, NOT VALIDATED): Says what it does not hold true.",
        "  fires above 1, clears below 0.25, mean over 16 tokens, from 8 tokens on, on words of assistant, user",
        "  by length: up to 64 tokens warning 1, critical 2; up to 1024 tokens warning 1.5",
        "  no critical in the strata up to 1024 tokens: too few replies to set it by",
        "  threshold from: Benign replies.",
        "  limits: It does not show lies.",
        "  not validated: Never evaluated.",
        "  pack: ensemble, version 4, sha256 abababababab",
    ]


def test_a_mismatch_is_told_loudly():
    text = brief(replace(MONITOR, mismatches=("bindings.dtype: wanted a, got b",))).plain
    assert "\n  MISMATCH: bindings.dtype: wanted a, got b\n" in text


def test_the_whole_account_has_components_calibration_and_evidence():
    text = "\n".join(part.plain for part in whole(MONITOR))
    for line in (
        "  stance: What it was told. (probe at layers.2.output, lda)",
        "  latents: Words of deceit. (latents 3, 41)",
        "  score: min of stance, latents",
        "num_replies: 1200",
        "auroc: 0.75",
    ):
        assert line in text.splitlines()


def test_evidence_is_told_in_lines_that_people_read_and_in_one_order():
    share = {"num": 1251.0, "share": 0.0016, "low": 0.0002, "high": 0.0058, "count": 2.0}
    facts = {
        "strata": {"256": {"warning": share, "critical": share}, "64": {"critical": share, "warning": share}},
        "needed": {"critical": 999.0, "warning": 99.0},
        "auroc": {"low": 0.9, "high": 0.97, "mean": 0.9412, "num_low": 4.0},
        "unknown": {"low": None, "high": None, "mean": None},
        "none": share | {"share": None},
        "seen_groups": ["ab"] * 400,
        "layers": [1.0, 2.5],
    }
    told = {"warning": "0.16% (2 of 1251; 0.02% to 0.58%)", "critical": None}
    assert list(readable(facts, ["warning"]).items()) == [
        ("auroc", "0.941 [0.900, 0.970], num_low 4"),
        ("layers", [1, 2.5]),
        ("needed", {"warning": 99, "critical": 999}),
        ("none", None),
        ("seen_groups", "400 of them: see --json"),
        ("strata", {"64": told, "256": told}),
        ("unknown", {"high": None, "low": None, "mean": None}),
    ]
    assert list(readable(facts, ["warning"])["strata"]) == ["64", "256"]
    assert readable(facts, ["warning", "critical"])["strata"]["64"]["critical"] == told["warning"]


def test_cautions_come_before_scores_that_they_are_about():
    assert cautions([MONITOR]) is None
    b = replace(MONITOR, name="b", mismatches=("m",), cautions=("c", "d"))
    told = cautions([MONITOR, b, replace(MONITOR, name="x", cautions=("d",))])
    assert told is not None and told.plain == "b: m.\nb: c.\nb, x: d."


def test_what_a_server_says_can_not_move_the_cursor():
    evil = replace(MONITOR, description="\x1b[2J", limits="\x1b[2J", evidence={"x": "\x1b[2J"}, cautions=("\x1b[2J",))
    told = cautions([evil])
    assert told is not None
    assert "\x1b" not in "".join(part.plain for part in (*whole(evil), told))
