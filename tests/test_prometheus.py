"""A real Prometheus, with the repository's rules, scrapes a running server: what it knows is what happened."""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tools
import yaml
from serving import ALWAYS, connect, eventually, outcomes, serving

from service.client_request import Policy, Steering
from service.errors import InvalidRequest

RULES = Path(__file__).parents[1] / "deploy" / "prometheus" / "rules" / "*.yml"


class Prometheus:
    """Its HTTP API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    async def get(self, path: str, **query: str) -> Any:
        def fetch() -> Any:
            url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]

        return await asyncio.to_thread(fetch)

    async def values(self, expression: str, label: str) -> dict[str, float]:
        """label -> value of an instant query."""
        found = (await self.get("query", query=expression))["result"]
        return {series["metric"].get(label, ""): float(series["value"][1]) for series in found}


async def until(question: Any, *, tries: int = 100) -> Any:
    """The first answer that is not empty; Prometheus is asked again every tenth of a second."""
    answer = None
    for _ in range(tries):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if answer := await question():
                return answer
        await asyncio.sleep(0.1)
    pytest.fail(f"no answer after {tries} tries: {answer}")


@asynccontextmanager
async def prometheus(folder: Path, http_port: int) -> AsyncIterator[Prometheus]:
    binary = shutil.which("prometheus")
    if binary is None:
        tools.missing("prometheus")
    target = {"job_name": "telltale", "static_configs": [{"targets": [f"127.0.0.1:{http_port}"]}]}
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [target],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(10)
        log.close()


async def test_prometheus_counts_what_happened(tmp_path):
    async with serving() as server, connect(server) as client, prometheus(tmp_path, server.http_port) as api:
        assert (await until(lambda: api.values("up", "job"))) == {"telltale": 1}
        options = {"max_tokens": 5, "ignore_eos": True}
        await asyncio.gather(*(client.complete(f"text {i}", **options) for i in range(6)))
        await client.complete("text 6", policies=[Policy(monitor=ALWAYS, action="stop")], **options)
        await client.complete("text 7", steering=[Steering(direction=5, strength=1.0)], **options)
        await client.score("It was me.")
        for _ in range(2):
            with pytest.raises(InvalidRequest):
                await client.complete("x", top_features=65)
        await eventually(lambda: sum(outcomes(server).values()) == 11)

        wanted = {"length": 7, "alert_stop": 1, "scored": 1, "invalid": 2}
        counted = "telltale_requests_total > 0"

        async def all_requests():
            found = await api.values(counted, "outcome")
            return found if sum(found.values()) == 11 else None

        assert await until(all_requests) == wanted

        prompt, generated = 8 * len("text 0") + len("It was me."), 7 * 5 + 3
        facts = {
            "telltale_prompt_tokens_total": prompt,
            "telltale_generation_tokens_total": generated,
            "telltale_forward_tokens_total": prompt + generated,
            "telltale_tapped_tokens_total": prompt + generated,
            # Position 0 of each of the nine is left out.
            "telltale_feature_tokens_observed_total": prompt + generated - 9,
            'telltale_steered_requests_total{op="add"}': 1,
            # "always" fires once in each: the eight replies, and the text that was scored.
            f'telltale_alerts_total{{monitor="{ALWAYS}",role="assistant"}}': 9,
            "telltale_engine_up": 1,
            "telltale_requests_running": 0,
            'grpc_server_handled_total{grpc_method="Generate",grpc_code="OK"}': 8,
            'grpc_server_handled_total{grpc_method="Generate",grpc_code="InvalidArgument"}': 2,
            "telltale:generation_rpcs_in_flight": 0,
        }
        # Recorded once in each interval, so later than what it is made of.
        await until(lambda: api.values("telltale:generation_rpcs_in_flight", "nothing"))
        got = {expression: await api.values(expression, "nothing") for expression in facts}
        assert got == {expression: {"": value} for expression, value in facts.items()}
        features = await api.values("telltale_feature_activation_count", "feature")
        assert features == {"f17_hedging": prompt + generated - 9, "f3_lying": prompt + generated - 9}

        async def firing():
            groups = (await api.get("rules"))["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            assert len(groups) == len(yaml.safe_load(RULES.with_name("telltale.yml").read_text())["groups"])
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}  # unknown: not evaluated yet
            return {rule["name"] for rule in rules if rule.get("state") == "firing"}

        # The one rule that does not wait: a monitor fired.
        assert await until(firing) == {"MonitorFiring"}
