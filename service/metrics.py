"""Prometheus metrics of the server: turns the engine's records into samples.

Call `observe_step` once per forward pass, `observe_state` after it and whenever the queue changes, `observe_request`
once per request that reached the engine, `count_outcome` once per RPC that did not. Every RPC of the generation
service is thus counted in `telltale_requests_total` exactly once. Nothing here waits for anything but a short lock.

Tokens are counted from the steps, as the model reads them, so that requests that are later cancelled or fail are in
the totals: `prompt_tokens_total` from prefill, `generation_tokens_total` from decode. The last generated token is read
too and an end-of-sequence token is not, so over streams that ended well the second equals what clients received. What
replays read is in neither, only in `forward_tokens_total` and `tapped_tokens_total`, which are about the model.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from service.feature_metrics import FeatureMetrics, WatchedMetric
from service.records import EngineState, Outcome, Phase, RequestRecord, RowFailure, StepRecord

__all__ = ["Metrics", "WatchedMetric"]

NAMESPACE = "telltale"
STEERING_OPS = ("add", "scale", "set", "project_out", "cap")
POLICY_ACTIONS = ("annotate", "stop", "steer")

# fmt: off
TTFT_BUCKETS = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
ITL_BUCKETS = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
DURATION_BUCKETS = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
STEP_BUCKETS = (.001, .0025, .005, .01, .015, .02, .03, .04, .06, .08, .1, .15, .2, .3, .5, .75, 1, 2.5, 5, 10)
ENCODE_BUCKETS = (.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1)
RPC_BUCKETS = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_BUCKETS = (*(m * 10**e for e in range(5) for m in (1, 2, 5)), 100_000)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# fmt: on


class Metrics:
    """All metrics of one server, in one registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        watched: Sequence[WatchedMetric],
        monitors: Mapping[str, Sequence[tuple[str, str]]],
        queue_limit: int,
        model: str,
        sae: str,
        quantization: str,
        version: str,
    ) -> None:
        """`monitors` maps each monitor to the levels and roles that its alerts may have: their counters have to
        be there, at 0, before it first fires."""
        self._engine = _EngineMetrics(registry, queue_limit)
        self._requests = _RequestMetrics(registry, monitors)
        self._features = FeatureMetrics(registry, watched)
        self._rpcs = _RpcMetrics(registry)
        build = Info("build", "What is being served.", namespace=NAMESPACE, registry=registry)
        build.info({"version": version, "model": model, "sae": sae, "quantization": quantization})
        ProcessCollector(registry=registry)

    def observe_step(self, record: StepRecord) -> None:
        self._engine.observe_step(record)
        self._features.observe_step(record)

    def observe_failure(self, failure: RowFailure) -> None:
        """Count a row that the engine failed, and the tokens that the tap missed if that is why."""
        self._engine.observe_failure(failure)

    def observe_state(self, state: EngineState) -> None:
        self._engine.observe_state(state)

    def observe_request(self, record: RequestRecord) -> None:
        """Count a request that reached the engine, its outcome included."""
        self._requests.observe(record)
        self._features.observe_request(record)

    def observe_alert(self, monitor: str, severity: str, role: str) -> None:
        """Count an alert as it is told; a long stream is not waited for. `role`: whose words it is about."""
        self._requests.alerts.labels(monitor, severity, role).inc()

    def count_outcome(self, outcome: Outcome) -> None:
        """Count an RPC that never reached the engine: invalid, rejected, unavailable."""
        self._requests.count_outcome(outcome)

    def observe_rpc_started(self, service: str, method: str, kind: str) -> None:
        """`kind` is unary, client_stream, server_stream or bidi_stream. Only methods that exist: names are labels."""
        self._rpcs.started.labels(kind, service, method).inc()

    def observe_rpc_ended(self, service: str, method: str, kind: str, *, code: str, seconds: float) -> None:
        """`code` is the name of the `grpc.StatusCode`, like `INVALID_ARGUMENT`."""
        self._rpcs.handled.labels(kind, service, method, _go_code_name(code)).inc()
        self._rpcs.handling.labels(kind, service, method).observe(seconds)


class _EngineMetrics:
    def __init__(self, registry: CollectorRegistry, queue_limit: int) -> None:
        gauge = partial(Gauge, namespace=NAMESPACE, registry=registry)
        counter = partial(Counter, namespace=NAMESPACE, registry=registry)
        histogram = partial(Histogram, namespace=NAMESPACE, registry=registry)
        self.running = gauge("requests_running", "Requests holding a slot.")
        self.waiting = gauge("requests_waiting", "Requests in the queue.")
        self.slots = gauge("slots", "Slots of the KV cache: most requests that can run at once.")
        gauge("queue_limit", "Most requests that may wait; one more is rejected.").set(queue_limit)
        self.kv_used = gauge("kv_slot_tokens_used", "KV cache positions of live requests.")
        self.kv_capacity = gauge("kv_slot_tokens_capacity", "KV cache positions in all.")
        self.last_step = gauge("engine_last_step_timestamp_seconds", "Unix time of the last finished forward pass.")
        self.up = gauge("engine_up", "1 while the engine thread is alive and passes succeed.")
        self.draining = gauge("draining", "1 while the server finishes its streams before it exits.")

        seconds = histogram("engine_step_seconds", "Wall time of a forward pass.", ["phase"], buckets=STEP_BUCKETS)
        failures = counter("engine_step_failures", "Rows failed in a forward pass.", ["phase"])
        self.seconds = {phase: seconds.labels(phase.value) for phase in Phase}
        self.failures = {phase: failures.labels(phase.value) for phase in Phase}
        self.batch_size = histogram("engine_step_batch_size", "Rows in a decode pass.", buckets=BATCH_BUCKETS)
        self.inter_token = histogram("inter_token_latency_seconds", "Time between tokens.", buckets=ITL_BUCKETS)
        self.encode = histogram("sae_encode_seconds", "Time of the SAE in a forward pass.", buckets=ENCODE_BUCKETS)
        self.tokens = {
            Phase.PREFILL: counter("prompt_tokens", "Prompt tokens the model read."),
            Phase.DECODE: counter("generation_tokens", "Generated tokens the model read."),
        }
        self.forward = counter("forward_tokens", "Tokens the model read: prompt, generated, and those of replays.")
        self.tapped = counter("tapped_tokens", "Tokens the tap saw. Must equal forward_tokens_total.")
        self.nonfinite = counter("sae_nonfinite_tokens", "Tokens whose residual or readings held NaN or infinity.")

    def observe_step(self, record: StepRecord) -> None:
        self.forward.inc(record.num_tokens)
        self.tapped.inc(record.num_tapped_tokens)  # right after: a scrape in between sees them differ
        self.tokens[record.phase].inc(record.num_tokens - record.num_replayed_tokens)
        self.nonfinite.inc(record.num_nonfinite_tokens)
        self.seconds[record.phase].observe(record.step_seconds)
        if record.encode_seconds is not None:
            self.encode.observe(record.encode_seconds)
        if record.phase is Phase.DECODE:
            self.batch_size.observe(record.num_rows)
        for seconds in record.inter_token_seconds:
            self.inter_token.observe(seconds)

    def observe_failure(self, failure: RowFailure) -> None:
        self.failures[failure.phase].inc()
        self.forward.inc(failure.num_tokens)
        self.tapped.inc(failure.num_tapped_tokens)

    def observe_state(self, state: EngineState) -> None:
        self.running.set(state.requests_running)
        self.waiting.set(state.requests_waiting)
        self.slots.set(state.slots)
        self.kv_used.set(state.kv_tokens_used)
        self.kv_capacity.set(state.kv_tokens_capacity)
        self.last_step.set(state.last_step_timestamp_seconds)
        self.up.set(state.is_up)
        self.draining.set(state.is_draining)


class _RequestMetrics:
    def __init__(self, registry: CollectorRegistry, monitors: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        counter = partial(Counter, namespace=NAMESPACE, registry=registry)
        histogram = partial(Histogram, namespace=NAMESPACE, registry=registry)
        self.outcomes = counter("requests", "RPCs by how they ended, each counted once.", ["outcome"])
        self.first_token = histogram("time_to_first_token_seconds", "Arrival to first token.", buckets=TTFT_BUCKETS)
        phases = {
            "duration": "Arrival to end.",
            "queue": "Arrival to a slot.",
            "prefill": "Slot to prompt read.",
            "decode": "Prompt read to end.",
        }
        self.phases = {
            name: histogram(f"request_{name}_seconds", text, buckets=DURATION_BUCKETS) for name, text in phases.items()
        }
        self.prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", buckets=TOKEN_BUCKETS)
        self.completion = histogram(
            "request_generation_tokens", "Generated tokens of a request.", buckets=TOKEN_BUCKETS
        )
        self.alerts = counter("alerts", "Alerts raised.", ["monitor", "severity", "role"])
        self.alerted = counter("alert_requests", "Requests in which the monitor fired at least once.", ["monitor"])
        self.policies = counter("policies_applied", "Policies that came to apply.", ["action"])
        self.withheld = counter("withheld_tokens", "Generated tokens that a policy kept from leaving.")
        self.steered = counter("steered_requests", "Requests that asked for the operation.", ["op"])
        # A counter that appears at 1 has no increase: Prometheus would miss the first alert.
        for outcome in Outcome:
            self.outcomes.labels(outcome.value)
        for monitor, kinds in monitors.items():
            for severity, role in kinds:
                self.alerts.labels(monitor, severity, role)
            self.alerted.labels(monitor)
        for action in POLICY_ACTIONS:
            self.policies.labels(action)
        for op in STEERING_OPS:
            self.steered.labels(op)

    def count_outcome(self, outcome: Outcome) -> None:
        self.outcomes.labels(outcome.value).inc()

    def observe(self, record: RequestRecord) -> None:
        self.count_outcome(record.outcome)
        self.prompt.observe(record.prompt_tokens)
        self.completion.observe(record.completion_tokens)
        for histogram, seconds in (
            (self.phases["duration"], record.duration_seconds),
            (self.phases["queue"], record.queue_seconds),
            (self.phases["prefill"], record.prefill_seconds),
            (self.phases["decode"], record.decode_seconds),
            (self.first_token, record.time_to_first_token_seconds),
        ):
            if seconds is not None:
                histogram.observe(seconds)
        for monitor in {monitor for monitor, _ in record.alerts}:
            self.alerted.labels(monitor).inc()
        for action in record.policy_actions:
            self.policies.labels(action).inc()
        self.withheld.inc(record.withheld_tokens)
        for op in set(record.steering_ops):
            self.steered.labels(op).inc()


class _RpcMetrics:
    """Under the names and label values of go-grpc-prometheus, which dashboards for gRPC servers expect."""

    def __init__(self, registry: CollectorRegistry) -> None:
        method = ["grpc_type", "grpc_service", "grpc_method"]
        self.started = Counter("grpc_server_started", "RPCs begun.", method, registry=registry)
        self.handled = Counter("grpc_server_handled", "RPCs ended.", [*method, "grpc_code"], registry=registry)
        self.handling = Histogram(
            "grpc_server_handling_seconds", "Time of an RPC.", method, registry=registry, buckets=RPC_BUCKETS
        )


def _go_code_name(code: str) -> str:
    """`INVALID_ARGUMENT` -> `InvalidArgument`, as Go prints it."""
    if code == "OK":
        return code
    return "Canceled" if code == "CANCELLED" else code.title().replace("_", "")
