"""Counters against ground truth: what a scripted run did is what the registry shows."""

import re
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import tiny_guards
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from monitors.journal_precision import Precision
from monitors.watchlist import NamedFeature
from service.feature_metrics import MAX_EXPORTED_FEATURES, READING_BUCKETS, FeatureHistogram, FeatureMetrics
from service.guard_metrics import GuardMetrics
from service.journal_keeper import JournalStatus
from service.journal_metrics import VERDICTS, JournalMetrics
from service.metrics import Metrics, WatchedMetric
from service.records import EngineState, Outcome, Phase, RequestRecord, RowFailure, StepRecord

DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"
WATCHED = [WatchedMetric("f123_lying", 2.0), WatchedMetric("f7", 0.5)]


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return make_metrics(registry)


def make_metrics(registry, watched=WATCHED):
    return Metrics(
        registry,
        watched=watched,
        monitors={"deception": [("warning", "assistant"), ("critical", "assistant"), ("critical", "user")]},
        queue_limit=64,
        model="tiny",
        sae="tiny-sae",
        quantization="q4_1",
        version="0.1.0",
    )


def step(phase=Phase.DECODE, readings=(), **changes):
    readings_NW = np.array(readings, dtype=np.float32).reshape(-1, len(WATCHED))
    num_tokens = max(len(readings_NW), 1)
    record = StepRecord(
        phase=phase,
        num_rows=num_tokens if phase is Phase.DECODE else 1,
        num_tokens=num_tokens,
        num_tapped_tokens=num_tokens,
        step_seconds=0.02,
        encode_seconds=0.002,
        num_nonfinite_tokens=0,
        readings_NW=readings_NW,
    )
    return replace(record, **changes)


def request(outcome=Outcome.EOS, **changes):
    record = RequestRecord(
        outcome=outcome,
        prompt_tokens=5,
        completion_tokens=3,
        duration_seconds=1.0,
        queue_seconds=0.1,
        prefill_seconds=0.2,
        decode_seconds=0.7,
        time_to_first_token_seconds=0.3,
        feature_max_W=[4.0, 0.0],
    )
    return replace(record, **changes)


def value(registry, name, **labels):
    """A sample as it is exported: the text is parsed, so that the exposition is tested too."""
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_counters_equal_a_scripted_run(registry, metrics):
    # Two requests of 5 and 3 prompt tokens; they then decode together for 2 steps, one is cancelled, the other goes on.
    steps = [
        step(Phase.PREFILL, [[1, 0]] * 4, num_tokens=5, num_tapped_tokens=5),  # position 0 has no reading
        step(Phase.PREFILL, [[0, 0]] * 2, num_tokens=3, num_tapped_tokens=3),
        step(readings=[[2, 0.5], [0, 0.5]]),
        step(readings=[[2, 0], [0, 0]], inter_token_seconds=[0.02, 0.03]),
        step(readings=[[2, 0]], inter_token_seconds=[0.02]),
    ]
    for record in steps:
        metrics.observe_step(record)
    metrics.observe_request(request(prompt_tokens=5, completion_tokens=3))
    metrics.observe_request(request(Outcome.CANCELLED, prompt_tokens=3, completion_tokens=2))

    expected = {
        "telltale_prompt_tokens_total": 8,
        "telltale_generation_tokens_total": 5,  # the cancelled request's two are in it
        "telltale_forward_tokens_total": 13,
        "telltale_tapped_tokens_total": 13,
        "telltale_feature_tokens_observed_total": 11,
        "telltale_inter_token_latency_seconds_count": 3,
        "telltale_engine_step_batch_size_count": 3,
        "telltale_engine_step_batch_size_sum": 5,
        "telltale_sae_encode_seconds_count": 5,
        "telltale_request_prompt_tokens_sum": 8,
        "telltale_request_generation_tokens_sum": 5,
        "telltale_request_duration_seconds_count": 2,
    }
    assert {name: value(registry, name) for name in expected} == expected
    assert value(registry, "telltale_engine_step_seconds_count", phase="prefill") == 2
    assert value(registry, "telltale_engine_step_seconds_count", phase="decode") == 3
    assert value(registry, "telltale_feature_active_tokens_total", feature="f123_lying") == 7
    assert value(registry, "telltale_feature_active_tokens_total", feature="f7") == 2


def test_a_tap_that_missed_tokens_shows(registry, metrics):
    metrics.observe_step(step(num_tokens=16, num_tapped_tokens=15))
    assert value(registry, "telltale_forward_tokens_total") - value(registry, "telltale_tapped_tokens_total") == 1


def test_a_tap_that_saw_nothing_shows(registry, metrics):
    metrics.observe_failure(RowFailure(Phase.DECODE, num_tokens=3, num_tapped_tokens=0))
    assert value(registry, "telltale_forward_tokens_total") - value(registry, "telltale_tapped_tokens_total") == 3
    assert value(registry, "telltale_engine_step_failures_total", phase="decode") == 1


def test_failures_are_counted(registry, metrics):
    metrics.observe_step(step(num_nonfinite_tokens=1))
    metrics.observe_failure(RowFailure(Phase.DECODE))
    metrics.observe_failure(RowFailure(Phase.DECODE))
    assert value(registry, "telltale_engine_step_failures_total", phase="decode") == 2
    assert value(registry, "telltale_engine_step_failures_total", phase="prefill") == 0
    assert value(registry, "telltale_sae_nonfinite_tokens_total") == 1


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_starts_at_zero_and_is_counted_once(registry, metrics, outcome):
    assert value(registry, "telltale_requests_total", outcome=outcome.value) == 0
    metrics.observe_request(request(outcome))
    assert value(registry, "telltale_requests_total", outcome=outcome.value) == 1
    metrics.count_outcome(outcome)
    assert value(registry, "telltale_requests_total", outcome=outcome.value) == 2
    assert sum(value(registry, "telltale_requests_total", outcome=other.value) for other in Outcome) == 2


def test_a_request_that_never_ran_has_no_phases(registry, metrics):
    metrics.observe_request(
        request(
            Outcome.DEADLINE,
            prompt_tokens=0,
            completion_tokens=0,
            prefill_seconds=None,
            decode_seconds=None,
            time_to_first_token_seconds=None,
            feature_max_W=[],
        )
    )
    assert value(registry, "telltale_request_queue_seconds_count") == 1
    assert value(registry, "telltale_request_duration_seconds_count") == 1
    for name in ("request_prefill_seconds", "request_decode_seconds", "time_to_first_token_seconds"):
        assert value(registry, f"telltale_{name}_count") == 0
    assert value(registry, "telltale_feature_request_max_count", feature="f7") == 0


def test_state_sets_every_gauge(registry, metrics):
    metrics.observe_state(EngineState(3, 2, 16, 100, 8192, 1234.5, is_up=True, is_draining=False))
    expected = {
        "requests_running": 3,
        "requests_waiting": 2,
        "slots": 16,
        "queue_limit": 64,
        "kv_slot_tokens_used": 100,
        "kv_slot_tokens_capacity": 8192,
        "engine_last_step_timestamp_seconds": 1234.5,
        "engine_up": 1,
        "draining": 0,
    }
    assert {name: value(registry, f"telltale_{name}") for name in expected} == expected


def test_alerts_and_steering(registry, metrics):
    # At 0 from the start: the increase of a counter that appears at 1 is nothing.
    assert value(registry, "telltale_alerts_total", monitor="deception", severity="critical", role="assistant") == 0
    assert value(registry, "telltale_alerts_total", monitor="deception", severity="warning", role="assistant") == 0
    assert value(registry, "telltale_alert_requests_total", monitor="deception") == 0
    assert value(registry, "telltale_steered_requests_total", op="cap") == 0
    metrics.observe_alert("deception", "critical", "assistant")
    metrics.observe_alert("deception", "critical", "assistant")
    metrics.observe_request(request(alerts=[("deception", "critical")] * 2, steering_ops=["add", "add", "project_out"]))
    assert value(registry, "telltale_alerts_total", monitor="deception", severity="critical", role="assistant") == 2
    assert value(registry, "telltale_alert_requests_total", monitor="deception") == 1
    assert value(registry, "telltale_steered_requests_total", op="add") == 1
    assert value(registry, "telltale_steered_requests_total", op="project_out") == 1


def test_readings_are_divided_by_the_reference_scale(registry, metrics):
    metrics.observe_step(step(readings=[[2.0, 2.0]]))  # scales 2 and 0.5: 1 and 4 when normalised
    assert value(registry, "telltale_feature_activation_sum", feature="f123_lying") == 1
    assert value(registry, "telltale_feature_activation_sum", feature="f7") == 4
    metrics.observe_request(request(feature_max_W=[4.0, 0.0]))
    assert value(registry, "telltale_feature_request_max_sum", feature="f123_lying") == 2


def test_active_tokens_are_those_above_the_zero_bucket(registry, metrics):
    metrics.observe_step(step(readings=[[0, 0], [1e-30, 0], [3, 0]]))
    zeros = value(registry, "telltale_feature_activation_bucket", feature="f123_lying", le="0.0")
    active = value(registry, "telltale_feature_active_tokens_total", feature="f123_lying")
    assert (zeros, active) == (1, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_reading_is_left_out(registry, metrics, bad):
    metrics.observe_step(step(readings=[[1, bad], [1, 1]]))
    metrics.observe_request(request(feature_max_W=[bad, 0.0]))
    assert value(registry, "telltale_feature_tokens_observed_total") == 1
    assert value(registry, "telltale_feature_activation_sum", feature="f7") == 2
    assert value(registry, "telltale_feature_request_max_count", feature="f7") == 0


def test_readings_of_another_watch_list_are_a_bug(metrics):
    with pytest.raises(AssertionError):
        metrics.observe_step(replace(step(), readings_NW=np.zeros((3, 1), dtype=np.float32)))


def test_no_watched_features(registry):
    metrics = make_metrics(registry, watched=[])
    metrics.observe_step(replace(step(), readings_NW=np.zeros((3, 0), dtype=np.float32)))
    metrics.observe_request(request(feature_max_W=[]))
    assert value(registry, "telltale_feature_tokens_observed_total") == 3


def test_the_batched_histogram_equals_prometheus_client():
    features = ["f1", "f2", "f3"]
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = Histogram("x", "text", ["feature"], buckets=READING_BUCKETS, registry=theirs)
    batched = FeatureHistogram("x", "text", features=features, buckets=READING_BUCKETS, registry=ours)
    for feature in features:
        reference.labels(feature)
    rng = np.random.default_rng(0)
    for num_tokens in (0, 1, 16, 300):
        values_NW = np.maximum(rng.normal(0, 2, (num_tokens, 3)), 0)
        values_NW[::3] = rng.choice(READING_BUCKETS, size=values_NW[::3].shape)  # values on the bounds
        batched.observe(values_NW)
        for feature, values in zip(features, values_NW.T.tolist(), strict=True):
            for number in values:
                reference.labels(feature).observe(number)
    got, wanted = samples(ours), samples(theirs)
    assert got.keys() == wanted.keys()
    assert got == pytest.approx(wanted)


def samples(registry):
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, *sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_more_than_64_features_are_refused(registry):
    many = [WatchedMetric(f"f{i}", 1.0) for i in range(MAX_EXPORTED_FEATURES + 1)]
    with pytest.raises(ValueError, match=r"at most 64 .* Got 65"):
        FeatureMetrics(registry, many)
    FeatureMetrics(registry, many[:-1])


def test_two_features_of_one_slug_are_refused(registry):
    with pytest.raises(ValueError, match="different slugs"):
        FeatureMetrics(registry, [WatchedMetric("f1", 1.0), WatchedMetric("f1", 2.0)])


@pytest.mark.parametrize("slug, scale", [("lying", 1.0), ("f1_Lying", 1.0), ("f1", 0.0), ("f1", float("nan"))])
def test_a_bad_watched_metric_is_refused(slug, scale):
    with pytest.raises(ValueError):
        WatchedMetric(slug, scale)


@pytest.mark.parametrize("name", ["lying", "x" * 100, "a_", "a__1"])
def test_the_slug_of_every_named_feature_is_a_valid_one(name):
    named = NamedFeature(
        index=123, name=name, description="", reference_scale=1.0, validated=False, default_watched=True, evidence={}
    )
    assert WatchedMetric(named.slug, 1.0).slug == f"f123_{name}"


def test_rpcs(registry, metrics):
    method = {"grpc_service": "telltale.v1.GenerationService", "grpc_method": "Generate"}
    labels = {"grpc_type": "server_stream", **method}
    metrics.observe_rpc_started(*method.values(), "server_stream")
    assert value(registry, "grpc_server_started_total", **labels) == 1
    metrics.observe_rpc_ended(*method.values(), "server_stream", code="INVALID_ARGUMENT", seconds=0.5)
    assert value(registry, "grpc_server_handled_total", **labels, grpc_code="InvalidArgument") == 1
    assert value(registry, "grpc_server_handling_seconds_sum", **labels) == 0.5


@pytest.mark.parametrize("code, shown", [("OK", "OK"), ("CANCELLED", "Canceled"), ("NOT_FOUND", "NotFound")])
def test_codes_are_spelled_as_in_go(registry, metrics, code, shown):
    metrics.observe_rpc_ended("s", "m", "unary", code=code, seconds=0.1)
    labels = {"grpc_type": "unary", "grpc_service": "s", "grpc_method": "m", "grpc_code": shown}
    assert value(registry, "grpc_server_handled_total", **labels) == 1


@pytest.mark.usefixtures("metrics")
def test_build_info(registry):
    labels = {"version": "0.1.0", "model": "tiny", "sae": "tiny-sae", "quantization": "q4_1"}
    assert value(registry, "telltale_build_info", **labels) == 1


def test_nothing_goes_to_the_global_registry():
    from prometheus_client import REGISTRY

    make_metrics(CollectorRegistry())
    make_metrics(CollectorRegistry())
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("telltale")]


def journal_status(**changes):
    status = JournalStatus(
        place="alerts.sqlite", num_entries=3, head_seq=4, is_writable=True, num_write_failures=0, write_error="",
        is_forwarded=True, num_waiting=0, lag_seconds=0.0, forward_error="",
    )  # fmt: skip
    return replace(status, **changes)


def test_the_journals_metrics_are_its_status_and_what_reviewers_said_of_the_served_packs(registry):
    metrics = JournalMetrics(registry, {"deception": "a" * 64, "stance": "b" * 64})
    assert value(registry, "telltale_alert_reviews", monitor="stance", verdict="true") == 0
    found = [Precision("deception", "a" * 64, 3, 1, 2), Precision("deception", "f" * 64, 9, 0, 0)]
    metrics.observe(journal_status(), [0.002, 0.03], found)
    assert value(registry, "telltale_journal_entries") == 3
    assert value(registry, "telltale_journal_writable") == value(registry, "telltale_journal_forward_up") == 1
    assert value(registry, "telltale_journal_append_seconds_count") == 2
    assert value(registry, "telltale_alert_precision_ratio", monitor="deception") == 0.75
    assert value(registry, "telltale_alert_reviews", monitor="deception", verdict="unsure") == 2
    failing = journal_status(
        is_writable=False, num_write_failures=2, num_waiting=7, lag_seconds=9.5, forward_error="it is gone"
    )
    for _ in range(2):
        metrics.observe(failing, [], found)
    assert value(registry, "telltale_journal_write_failures_total") == 2
    assert value(registry, "telltale_journal_writable") == value(registry, "telltale_journal_forward_up") == 0
    assert value(registry, "telltale_journal_forward_waiting_entries") == 7
    assert value(registry, "telltale_journal_forward_lag_seconds") == 9.5


def test_precision_and_reviews_are_of_the_reviews_that_count(registry):
    """A verdict is taken back, and then retention deletes what was said of the monitor at all."""
    metrics = JournalMetrics(registry, {"deception": "a" * 64, "stance": "b" * 64})

    def shown():
        counts = (value(registry, "telltale_alert_reviews", monitor="deception", verdict=v) for v in VERDICTS)
        return [*counts, value(registry, "telltale_alert_precision_ratio", monitor="deception")]

    metrics.observe(journal_status(), [], [Precision("deception", "a" * 64, 0, 0, 1)])
    assert shown() == [0, 0, 1, None]  # never there yet
    metrics.observe(journal_status(), [], [Precision("deception", "a" * 64, 1, 0, 0)])
    assert shown() == [1, 0, 0, 1.0]
    metrics.observe(journal_status(), [], [Precision("deception", "a" * 64, 0, 0, 1)])
    assert shown() == [0, 0, 1, None]
    metrics.observe(journal_status(), [], [Precision("deception", "a" * 64, 1, 1, 0)])
    metrics.observe(journal_status(), [], [Precision("deception", "f" * 64, 1, 0, 0)])
    assert shown() == [0, 0, 0, None]


def test_the_documentation_lists_every_family_with_its_labels(registry, metrics):
    reviewed = Precision("deception", None, 1, 1, 0)
    JournalMetrics(registry, {"deception": None}).observe(journal_status(), [], [reviewed])
    GuardMetrics(registry, tiny_guards.guards())
    metrics.observe_rpc_started("s", "m", "unary")
    metrics.observe_rpc_ended("s", "m", "unary", code="OK", seconds=0.1)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\|", DOCS.read_text(), re.M)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    exported = {}
    for family in registry.collect():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exported[name] = ("gauge" if family.type == "info" else family.type, labels)
    assert documented == exported


def test_a_decode_step_costs_little(registry):
    """16 rows x 14 features take about 40 us; the bound leaves room for a busy machine."""
    metrics = make_metrics(registry, [WatchedMetric(f"f{i}", 1.0) for i in range(14)])
    readings_NW = np.random.default_rng(0).normal(size=(16, 14)).astype(np.float32)
    record = replace(step(num_rows=16, num_tokens=16), readings_NW=readings_NW, inter_token_seconds=[0.03] * 16)
    times = []
    for _ in range(300):
        start = perf_counter()
        metrics.observe_step(record)
        times.append(perf_counter() - start)
    assert min(times) < 200e-6
