"""Where a monitor pack is: a file, or a name among the packs of the model that was loaded."""

import argparse
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from discovery.errors import MonitorLabError
from discovery.input_arguments import load_optional_dictionary
from monitors import checks
from monitors.pack import PACK_SUFFIX, MonitorPack
from sae_runtime.checkpoint import MANIFEST_FILE, LoadedSAE, load_manifest, load_sae
from sae_runtime.language_model import LanguageModel

_SHIPPED = "packs"
"""Folder of the package `monitors`; in it one folder per model."""
_DICTIONARIES = "dictionaries"
"""Folder of the package `sae_runtime`."""


def name_for(output: Path) -> str:
    """The monitor's name that a pack file NAME.pack.yaml stands for.

    MonitorLabError if the file is not called so, or a monitor can't be.
    """
    name = output.name.removesuffix(PACK_SUFFIX)
    if name == output.name:
        raise MonitorLabError(f"--output must end with {PACK_SUFFIX}, got {output}")
    if (problem := checks.slug("name", name)) is not None:
        raise MonitorLabError(f"--output must be NAME{PACK_SUFFIX} with {problem.wanted}, got {output.name}")
    return name


def find_pack(asked: str, lm: LanguageModel, folders: Sequence[Path] = ()) -> tuple[MonitorPack, Path]:
    """The pack in the file `asked`, or that of this name in `folders` or among those shipped for the model.

    MonitorLabError names what there is instead.
    """
    if asked.endswith(PACK_SUFFIX):
        path = Path(asked)
        return MonitorPack.load(path), path
    paths = {path.name.removesuffix(PACK_SUFFIX): path for path in _all_paths(lm, folders)}
    if asked not in paths:
        known = ", ".join(sorted(paths)) or "none"
        raise MonitorLabError(
            f"--monitor must be a file NAME{PACK_SUFFIX} or a monitor of {lm.identity.name} ({known}), got {asked!r}"
        )
    return MonitorPack.load(paths[asked]), paths[asked]


class Dictionaries:
    """Those that packs read, each loaded once."""

    def __init__(self, args: argparse.Namespace, lm: LanguageModel) -> None:
        self._args = args
        self._lm = lm
        self._loaded: dict[str | None, LoadedSAE | None] = {}

    def of(self, pack: MonitorPack) -> LoadedSAE | None:
        """That of `--dictionary`; without one the shipped one that the pack is bound to, if there is one."""
        wanted = None if self._args.dictionary is not None else pack.bindings.sae_sha256
        if wanted not in self._loaded:
            self._loaded[wanted] = self._load(wanted)
        return self._loaded[wanted]

    def _load(self, wanted: str | None) -> LoadedSAE | None:
        if wanted is not None:
            for folder in sorted((Path(str(resources.files("sae_runtime"))) / _DICTIONARIES).iterdir()):
                if (folder / MANIFEST_FILE).is_file() and load_manifest(folder).sae_sha256 == wanted:
                    return load_sae(folder, device=self._lm.device)
        return load_optional_dictionary(self._args, self._lm)


def _all_paths(lm: LanguageModel, folders: Sequence[Path]) -> Iterator[Path]:
    """Files of packs; those of later folders take the place of earlier ones of the same name."""
    shipped = Path(str(resources.files("monitors"))) / _SHIPPED
    for path in sorted(shipped.glob(f"*/*{PACK_SUFFIX}")):
        if MonitorPack.load(path).bindings.model_sha256 == lm.identity.weights_sha256:
            yield path
    for folder in folders:
        yield from sorted(folder.glob(f"*{PACK_SUFFIX}"))
