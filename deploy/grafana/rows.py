"""The panels of the dashboard, a function for each row; a long row comes in two parts.

Every histogram is read through `rate`, over Grafana's own `$__rate_interval`.
"""

from typing import Any

from panels import (
    Bound,
    activation_heatmap,
    lines,
    mean,
    number,
    quantile,
    quantiles,
    rate,
    series,
    stacked,
)


def overview_row() -> list[Any]:
    return [*state_numbers(), *request_lines()]


def state_numbers() -> list[Any]:
    """What must be seen at a glance."""
    untapped = (
        f"sum(increase({series('telltale_forward_tokens_total')}[$__range]))"
        f" - sum(increase({series('telltale_tapped_tokens_total')}[$__range]))"
    )
    return [
        number(
            "Engines up",
            "short",
            f"sum({series('telltale_engine_up')}) or vector(0)",
            "Servers that answer and whose engine thread is alive.",
            bad=Bound(1, is_from=False),
        ),
        number(
            "Untapped tokens",
            "short",
            f"abs({untapped})",
            "Tokens the model read and the tap did not see, in the time shown. Anything but 0 is an incident.",
            bad=Bound(0.5),
        ),
        number(
            "Failed requests, 1 h",
            "percentunit",
            "max(telltale:request_errors:ratio_rate1h)",
            "Of the requests the server owed an answer. The objective is 1 %. All instances.",
            bad=Bound(0.01),
        ),
        number(
            "Time to first token, p95",
            "s",
            quantile(0.95, "telltale_time_to_first_token_seconds"),
            "From arrival to the first generated token.",
            bad=Bound(5),
        ),
        number(
            "Since the last step",
            "s",
            f"time() - max({series('telltale_engine_last_step_timestamp_seconds')})",
            "Time since the last forward pass ended. It grows while idle, too.",
        ),
        number(
            "Alerts firing",
            "short",
            'count(ALERTS{alertstate="firing",job="telltale"}) or vector(0)',
            "Alerts of Prometheus, those of monitors included.",
            bad=Bound(1),
        ),
    ]


def request_lines() -> list[Any]:
    return [
        stacked(lines("Requests by outcome", "reqps", {"{{outcome}}": rate("telltale_requests_total", by="outcome")})),
        quantiles("Request duration", "s", "telltale_request_duration_seconds"),
        lines(
            "Where requests spend their time",
            "s",
            {
                "queue": mean("telltale_request_queue_seconds"),
                "prefill": mean("telltale_request_prefill_seconds"),
                "decode": mean("telltale_request_decode_seconds"),
            },
            "Means.",
        ),
    ]


def token_row() -> list[Any]:
    return [
        lines(
            "Tokens read by the model",
            "short",
            {"prompt": rate("telltale_prompt_tokens_total"), "generated": rate("telltale_generation_tokens_total")},
            "Per second, cancelled and failed requests included.",
        ),
        quantiles("Time to first token", "s", "telltale_time_to_first_token_seconds"),
        quantiles("Time between tokens", "s", "telltale_inter_token_latency_seconds"),
        quantiles("Prompt tokens of a request", "short", "telltale_request_prompt_tokens"),
        quantiles("Generated tokens of a request", "short", "telltale_request_generation_tokens"),
        lines("Time in the queue, p95", "s", {"p95": quantile(0.95, "telltale_request_queue_seconds")}),
    ]


def engine_row() -> list[Any]:
    return [*load_lines(), *fault_lines()]


def load_lines() -> list[Any]:
    """How busy the engine is, and with what."""
    return [
        lines(
            "Slots and queue",
            "short",
            {
                "running": f"sum({series('telltale_requests_running')})",
                "waiting": f"sum({series('telltale_requests_waiting')})",
                "slots": f"sum({series('telltale_slots')})",
                "queue limit": f"sum({series('telltale_queue_limit')})",
            },
        ),
        lines("Forward pass, p95", "s", {"{{phase}}": quantile(0.95, "telltale_engine_step_seconds", by="phase")}),
        lines("Rows per decode pass", "short", {"mean": mean("telltale_engine_step_batch_size")}),
        lines(
            "Share of the engine's time in the SAE",
            "percentunit",
            {"SAE": f"{rate('telltale_sae_encode_seconds_sum')} / {rate('telltale_engine_step_seconds_sum')}"},
        ),
        lines(
            "KV cache in use",
            "percentunit",
            {
                "{{instance}}": " / ".join(
                    map(series, ("telltale_kv_slot_tokens_used", "telltale_kv_slot_tokens_capacity"))
                )
            },
        ),
    ]


def fault_lines() -> list[Any]:
    """What should be flat, or zero."""
    return [
        lines(
            "Failed rows and non-finite tokens",
            "short",
            {
                "failed rows, {{phase}}": rate("telltale_engine_step_failures_total", by="phase"),
                "non-finite tokens": rate("telltale_sae_nonfinite_tokens_total"),
            },
            "Per second.",
        ),
        lines(
            "Tokens read and tapped",
            "short",
            {"read": rate("telltale_forward_tokens_total"), "tapped": rate("telltale_tapped_tokens_total")},
            "Per second. The two lines must lie on each other.",
        ),
        lines(
            "Tokens off distribution",
            "percentunit",
            {"share": f"{rate('telltale_off_distribution_tokens_total')} / {rate('telltale_ordinary_tokens_total')}"},
            "Share of tokens that the dictionary does not describe; 0.1 % is usual, and 0 where there is no guard.",
        ),
        lines(
            "Drift of monitors",
            "none",
            {"{{monitor}}, {{of}}": f"max by (monitor, of) ({series('telltale_monitor_psi')})"},
            "Population stability index against the calibration. Below 0.1 nothing has moved, above 0.2 it has.",
        ),
        lines(
            "Silent inputs",
            "short",
            {"{{input}}": f"max by (input) ({series('telltale_input_silent')}) > 0"},
            "Inputs of monitors that have not been active for longer than chance explains. Should be empty.",
        ),
        lines("Resident memory", "bytes", {"{{instance}}": series("process_resident_memory_bytes")}),
        lines("Draining", "short", {"{{instance}}": series("telltale_draining")}),
    ]


def feature_row() -> list[Any]:
    chosen = 'feature=~"$feature"'
    active = rate("telltale_feature_active_tokens_total", by="feature", where=chosen)
    observed = rate("telltale_feature_tokens_observed_total")
    return [
        lines(
            "Share of tokens at which a feature is active",
            "percentunit",
            {"{{feature}}": f"{active} / on () group_left () {observed}"},
        ),
        lines(
            "Largest reading in a request, p95",
            "none",
            {"{{feature}}": quantile(0.95, "telltale_feature_request_max", by="feature", where=chosen)},
            "Reading / reference scale.",
        ),
        lines(
            "Tokens above the reference scale",
            "short",
            {
                "{{feature}}": rate("telltale_feature_activation_count", by="feature", where=chosen)
                + " - "
                + rate("telltale_feature_activation_bucket", by="feature", where=chosen + ',le="1.0"')
            },
            "Per second.",
        ),
        activation_heatmap(),
    ]


def alert_row() -> list[Any]:
    return [*raised_lines(), *journal_lines()]


def raised_lines() -> list[Any]:
    """What monitors and rules say."""
    alerted = rate("telltale_alert_requests_total", by="monitor")
    return [
        lines(
            "Alerts raised",
            "short",
            {"{{monitor}}, {{severity}}, {{role}}": rate("telltale_alerts_total", by="monitor, severity, role")},
            "Per second; the role is whose words an alert is about.",
        ),
        lines(
            "Share of requests in which a monitor fired",
            "percentunit",
            {"{{monitor}}": f"{alerted} / on () group_left () {rate('telltale_request_duration_seconds_count')}"},
            "Compare with the false-positive rate the monitor was calibrated for.",
        ),
        lines(
            "Policies that came to apply",
            "short",
            {
                "{{action}}": rate("telltale_policies_applied_total", by="action"),
                "tokens withheld": rate("telltale_withheld_tokens_total"),
            },
            "Per second.",
        ),
        lines(
            "Alerts of Prometheus",
            "short",
            {"{{alertname}} {{severity}}": 'count by (alertname, severity) (ALERTS{alertstate="firing"})'},
            "Of all servers: some alerts are about the service and carry no instance.",
        ),
    ]


def journal_lines() -> list[Any]:
    """Whether alerts are kept, how long that takes, and what people say of them."""
    return [
        lines(
            "Alert journal: failed writes, and entries that wait",
            "short",
            {
                "failed writes, {{instance}}": f"increase({series('telltale_journal_write_failures_total')}[$__range])",
                "waiting, {{instance}}": series("telltale_journal_forward_waiting_entries"),
            },
            "Failed writes over the time shown; entries that the database has not got yet.",
        ),
        lines(
            "Alert journal: time to disk, and lag of the database",
            "s",
            {
                "to disk, p95": quantile(0.95, "telltale_journal_append_seconds"),
                "lag, {{instance}}": series("telltale_journal_forward_lag_seconds"),
            },
            "The engine waits for the disk once in a step that raises alerts, and never for the database.",
        ),
        lines(
            "Precision by reviews",
            "percentunit",
            {"{{monitor}}": f"avg by (monitor) ({series('telltale_alert_precision_ratio')})"},
            "true / (true + false) of the alerts that somebody reviewed.",
        ),
    ]


def steering_row() -> list[Any]:
    steered = rate("telltale_steered_requests_total", by="op")
    return [
        lines("Steered requests", "reqps", {"{{op}}": steered}).span(12),
        lines(
            "Share of requests steered",
            "percentunit",
            {"{{op}}": f"{steered} / on () group_left () {rate('telltale_request_duration_seconds_count')}"},
        ).span(12),
    ]


def rpc_row() -> list[Any]:
    return [
        stacked(lines("RPCs begun", "reqps", {"{{grpc_method}}": rate("grpc_server_started_total", by="grpc_method")})),
        stacked(lines("RPCs by code", "reqps", {"{{grpc_code}}": rate("grpc_server_handled_total", by="grpc_code")})),
        lines(
            "Time of an RPC, p95",
            "s",
            {"{{grpc_method}}": quantile(0.95, "grpc_server_handling_seconds", by="grpc_method")},
        ),
    ]
