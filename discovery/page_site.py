"""A folder of pages that opens without a network: HTML from templates, one style sheet, scripts and data beside it.

Data for scripts lies in `.js` files that set a variable, because pages opened as files may not fetch others. All text
of models and corpora is untrusted: the templates escape it, and the scripts put it in as text.

The folder appears whole: it is built beside the old one, as `FOLDER.partial`, and takes its place at the end. A kill
between those two renames leaves the old pages under `FOLDER.old`; the next site at that place puts them back before all
else. No folder is deleted but an empty one and those that hold our marker, which is the first file that is written.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from jinja2 import Environment, PackageLoader, StrictUndefined

from discovery.errors import LabError, PageError
from discovery.output_places import check_output
from sae_runtime.errors import plain_reason

MARKER = "telltale-pages.json"
"""Says that a folder is ours, and may be replaced."""

_ASSETS = ("style.css", "index.js", "plots.js")


class Link(NamedTuple):
    """One entry of the bar at the top."""

    href: str
    text: str


class SiteFacts(NamedTuple):
    """What every page shows."""

    name: str
    footer: str
    links: list[Link]
    has_search: bool = True
    """Whether there is an index of latents to search."""


def check_site(name: str, folder: Path | None) -> None:
    """PageError or LabError if the folder that the flag `name` gives can't be made, or replaced; or if what isn't ours
    has one of the names that it takes on the way. None is none."""
    check_output(name, folder, is_folder=True, is_replaced=True)
    if folder is None:
        return
    if not _is_ours(folder):
        raise PageError(f"{name} {folder} must be a new folder or one of pages, got one without {MARKER}")
    for other in (_draft_of(folder), _old_of(folder)):
        if not _is_ours(other):
            raise PageError(f"{other} is in the way of {name} {folder}: it must not be there, or hold {MARKER}")


def _draft_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _old_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def _is_ours(folder: Path) -> bool:
    """Whether it may be deleted: there is nothing at its place, or in it, or it holds our marker."""
    if not folder.is_dir():
        return not os.path.lexists(folder)
    return (folder / MARKER).is_file() or not any(folder.iterdir())


def _delete(folder: Path) -> None:
    """What `_is_ours`, as far as it can be deleted; of a link, the link alone. What a kill leaves still is ours."""
    with suppress(OSError):
        if folder.is_symlink():
            folder.unlink()
            return
        for path in sorted(folder.iterdir(), key=lambda path: path.name == MARKER):  # the marker last
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        folder.rmdir()


class Site:
    """A folder in the making. Used as a context: left without an error, it takes the place of `folder`."""

    def __init__(self, folder: Path, facts: SiteFacts) -> None:
        check_site("output", folder)
        self.folder, self.facts = folder, facts
        self._draft, self._old = _draft_of(folder), _old_of(folder)
        if not folder.exists() and (self._old / MARKER).is_file():
            self._old.replace(folder)
        self._templates = Environment(
            loader=PackageLoader("discovery"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def __enter__(self) -> Self:
        _delete(self._draft)
        try:
            with self._named(""):
                self._draft.mkdir(parents=True)
            self.write(MARKER, json.dumps({"name": self.facts.name}))
            with self._named(""):
                (self._draft / "assets").mkdir()
                (self._draft / "latents").mkdir()
            for name in _ASSETS:
                text = resources.files("discovery").joinpath("templates", "assets", name).read_text(encoding="utf-8")
                self.write(f"assets/{name}", text)
        except PageError:
            _delete(self._draft)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            _delete(self._draft)
            return
        try:
            check_site("output", self.folder)  # the work took its time
        except LabError:
            _delete(self._draft)
            raise
        _delete(self._old)
        if self.folder.exists():
            self.folder.replace(self._old)
        self._draft.replace(self.folder)
        _delete(self._old)

    def write(self, path: str, text: str) -> None:
        """One file, by its path from the folder. PageError if the disk is full."""
        with self._named(path):
            (self._draft / path).write_text(text, encoding="utf-8", errors="replace")

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """PageError for what can't be written in the block: a full disk says nothing of the file."""
        try:
            yield
        except OSError as error:
            kept = "the pages that are there stay as they are" if self.folder.exists() else "there are no pages"
            raise PageError(f"{self.folder / path} can't be written: {plain_reason(error)}; {kept}") from error

    def write_page(self, path: str, template: str, **values: Any) -> None:
        """One page."""
        root = "../" * path.count("/")
        page = self._templates.get_template(template).render(site=self.facts, root=root, here=path, **values)
        self.write(path, page)

    def write_data(self, path: str, variable: str, value: Any) -> None:
        """Data for scripts, as `window.<variable>`."""
        # Escaped to ASCII, and so that no text could end a script if it were put into a page.
        text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
        self.write(path, f"window.{variable}={text};\n")

    def write_plotly(self) -> None:
        """The one script that plots need; once, beside the pages."""
        from plotly.offline import get_plotlyjs  # late: it reads megabytes

        self.write("assets/plotly.min.js", get_plotlyjs())

    @property
    def num_bytes(self) -> int:
        """Of the finished folder."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
