"""A steered request's unsteered twin -> wire messages."""

from collections.abc import Iterable, Iterator
from typing import Any

from telltale.v1 import generation_pb2

from monitors.track import MonitorSummary
from service.request import FinishedEvent, TwinReport


def baseline(response: Any) -> Any:
    """A GenerateResponse of the twin's as one of the request's, marked."""
    kind = response.WhichOneof("event")
    event = generation_pb2.BaselineEvent(**{kind: getattr(response, kind)})
    return generation_pb2.GenerateResponse(baseline=event)


def twin(report: TwinReport, end: FinishedEvent, baseline_end: Any) -> Any:
    """The report of a request that ended with `end`; `baseline_end` is the twin's Finished message."""
    return generation_pb2.Twin(
        baseline=baseline_end,
        features=[
            generation_pb2.FeatureDifference(
                feature=one.latent,
                mean=one.mean,
                baseline_mean=one.baseline_mean,
                max=one.max,
                baseline_max=one.baseline_max,
                steered_mean=one.steered_mean,
                steered_max=one.steered_max,
            )
            for one in report.features
        ],
        monitors=_monitors(end.monitors, report.baseline.monitors),
        first_difference_position=report.first_difference_position,
        text=report.text,
        baseline_text=report.baseline_text,
    )


def _monitors(steered: Iterable[MonitorSummary], baseline: Iterable[MonitorSummary]) -> Iterator[Any]:
    """Of the assistant's words; the prompt is the same for both."""
    for one, other in zip(steered, baseline, strict=True):
        if one.role == "assistant":
            yield generation_pb2.MonitorDifference(
                monitor=one.monitor,
                max_score=one.max_score,
                baseline_max_score=other.max_score,
                mean_score=one.mean_score,
                baseline_mean_score=other.mean_score,
                fired=one.num_fired > 0,
                baseline_fired=other.num_fired > 0,
            )
