"""Metrics of the server's watched features: how strongly they fire, on what share of tokens, and at most per request.

Readings are divided by the feature's reference scale, so that one set of buckets serves all features. A decode step
brings rows x features of them; `prometheus_client.Histogram.observe` takes one value and a lock per call, so
`FeatureHistogram` buckets a whole step in a few numpy calls and exports the very samples `Histogram` would.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import HistogramMetricFamily

from service.records import RequestRecord, StepRecord

MAX_EXPORTED_FEATURES = 64
"""Each watched feature costs about 30 time series."""
READING_BUCKETS = (0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 4)


@dataclass(frozen=True, slots=True)
class WatchedMetric:
    """A server-watched feature as Prometheus sees it."""

    slug: str
    """Label value, `f<latent>` or `f<latent>_<name>`: see `NamedFeature.slug`."""
    reference_scale: float
    """Reading that counts as 1 in the histograms: a high quantile of the feature over ordinary text."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"f[0-9]+(_[a-z0-9_]+)?", self.slug):
            raise ValueError(f"slug must be f<latent> or f<latent>_<lower case name>. Got {self.slug!r}.")
        if not (np.isfinite(self.reference_scale) and self.reference_scale > 0):
            raise ValueError(f"{self.slug}: reference_scale must be > 0. Got {self.reference_scale}.")


class FeatureMetrics:
    """Everything labelled `feature`, and the tokens that count as its denominator."""

    def __init__(self, registry: CollectorRegistry, watched: Sequence[WatchedMetric]) -> None:
        slugs = [metric.slug for metric in watched]
        if len(slugs) > MAX_EXPORTED_FEATURES:
            raise ValueError(f"at most {MAX_EXPORTED_FEATURES} watched features can be exported. Got {len(slugs)}.")
        if len(set(slugs)) != len(slugs):
            raise ValueError(f"watched features must have different slugs. Got {slugs}.")
        counter = partial(Counter, namespace="telltale", registry=registry)
        histogram = partial(FeatureHistogram, features=slugs, buckets=READING_BUCKETS, registry=registry)
        self.scale_W = np.array([metric.reference_scale for metric in watched], dtype=np.float64)
        self.activation = histogram("telltale_feature_activation", "Reading at a token / reference scale.")
        self.request_max = histogram("telltale_feature_request_max", "Largest reading in a request / reference scale.")
        active = counter("feature_active_tokens", "Tokens at which the feature was active.", ["feature"])
        self.active = [active.labels(slug) for slug in slugs]
        self.observed = counter("feature_tokens_observed", "Tokens read for the watched features.")

    def observe_step(self, record: StepRecord) -> None:
        if not len(record.readings_NW):
            return
        readings_NW = record.readings_NW.astype(np.float64)
        finite_N = np.isfinite(readings_NW).all(axis=1)
        if not finite_N.all():
            readings_NW = readings_NW[finite_N]
        self.observed.inc(len(readings_NW))
        self.activation.observe(self._normalise(readings_NW))
        for index, num_active in enumerate(np.count_nonzero(readings_NW > 0, axis=0).tolist()):
            if num_active:
                self.active[index].inc(num_active)

    def observe_request(self, record: RequestRecord) -> None:
        if record.feature_max_W and np.isfinite(record.feature_max_W).all():
            self.request_max.observe(self._normalise(np.array([record.feature_max_W])))

    def _normalise(self, readings_NW: NDArray[np.float64]) -> NDArray[np.float64]:
        # Checked, because a single column would broadcast to every feature.
        assert readings_NW.shape[1:] == self.scale_W.shape, (readings_NW.shape, self.scale_W.shape)
        return readings_NW / self.scale_W


class FeatureHistogram:
    """Histogram with the single label `feature`, whose values are fixed when it is made."""

    def __init__(
        self,
        name: str,
        documentation: str,
        *,
        features: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        if list(buckets) != sorted(set(buckets)):
            raise ValueError(f"buckets must be strictly increasing. Got {list(buckets)}.")
        self._name = name
        self._documentation = documentation
        self._features = tuple(features)
        self._bounds = np.array(buckets, dtype=np.float64)
        self._num_buckets = len(buckets) + 1  # the last one ends at +Inf
        self._first_bucket_W = np.arange(len(self._features)) * self._num_buckets
        self._counts = np.zeros((len(self._features), self._num_buckets), dtype=np.int64)
        self._sum_W = np.zeros(len(self._features))
        self._lock = Lock()
        registry.register(self)

    def observe(self, values_NW: NDArray[np.float64]) -> None:
        """Count one value per feature (column) and line. All must be finite: one NaN would stay in the sum."""
        # `left` puts a value equal to a bound into that bound's bucket: Prometheus counts value <= bound.
        bucket_NW = np.searchsorted(self._bounds, values_NW, side="left")
        flat = (bucket_NW + self._first_bucket_W).ravel()
        counts = np.bincount(flat, minlength=self._counts.size).reshape(self._counts.shape)
        sum_W = values_NW.sum(axis=0)
        with self._lock:
            self._counts += counts
            self._sum_W += sum_W

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The family without samples: the registry asks for names when this registers itself."""
        return [HistogramMetricFamily(self._name, self._documentation, labels=["feature"])]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        with self._lock:
            cumulative = self._counts.cumsum(axis=1).tolist()
            sums = self._sum_W.tolist()
        bounds = [*(str(bound) for bound in self._bounds.tolist()), "+Inf"]
        family = HistogramMetricFamily(self._name, self._documentation, labels=["feature"])
        for feature, counts, total in zip(self._features, cumulative, sums, strict=True):
            family.add_metric([feature], buckets=list(zip(bounds, counts, strict=True)), sum_value=total)
        return [family]
