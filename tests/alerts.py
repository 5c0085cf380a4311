"""Alerts made up for tests of the journal. Plain data: nothing here needs a model."""

from datetime import UTC, datetime, timedelta
from typing import Any

from monitors.alert_record import (
    AlertRecord,
    Component,
    FeatureShare,
    Generation,
    KeptText,
    Message,
    ModelRef,
    PackRef,
    SaeRef,
    Series,
    SteeringRef,
)
from monitors.time_ids import new_id

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
ABC = ["a" * 64, "b" * 64, "c" * 64]


def text(reply: str = " a lie that nobody believed", **changes: Any) -> KeptText:
    """A question and the beginning of a reply, of which the last four characters raised the alert."""
    fields: dict[str, Any] = {
        "messages": (Message(role="user", content="Tell me something."), Message(role="assistant", content=reply)),
        "span_from_char": len(reply) - 4,
        "span_to_char": len(reply),
        "prompt_ids": (1, 50, 51, 52),
        "reply_ids": (7, 8, 9),
        "stop": ("\n\n",),
    }
    return KeptText(**(fields | changes))


def alert(number: int = 0, **changes: Any) -> AlertRecord:
    """The alert raised `number` seconds after `START`."""
    fields: dict[str, Any] = {
        "id": new_id(),
        "time": START + timedelta(seconds=number),
        "request_id": f"request-{number // 2}",
        "label": "nightly",
        "monitor": "deception",
        "pack": PackRef(version="1.2", sha256=ABC[0]),
        "validated": False,
        "state": "firing",
        "level": "warning",
        "span_start": 5,
        "position": 6,
        "score": 1.25 + number,
        "threshold": 1.0,
        "components": (
            Component(name="disbelief", score=1.5, contribution=0.75),
            Component(name="stance", score=1.0, contribution=0.5),
        ),
        "features": (FeatureShare(feature=2242, contribution=0.125),),
        "readings": (
            Series(name="lying", kind="feature", feature=2242, values=(0.5, 3.25), steered_values=(None, 0.0)),
        ),
        "text": text(),
        "generated": True,
        "generation": Generation(
            temperature=0.7, top_p=1.0, min_p=0.0, repetition_penalty=1.0, top_k=0, max_tokens=64, seed=2**64 - 1
        ),
        "steering": (SteeringRef(feature=3, op="scale", strength=0.0, unit="raw", scope="generated"),),
        "model": ModelRef(name="tiny", sha256=ABC[1], quantization="none", dtype="float32"),
        "sae": SaeRef(name="tiny", sha256=ABC[2], hook_point="layers.1.output"),
        "server_version": "0.1.0",
        "passes": "transformers",
    }
    return AlertRecord(**(fields | changes))
