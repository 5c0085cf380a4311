"""A journal for other programs: its lines as they are, alerts as JSON or a table, and reviewed alerts as labelled data.

The lines of `write_lines` are the journal: each names the sha256 of the one before, which `sha256sum` can check. The
others are copies to work with, newest alert first.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from monitors.alert_record import BASELINE_SUFFIX, KeptText, plain
from monitors.canonical_json import canonical
from monitors.errors import JournalError, Problem
from monitors.journal_reader import JournalReader, KeptAlert

DATASET = "reviewed-alerts"
"""`dataset` of labelled data, unless another is given."""
SCORED_ROLES = ("assistant", "text")
"""Roles that the last message of labelled data may have: the one that is scored."""
LABELS = {"true": 1, "false": 0, "unsure": None}
_GROUP_ROWS = 1000


def write_lines(reader: JournalReader, file: IO[str]) -> int:
    """Every line of every journal here, as it is kept, oldest first; how many."""
    num = 0
    for journal in reader.heads():
        for line in reader.lines(journal):
            file.write(line + "\n")
            num += 1
    return num


def write_alerts(alerts: Iterable[KeptAlert], file: IO[str]) -> int:
    """One JSON object for each alert, with what was said of it; how many."""
    return sum(file.write(canonical(as_json(kept)) + "\n") > 0 for kept in alerts)


def as_json(kept: KeptAlert) -> dict[str, Any]:
    """An alert with its place in the journal and what was said of it, as JSON's own types."""
    return plain(kept.record) | {
        "journal": kept.journal,
        "seq": kept.seq,
        "hash": kept.hash,
        "acknowledgements": [plain(said) for said in kept.acknowledgements],
        "reviews": [plain(said) for said in kept.reviews],
    }


def write_parquet(alerts: Iterable[KeptAlert], path: Path) -> int:
    """One row for each alert: the columns that one searches and counts by, and `record`, all of it as JSON; how many.

    Raises JournalError if the library pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        wanted = "the library pyarrow: `pip install 'telltale-llm[parquet]'`"
        raise JournalError(Problem("format parquet", wanted, str(error))) from None
    fields = [
        *((name, pyarrow.string()) for name in ("id", "journal")),
        ("seq", pyarrow.int64()),
        ("time", pyarrow.timestamp("us", tz="UTC")),
        *((name, pyarrow.string()) for name in ("request_id", "label", "monitor", "pack_version", "pack_sha256")),
        *((name, pyarrow.string()) for name in ("state", "level", "role", "action")),
        ("validated", pyarrow.bool_()),
        *((name, pyarrow.int64()) for name in ("span_start", "position")),
        *((name, pyarrow.float64()) for name in ("score", "threshold")),
        ("component_scores", pyarrow.map_(pyarrow.string(), pyarrow.float64())),
        ("span", pyarrow.string()),
        *((name, pyarrow.string()) for name in ("verdict", "reviewer", "note")),
        ("acknowledged", pyarrow.bool_()),
        ("record", pyarrow.string()),
    ]
    schema, num = pyarrow.schema(fields), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in _groups(map(_flat, alerts)):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            num += len(rows)
    return num


def labelled(kept: KeptAlert, dataset: str = DATASET) -> dict[str, Any] | None:
    """A reviewed alert as a labelled conversation: its span, with label 1 (true), 0 (false) or null (unsure).

    None for one that nobody reviewed, and for one of whose span there is no text: it was not kept, or its tokens
    are special ones, which say nothing, and no reader of labelled data takes an empty range. None too for one in a
    system's or a user's words: labelled data scores an assistant's message, or plain text. All alerts of a request are
    one group, those of its unsteered twin among them: they share the prompt, and often words of the reply.
    """
    record, review = kept.record, kept.review
    if review is None or not isinstance(record.text, KeptText) or not record.text.span:
        return None
    text = record.text
    if text.messages[-1].role not in SCORED_ROLES:
        return None
    return {
        "id": record.id,
        "dataset": dataset,
        "messages": [plain(message) for message in text.messages],
        "score_from_char": text.span_from_char,
        "score_to_char": text.span_to_char,
        "label": LABELS[review.verdict],
        "group": record.request_id.removesuffix(BASELINE_SUFFIX),
        "source_model": record.model.name if record.generated else None,
        "on_policy": record.generated,
        "meta": {
            "monitor": record.monitor,
            "pack_sha256": None if record.pack is None else record.pack.sha256,
            "level": record.level,
            "score": record.score,
            "threshold": record.threshold,
            "steered": bool(record.steering),
            "reviewer": review.reviewer,
            "note": review.note,
            "model_sha256": record.model.sha256,
            "quantization": record.model.quantization,
        },
    }


def write_labelled(alerts: Iterable[KeptAlert], file: IO[str], dataset: str = DATASET) -> tuple[int, int]:
    """The reviewed alerts among these as labelled conversations; how many, and how many were left out."""
    num = num_left_out = 0
    for kept in alerts:
        example = labelled(kept, dataset)
        if example is not None:
            file.write(json.dumps(example, ensure_ascii=False) + "\n")
            num += 1
        elif kept.review is not None:
            num_left_out += 1
    return num, num_left_out


def _flat(kept: KeptAlert) -> dict[str, Any]:
    record, review = kept.record, kept.review
    names = "id", "time", "request_id", "label", "monitor", "state", "level", "role", "action", "validated"
    fields = {name: getattr(record, name) for name in (*names, "span_start", "position", "score", "threshold")}
    return fields | {
        "journal": kept.journal,
        "seq": kept.seq,
        "pack_version": None if record.pack is None else record.pack.version,
        "pack_sha256": None if record.pack is None else record.pack.sha256,
        "component_scores": [(part.name, part.score) for part in record.components],
        "span": record.text.span if isinstance(record.text, KeptText) else None,
        "verdict": None if review is None else review.verdict,
        "reviewer": None if review is None else review.reviewer,
        "note": None if review is None else review.note,
        "acknowledged": bool(kept.acknowledgements),
        "record": canonical(plain(record)),
    }


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for first in rows:
        yield [first, *islice(rows, _GROUP_ROWS - 1)]
