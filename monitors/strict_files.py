"""Files that people edit, read strictly and written whole.

A key too many, a number as a string, a key given twice is refused, and one error lists everything wrong, because a file
that is half understood makes a monitor that is half on. Files are YAML or JSON; both are checked as JSON.
"""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.events import AliasEvent, ScalarEvent

from monitors.canonical_json import canonical, sha256_of
from monitors.errors import MonitorError, Problem, shown

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
"""Holds for the plain dataclasses inside as well, which run their own __post_init__ too."""


MAX_DEPTH = 64
"""Of lists and mappings in each other: one limit, where Python's own would depend on the parser and on who calls."""


def content_sha256(value: Any) -> str:
    """Hash of a JSON value, whatever the file that holds it looks like."""
    return sha256_of(canonical(value))


def read_yaml(text: bytes) -> Any:
    """A JSON value from YAML, the same wherever it is read. MonitorError for what is no YAML, gives a key twice, nests
    deeper than `MAX_DEPTH`, or has values that JSON has not."""
    try:
        value = _load(text)
        json.dumps(value)  # NaN goes through, so that the check of its field finds it and says where it is
        return value
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MonitorError(Problem("file", "YAML", " ".join(str(error).split()))) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise MonitorError(Problem("file", "YAML of texts, numbers, lists and mappings alone", str(error))) from error


def to_yaml(value: Any) -> str:
    """A JSON value as YAML, keys in their order."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))


def problems_of(error: ValidationError) -> list[Problem]:
    """Every fault that pydantic found, in our terms."""
    return [problem for detail in error.errors() for problem in _problems(detail)]


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one step: a reader sees the old file or the new one, never half of one."""
    # In the same folder, because a rename is atomic only within one file system.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _load(text: bytes) -> Any:
    """What the last loader makes of it, wherever this runs; by the first where that is the same for sure. Where the
    first refuses, the last says why, if it does."""
    for loader in LOADERS[:-1]:
        with contextlib.suppress(yaml.YAMLError):
            return yaml.load(text, loader)
    return yaml.load(text, LOADERS[-1])


class _Strict(Composer, SafeConstructor):
    """Refuses what YAML allows and nobody means: a key twice (the last would win), and anchors, of which a few lines
    can stand for any amount of text. To be mixed into a safe loader."""

    depth = 0

    def compose_node(self: Any, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "anchors and aliases are not allowed", event.start_mark)
        if self.depth > MAX_DEPTH:
            why = f"lists and mappings are in each other more than {MAX_DEPTH} deep"
            raise yaml.constructor.ConstructorError(None, None, why, event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self: Any, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _PythonLoader(_Strict, yaml.SafeLoader):
    """Parses in Python."""


LOADERS: list[Any] = [_PythonLoader]
"""The fastest first; the last decides."""

_PLAIN_TEXT = re.compile("[\n -~\u00a0-\ud7ff]*")
"""Without tabs, carriage returns, controls and byte order marks."""

if yaml.__with_libyaml__:

    class _CLoader(_Strict, yaml.CSafeLoader):
        """Parses in C, a fifth of the time; what is parsed is composed in Python all the same, where it is checked.

        libyaml and PyYAML's own parser make different things of some texts: of tabs, of tags, of what follows `|` and
        `>`, of punctuation within brackets. So this takes only texts without any of these, and refuses others.
        """

        def __init__(self, stream: bytes) -> None:
            if not _PLAIN_TEXT.fullmatch(stream.decode(errors="replace")):
                raise yaml.YAMLError("characters that parsers differ in")
            yaml.CSafeLoader.__init__(self, stream)
            Composer.__init__(self)

        def compose_node(self: Any, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if getattr(event, "tag", None) is not None or (
                isinstance(event, ScalarEvent) and event.style in ("|", ">")
            ):
                raise yaml.YAMLError("a tag, or a text in lines of its own")
            node = super().compose_node(parent, index)
            if getattr(node, "flow_style", False) and node.value:
                raise yaml.YAMLError("brackets that hold something")
            return node

    LOADERS.insert(0, _CLoader)


def _problems(detail: ErrorDetails) -> Iterable[Problem]:
    """pydantic's account of one fault."""
    place = ".".join(str(part) for part in detail["loc"])
    field = place or "file"
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":  # raised by one of our own dataclasses
            return [problem.within(place) for problem in context["error"].problems]
        case "json_invalid":
            return [Problem("file", "JSON", str(context["error"]))]
        case "missing":
            return [Problem(field, "a value", "nothing")]
        case "extra_forbidden" | "unexpected_keyword_argument":
            return [Problem(field, "no such key", shown(detail["input"]))]
        case _:
            wanted = detail["msg"].removeprefix("Input should be ")
            return [Problem(field, wanted, shown(detail["input"]))]
