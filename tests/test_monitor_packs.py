"""Packs in folders: which are loaded, which are left out, and which are refused."""

import logging
from dataclasses import replace

import pytest
import tiny_packs
from tiny_packs import SERVED

from monitors.errors import PackError
from monitors.pack import PACK_SUFFIX, MonitorPack
from service.monitor_packs import SHIPPED_PACKS, ServedMonitor, added_monitors, merged, shipped_monitors

PACK = tiny_packs.pack()
OTHER_MODEL = replace(PACK, name="other", bindings=replace(PACK.bindings, model_sha256="e" * 64))
OTHER_DICTIONARY = replace(PACK, name="elsewhere", bindings=replace(PACK.bindings, sae_sha256="d" * 64))
FROZEN = replace(PACK, name="frozen", thresholds=None, calibration=None)


def folder_of(path, *packs: MonitorPack):
    path.mkdir(exist_ok=True)
    for pack in packs:
        pack.save(path / f"{pack.name}{PACK_SUFFIX}")
    return path


def names(monitors) -> list[str]:
    return [monitor.pack.name for monitor in monitors]


def test_shipped_packs_that_do_not_fit_are_left_out_and_the_log_says_why(tmp_path, caplog):
    folder_of(tmp_path / "tiny", PACK, OTHER_MODEL, OTHER_DICTIONARY, FROZEN)
    folder_of(tmp_path / "large", replace(PACK, name="of_another_model"))
    with caplog.at_level(logging.WARNING):
        found = shipped_monitors(SERVED, allow_unverified=False, root=tmp_path)
    assert names(found) == ["watcher"]
    log = "\n".join(record.message for record in caplog.records)
    for name, why in (("other", "model_sha256"), ("elsewhere", "sae_sha256"), ("frozen", "thresholds")):
        assert f"monitor {name} is not loaded: " in log
        assert why in log
    unverified = shipped_monitors(SERVED, allow_unverified=True, root=tmp_path)
    assert names(unverified) == ["other", "watcher"]
    assert [bool(monitor.mismatches) for monitor in unverified] == [True, False]


def test_a_model_of_the_hub_is_found_under_its_own_name(tmp_path):
    folder_of(tmp_path / "tiny", PACK)
    served = replace(SERVED, model_name="somebody/tiny")
    assert names(shipped_monitors(served, allow_unverified=False, root=tmp_path)) == ["watcher"]
    assert shipped_monitors(replace(SERVED, model_name="x"), allow_unverified=False, root=tmp_path) == []


@pytest.mark.parametrize("unverified", [False, True])
@pytest.mark.parametrize(
    ("pack", "field"),
    [(OTHER_DICTIONARY, "bindings.sae_sha256"), (FROZEN, "thresholds")],
)
def test_an_added_pack_that_can_not_run_is_refused_in_any_case(tmp_path, pack, field, unverified):
    folder_of(tmp_path / "packs", PACK, pack)
    with pytest.raises(PackError) as refused:
        added_monitors(tmp_path / "packs", SERVED, allow_unverified=unverified)
    assert [problem.field for problem in refused.value.problems] == [field]
    assert refused.value.path == tmp_path / "packs" / f"{pack.name}{PACK_SUFFIX}"


def test_an_added_pack_of_another_model_needs_the_flag(tmp_path):
    folder_of(tmp_path / "packs", OTHER_MODEL)
    with pytest.raises(PackError, match=r"bindings\.model_sha256: .*\nallow_unverified: wanted true"):
        added_monitors(tmp_path / "packs", SERVED, allow_unverified=False)
    [monitor] = added_monitors(tmp_path / "packs", SERVED, allow_unverified=True)
    assert monitor.mismatches[0].startswith("bindings.model_sha256: wanted")


def test_a_folder_without_packs_is_refused(tmp_path):
    with pytest.raises(PackError, match=r"^monitor_packs: wanted a folder with files \*\.pack\.yaml, got .* has none$"):
        added_monitors(tmp_path, SERVED, allow_unverified=False)


def test_a_broken_pack_is_refused_with_its_path(tmp_path):
    (tmp_path / "x.pack.yaml").write_text("name: [")
    with pytest.raises(PackError, match=rf"^cannot use monitor pack {tmp_path / 'x.pack.yaml'}:"):
        added_monitors(tmp_path, SERVED, allow_unverified=False)


def test_an_added_pack_replaces_a_shipped_one_of_its_name():
    newer = replace(PACK, version=2)
    both = merged([ServedMonitor(PACK), ServedMonitor(OTHER_MODEL)], [ServedMonitor(newer)])
    assert [(monitor.pack.name, monitor.pack.version) for monitor in both] == [("other", 1), ("watcher", 2)]


def test_two_added_packs_of_one_name_are_refused():
    with pytest.raises(PackError, match=r"^monitor_packs: wanted one pack of each name, got two called 'watcher'$"):
        merged([], [ServedMonitor(PACK), ServedMonitor(PACK)])


@pytest.mark.parametrize("path", sorted(SHIPPED_PACKS.glob(f"*/*{PACK_SUFFIX}")), ids=lambda path: path.stem)
def test_every_shipped_pack_can_be_read_and_says_what_it_does_not_show(path):
    pack = MonitorPack.load(path)
    assert path.name == f"{pack.name}{PACK_SUFFIX}"
    assert path.parent.name == pack.bindings.model_name.rsplit("/", 1)[-1]
    assert pack.thresholds is not None
    assert len(pack.limits) > 40 and len(pack.validated_reason) > 20


def test_there_are_shipped_packs():
    assert {"lying", "medical"} <= {path.name.split(".")[0] for path in SHIPPED_PACKS.glob(f"*/*{PACK_SUFFIX}")}
