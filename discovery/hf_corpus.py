"""Documents out of Hugging Face datasets.

    hf:PATH_OR_NAME[@CONFIG][:SPLIT[:COLUMN]]          hf-stream: instead of hf: reads a hub dataset while it arrives

PATH is a folder that `Dataset.save_to_disk` wrote, or a folder or file of parquet, arrow, json(l), csv or text; NAME is
a dataset on the hub. SPLIT is `train` if not given, and may be a slice (`train[:1%]`, not with hf-stream). COLUMN is
`text`, `content`, `messages` or the only column that holds text, conversations or token ids.

Local files are read as they are, without a converted copy in the cache. Needs the `datasets` library.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from discovery.contents import Content, problem_of
from discovery.errors import CorpusError
from sae_runtime.errors import one_line

STREAM_PREFIX = "hf-stream:"

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}
_USUAL_COLUMNS = ("text", "content", "messages")
_PATTERN = re.compile(
    r"(?P<kind>hf|hf-stream):(?P<name>[^:@]+)(@(?P<config>[^:]+))?(:(?P<split>[^:\[]+(\[[^\]]*\])?))?(:(?P<column>[^:]+))?"
)


class HfSpec(NamedTuple):
    """What is to be read."""

    name: str
    config: str | None
    split: str
    column: str | None
    streamed: bool


def is_hf_spec(text: str) -> bool:
    return text.startswith(("hf:", STREAM_PREFIX))


def parse_spec(text: str) -> HfSpec:
    """CorpusError if `text` is not of the form above."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise CorpusError(f"a dataset must be given as hf:PATH_OR_NAME[@CONFIG][:SPLIT[:COLUMN]], got {text!r}")
    found = match.groupdict()
    return HfSpec(
        found["name"], found["config"], found["split"] or "train", found["column"], found["kind"] == "hf-stream"
    )


def read_hf(text: str) -> Iterator[tuple[Content, str]]:
    """(content, name of the dataset) of each row, in order. CorpusError names what can't be read."""
    spec = parse_spec(text)
    try:
        rows = iter(_open(spec))
        first = next(rows, None)
        if first is None:
            raise CorpusError(f"{text} has no rows")
        column = spec.column or _column_of(first, text)
        source = Path(spec.name).stem
        yield _content(first, column, text, 1), source
        for number, row in enumerate(rows, start=2):
            yield _content(row, column, text, number), source
    except CorpusError:
        raise
    except (OSError, ValueError) as error:
        # datasets' own errors derive from these; their messages can be pages long.
        raise CorpusError(f"{text} can't be read: {one_line(error)}") from error


def _open(spec: HfSpec) -> Any:
    """The dataset, as an iterable of rows."""
    import datasets  # late: takes a second, and most corpora are plain files

    path = Path(spec.name)
    if not path.exists():
        return datasets.load_dataset(spec.name, spec.config, split=spec.split, streaming=spec.streamed)
    if path.is_file():
        suffix = Path(path.name.removesuffix(".gz")).suffix
        if suffix not in _BUILDERS:
            raise CorpusError(f"{path} must be one of {', '.join(_BUILDERS)}, got {suffix or 'no suffix'}")
        return datasets.load_dataset(_BUILDERS[suffix], data_files=str(path), split="train", streaming=True)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        found = datasets.load_from_disk(str(path))
        return _split_of(found, spec) if isinstance(found, dict) else found
    return datasets.load_dataset(str(path), spec.config, split=spec.split, streaming="[" not in spec.split)


def _split_of(found: Any, spec: HfSpec) -> Any:
    if spec.split not in found:
        raise CorpusError(f"split of {spec.name} must be one of {', '.join(sorted(found))}, got {spec.split!r}")
    return found[spec.split]


def _column_of(row: dict[str, Any], text: str) -> str:
    for name in _USUAL_COLUMNS:
        if name in row:
            return name
    fitting = [name for name, value in row.items() if problem_of(value) is None]
    if len(fitting) != 1:
        raise CorpusError(f"{text} must name its column: it has {', '.join(sorted(row))}")
    return fitting[0]


def _content(row: dict[str, Any], column: str, text: str, number: int) -> Content:
    if column not in row:
        raise CorpusError(f"column of {text} must be one of {', '.join(sorted(row))}, got {column!r}")
    content: Content = row[column]
    if problem := problem_of(content):
        raise CorpusError(f"{text}, row {number}: column {column} must be {problem}")
    return content
