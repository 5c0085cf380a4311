"""The deploy folder against the server: names that exist, files that are there, rules that fire and stay silent.

A metric that was renamed never errors in Prometheus or Grafana, its panel or alert just goes silent; so every
expression is taken apart here and each of its names and labels looked up in a real registry.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tiny_guards
import tools
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from monitors.journal_precision import Precision
from sae_runtime.kernels import native
from service.config import Settings
from service.guard_metrics import GuardMetrics
from service.journal_keeper import JournalStatus
from service.journal_metrics import JournalMetrics
from service.metrics import Metrics, WatchedMetric
from service.records import Outcome, Phase, RequestRecord, StepRecord

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "telltale.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "telltale.json"
RUNBOOK = ROOT / "docs" / "runbook.md"


def run(tool: str, *arguments: str | Path) -> str:
    """What an outside checker says of our files; if it refuses them, that is the failure's message."""
    path = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
    if path is None:
        tools.missing(tool)
    result = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    return said


# PromQL, taken apart

TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    | (?P<range>\[[^\]]*\])
    | (?P<number>[0-9][0-9.a-z]*)
    | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){},])""",
    re.VERBOSE,
)
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
AGGREGATIONS = {"sum", "min", "max", "avg", "count", "group", "quantile", "stddev", "stdvar", "topk", "bottomk"}
WORDS = {"and", "or", "unless", "bool", "offset"}


@dataclass
class Expression:
    """The names in a PromQL expression."""

    selectors: list[tuple[str, set[str], str, str]] = field(default_factory=list)
    """Per selector: metric, labels matched, the function around it, its range."""
    grouping: set[str] = field(default_factory=set)
    """Labels named after by, on and the like."""


def parse(text: str) -> Expression:
    tokens = [(match.lastgroup, match.group()) for match in TOKEN.finditer(text)]
    assert not TOKEN.sub("", text).strip(), f"not understood in {text!r}: {TOKEN.sub('', text)!r}"
    expression = Expression()
    values = [value for _, value in tokens] + ["", "", ""]
    index = 0
    while index < len(tokens):
        kind, value = tokens[index]
        index += 1
        if kind != "name" or value in WORDS | AGGREGATIONS:
            continue
        if value in GROUPING:
            if values[index] == "(":
                end = values.index(")", index)
                expression.grouping |= set(values[index + 1 : end]) - {","}
                index = end + 1
        elif values[index] != "(":  # neither a keyword nor a function
            around = values[index - 3] if index >= 3 and values[index - 2] == "(" else ""
            labels = set()
            if values[index] == "{":
                end = values.index("}", index)
                labels = {values[i] for i in range(index, end) if values[i + 1] in ("=", "=~", "!=", "!~")}
                index = end + 1
            span = values[index] if values[index].startswith("[") else ""
            expression.selectors.append((value, labels, around, span))
    return expression


def test_the_parser():
    expression = parse(
        'sum by (job, le) (rate(a_bucket{x=~"b{c}", y!="d, e=f"}[5m] offset 10m)) / on (job) group_left () up == 0.5'
    )
    assert expression.selectors == [("a_bucket", {"x", "y"}, "rate", "[5m]"), ("up", set(), "", "")]
    assert expression.grouping == {"job", "le"}


# What there is to name


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Labels of every sample of a server that has done a little of everything."""
    registry = CollectorRegistry()
    metrics = Metrics(
        registry,
        watched=[WatchedMetric("f123_lying", 1.0)],
        monitors={"deception": [("critical", "assistant")]},
        queue_limit=64,
        model="m",
        sae="s",
        quantization="q",
        version="0",
    )
    GuardMetrics(registry, tiny_guards.guards())
    metrics.observe_step(StepRecord(Phase.DECODE, 1, 1, 1, 0.1, 0.1, 0, np.ones((1, 1), dtype=np.float32), [0.1]))
    metrics.observe_request(RequestRecord(Outcome.EOS, 1, 1, 1.0, 0.1, 0.1, 0.1, 0.1, [1.0]))
    status = JournalStatus(
        place="", num_entries=1, head_seq=1, is_writable=True, num_write_failures=0, write_error="",
        is_forwarded=True, num_waiting=0, lag_seconds=0.0, forward_error="",
    )  # fmt: skip
    reviewed = Precision("deception", "a" * 64, 1, 0, 0)
    JournalMetrics(registry, {"deception": "a" * 64}).observe(status, [0.1], [reviewed])
    metrics.observe_rpc_started("s", "m", "unary")
    metrics.observe_rpc_ended("s", "m", "unary", code="OK", seconds=0.1)
    labels: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels[sample.name] |= {*sample.labels, "job", "instance"}
    return dict(labels)


@pytest.fixture(scope="module")
def known(exported) -> dict[str, set[str]]:
    """What is exported, recorded, or made by Prometheus itself."""
    recorded = {rule["record"]: parse(rule["expr"]).grouping for rule in rules() if "record" in rule}
    own = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate", "severity", "job", "instance"}}
    return exported | recorded | own


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict]:
    return [rule for rule in rules() if "alert" in rule]


def dashboard_expressions() -> Iterator[str]:
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for variable in board["templating"]["list"]:
        if match := re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]):
            yield f"count by ({match[2]}) ({match[1]})"


def with_intervals(expr: str) -> str:
    return expr.replace("$__rate_interval", "5m").replace("$__range", "1h")


EXPRESSIONS = [*(rule["expr"] for rule in rules()), *dashboard_expressions()]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_every_name_in_an_expression_exists(text, known):
    expression = parse(text)
    assert expression.selectors
    for metric, labels, _, _ in expression.selectors:
        assert metric in known, f"{metric} is not exported"
        assert labels <= known[metric], f"{metric} has no label {labels - known[metric]}"
    available = set().union(*(known[metric] for metric, *_ in expression.selectors))
    assert expression.grouping <= available


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_histograms_are_read_as_rates(text, exported):
    for metric, _, around, _ in parse(text).selectors:
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        if f"{base}_bucket" in exported:
            assert around in ("rate", "increase"), f"{metric} is a histogram's: read it through rate()"


def test_the_names_of_deliberate_absentees_are_found_out(known):
    assert "telltale_tokens_total" not in known
    assert "severity" not in known["telltale_alert_requests_total"]


# Prometheus and Alertmanager


def test_promtool_accepts_the_configuration():
    assert "SUCCESS" in run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_promtool_accepts_the_rules():
    assert "SUCCESS" in run("promtool", "check", "rules", "--lint-fatal", RULES)


def test_the_rules_fire_and_stay_silent_as_their_cases_say():
    cases = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
    assert run("promtool", "test", "rules", *cases).count("SUCCESS") == len(cases) > 0


def test_amtool_accepts_the_configuration():
    assert "SUCCESS" in run("amtool", "check-config", DEPLOY / "alertmanager" / "alertmanager.yml")


def test_every_alert_has_a_case_that_fires_and_one_that_does_not():
    fires: dict[str, set[bool]] = defaultdict(set)
    for path in (DEPLOY / "prometheus" / "tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                fires[case["alertname"]].add(bool(case.get("exp_alerts")))
    assert dict(fires) == {rule["alert"]: {True, False} for rule in alerts()}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule):
    assert rule["labels"]["severity"] in ("critical", "warning", "{{ $labels.severity }}")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert ROOT / page == RUNBOOK
    assert anchor == rule["alert"].lower()


def test_the_runbook_has_one_section_per_alert():
    sections = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.M)
    assert sections == list(dict.fromkeys(rule["alert"] for rule in alerts()))
    for link in re.findall(r"\]\(#(\w+)\)", RUNBOOK.read_text()):
        assert link in map(str.lower, sections)


def test_the_runbook_names_the_outcomes_that_count_as_errors_and_those_left_out():
    recorded = [rule["expr"] for rule in rules() if rule.get("record", "").startswith("telltale:request_errors:")]
    section = RUNBOOK.read_text().partition("## ErrorRatio")[2].partition("\n## ")[0]
    meaning = section.partition("**Look at**")[0]
    errors, left_out = (re.findall(r"`(\w+)`", part) for part in meaning.partition("Left out")[::2])
    assert len(recorded) == 4
    for expr in recorded:
        counted, ignored = re.findall(r'outcome[=!]~"([^"]*)"', expr)
        assert (sorted(counted.split("|")), sorted(ignored.split("|"))) == (sorted(errors), sorted(left_out))


def test_the_alertmanager_names_alerts_that_exist():
    config = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    matchers = [
        m for rule in config["inhibit_rules"] for key in ("source_matchers", "target_matchers") for m in rule[key]
    ]
    named = {name for m in matchers if m.startswith("alertname") for name in re.findall(r"[A-Z]\w+", m)}
    assert named <= {rule["alert"] for rule in alerts()}


def test_the_lying_feature_is_matched_by_its_slug():
    matcher = next(m for rule in alerts() for m in re.findall(r'feature=~"(.*?)"', rule["expr"]))
    assert [bool(re.fullmatch(matcher, slug)) for slug in ("f123_lying", "f9_lying_to_user", "f9_sports")] == [1, 1, 0]


# Grafana


@pytest.fixture
def board(monkeypatch):
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    monkeypatch.syspath_prepend(DEPLOY / "grafana")
    import dashboard

    return dashboard


def test_the_dashboard_is_what_its_code_renders(board):
    assert DASHBOARD.read_text() == board.render(), "run: python deploy/grafana/dashboard.py"


def test_the_dashboard_has_the_parts_grafana_needs():
    board = json.loads(DASHBOARD.read_text())
    assert board["uid"] == "telltale"
    assert [v["name"] for v in board["templating"]["list"]] == ["datasource", "instance", "feature"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        refs = [target["refId"] for target in panel["targets"]]
        assert all(refs) and len(set(refs)) == len(refs)


def test_rates_of_the_dashboard_use_grafanas_interval():
    for expr in dashboard_expressions():
        for metric, _, around, span in parse(expr).selectors:
            assert (around == "rate") == (span == "[$__rate_interval]"), (metric, expr)


def test_promtool_accepts_the_dashboards_expressions(tmp_path):
    exprs = [re.sub(r"\$(instance|feature)", ".*", with_intervals(expr)) for expr in dashboard_expressions()]
    group = {"name": "dashboard", "rules": [{"record": f"panel:{i}", "expr": expr} for i, expr in enumerate(exprs)]}
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [group]}))
    assert f"SUCCESS: {len(exprs)} rules found" in run("promtool", "check", "rules", path)


# Images and where they run


def test_hadolint_accepts_the_dockerfile():
    assert run("hadolint", DEPLOY / "Dockerfile") == "", "no remark, not even a mild one"


def test_the_dockerfile_copies_what_exists():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
    for line in re.findall(r"^COPY (?!--from)(.+)$", (DEPLOY / "Dockerfile").read_text(), re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), f"{source} is not in the repository"
            assert f"!{source}" in ignored, f"{source} is kept out by Dockerfile.dockerignore"


def test_the_image_starts_the_server_with_flags_it_has():
    text = (DEPLOY / "Dockerfile").read_text()
    assert json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1]) == ["telltale", "serve"]
    command = json.loads(re.search(r"^CMD (.*)$", text, re.M)[1])
    flags = {flag.removeprefix("--").replace("-", "_") for flag in command if flag.startswith("--")}
    assert flags <= Settings.model_fields.keys()
    Settings(host="0.0.0.0", grpc_port=50051, http_port=9464, insecure=True)  # what the flags say is allowed
    assert re.search(r"^USER [1-9]", text, re.M)
    assert "STOPSIGNAL SIGTERM" in text


def test_the_image_has_the_kernels_beside_their_source_and_no_compiler():
    build, image = (DEPLOY / "Dockerfile").read_text().split("\nFROM python")[1:]
    step = next(line for line in re.split(r"\n(?!\s)", build) if "-m sae_runtime.kernels.native" in line)
    where = re.search(r"python -c '(.*)'", step)[1]
    # Of the installed package, not of the copy that it was installed from.
    assert build.index("WORKDIR /\n") > build.rindex("pip install") and build.index(step) > build.index("WORKDIR /\n")
    done = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == f"{native.SOURCE.parent}\n"
    assert "gcc" in build and "gcc" not in image


@pytest.fixture
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_compose_mounts_what_exists(compose):
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        assert set(service.get("depends_on", [])) <= compose["services"].keys()
    build = compose["services"]["telltale"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    declared = set(re.findall(r"^ARG (\w+)", (DEPLOY / "Dockerfile").read_text(), re.M))
    assert build["args"].keys() == declared


def test_compose_publishes_on_loopback_only(compose):
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert {"127.0.0.1:50051:50051", "127.0.0.1:9464:9464"} <= set(ports)


def test_compose_services_find_each_other(compose):
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    addresses = [
        *prometheus["scrape_configs"][0]["static_configs"][0]["targets"],
        *prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"],
        source["url"].removeprefix("http://"),
    ]
    listening = {
        f"{name}:{port.rsplit(':', 1)[1]}" for name, service in compose["services"].items() for port in service["ports"]
    }
    assert set(addresses) <= listening
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_compose_gives_grafana_its_files(compose):
    mounts = {volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]}
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/telltale.yml").read_text())["providers"][0]
    assert provider["options"]["path"] in mounts
    assert "/etc/grafana/provisioning" in mounts


def test_servers_get_longer_to_stop_than_they_take(compose):
    drain = Settings().drain_delay_seconds + Settings().drain_timeout_seconds
    assert int(compose["services"]["telltale"]["stop_grace_period"].removesuffix("s")) > drain
    pod = kubernetes("Deployment")["spec"]["template"]["spec"]
    pre_stop = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > drain + pre_stop


def test_settings_are_given_by_names_they_have(compose):
    container = kubernetes("Deployment")["spec"]["template"]["spec"]["containers"][0]
    names = [*compose["services"]["telltale"]["environment"], *(variable["name"] for variable in container["env"])]
    for name in names:
        assert name.removeprefix("TELLTALE_").lower() in Settings.model_fields


def kubernetes(kind: str) -> dict:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "telltale.yaml").read_text())
    return next(document for document in documents if document["kind"] == kind)


def test_the_kubernetes_service_finds_the_pods():
    service, deployment = kubernetes("Service"), kubernetes("Deployment")
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    named = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == named


def test_kubernetes_accepts_the_manifest():
    path = DEPLOY / "kubernetes" / "telltale.yaml"
    num_documents = len(list(yaml.safe_load_all(path.read_text())))
    assert run("kubernetes-validate", "--strict", path).count(" passed for resource ") == num_documents > 0
