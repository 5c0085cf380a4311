"""Records counted together give what they give one by one."""

from dataclasses import replace

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from service.feature_metrics import WatchedMetric
from service.metrics import Metrics
from service.records import Phase, StepRecord
from service.step_batch import MOST_STEPS, StepBatch


def record(number: int, num_tokens: int = 3, **changes) -> StepRecord:
    generator = np.random.default_rng(number)
    made = StepRecord(
        phase=Phase.DECODE if number % 3 else Phase.PREFILL,
        num_rows=num_tokens,
        num_tokens=num_tokens,
        num_tapped_tokens=num_tokens,
        step_seconds=0.001 * number,
        encode_seconds=0.0001,
        num_nonfinite_tokens=0,
        readings_NW=generator.normal(size=(num_tokens, 2)).astype(np.float32),
        inter_token_seconds=[0.01 * number],
        num_ordinary_tokens=num_tokens,
        inputs_NG=generator.normal(size=(num_tokens, 4)).astype(np.float32),
        probes_NP=generator.normal(size=(num_tokens, 1)).astype(np.float32),
    )
    return replace(made, **changes)


def exported(records) -> bytes:
    registry = CollectorRegistry()
    metrics = Metrics(
        registry, watched=[WatchedMetric("f1", 1.0), WatchedMetric("f2", 0.5)], monitors={}, queue_limit=1, model="m",
        sae="s", quantization="q", version="v",
    )  # fmt: skip
    for each in records:
        metrics.observe_step(each)
    lines = generate_latest(registry).splitlines()
    return b"\n".join(line for line in lines if b"_created" not in line and not line.startswith(b"process_"))


def taken(records) -> list[StepRecord]:
    batch = StepBatch()
    for each in records:
        batch.add([each])
    return batch.take()


def test_metrics_are_those_of_records_one_by_one():
    records = [record(number, num_tokens=1 + number % 4) for number in range(12)]
    assert exported(taken(records)) == exported(records)
    assert exported(records[:-1]) != exported(records)


def test_tokens_stay_in_order_and_probes_with_their_pass():
    records = [record(0), record(1, inputs_NG=None), record(2)]
    merged = taken(records)
    assert np.array_equal(merged[-1].inputs_NG, np.concatenate([records[0].inputs_NG, records[2].inputs_NG]))
    assert np.array_equal(merged[-1].readings_NW, np.concatenate([each.readings_NW for each in records]))
    assert [each.inputs_NG is None for each in merged] == [True, True, False]
    assert all(one.probes_NP is other.probes_NP for one, other in zip(merged, records, strict=True))


def test_guards_that_nobody_asks_for_stay_away():
    assert taken([record(0, inputs_NG=None), record(1, inputs_NG=None)])[-1].inputs_NG is None


def test_nothing_is_taken_twice():
    batch = StepBatch()
    batch.add([record(1)])
    (one,) = batch.take()
    assert len(one.readings_NW) == 3
    assert batch.take() == []


def test_it_is_full_with_so_many_records():
    batch = StepBatch()
    batch.add([record(0)] * (MOST_STEPS - 1))
    assert not batch.is_full
    batch.add([record(1)])
    assert batch.is_full
    batch.take()
    assert not batch.is_full
