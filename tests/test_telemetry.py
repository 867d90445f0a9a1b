"""Numbers and the access log: what is counted is exported, and nobody who is slow costs memory."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

import unifs
from unifs import telemetry
from unifs.errors import TooManyHandles
from unifs.telemetry import Access, AccessLog, Metrics

A_REQUEST = Access(1, "read", 7, b"", 0, 4096, 1, 0, 0, 12_000)


def exported(metrics: Metrics) -> dict[str, float]:
    text = metrics.export()[0].decode()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_and_gauges_are_exported_with_their_labels() -> None:
    metrics = Metrics()
    errors = metrics.counter(telemetry.REQUEST_ERRORS, "read", "EIO")
    errors.value += 3
    assert metrics.counter(telemetry.REQUEST_ERRORS, "read", "EIO") is errors
    metrics.watch(telemetry.HANDLES_OPEN, lambda: 5)
    metrics.watch_all(telemetry.CACHE_BYTES, lambda: {("memory",): 10, ("disk",): 20})
    found = exported(metrics)
    assert found["unifs_request_errors_total[('errno', 'EIO'), ('operation', 'read')]"] == 3
    assert found["unifs_handles_open[]"] == 5
    assert found["unifs_cache_bytes[('tier', 'disk')]"] == 20
    assert found["process_resident_memory_bytes[]"] > 0
    assert found[f"unifs_build_info[('version', '{unifs.__version__}')]"] == 1


def test_a_histogram_exports_cumulative_buckets_in_seconds() -> None:
    metrics = Metrics()
    histogram = metrics.histogram(telemetry.REQUEST_DURATION, "lookup")
    histogram.counts[(5).bit_length()] += 1
    histogram.record(1_500_000)
    histogram.record(10**15)
    found = {key: value for key, value in exported(metrics).items() if "request_duration" in key}
    buckets = [value for key, value in found.items() if "_bucket" in key]
    assert buckets == sorted(buckets)
    assert buckets[0] == 1
    assert buckets[-1] == 3
    bound = "unifs_request_duration_seconds_bucket[('le', '{}'), ('operation', 'lookup')]"
    assert found[bound.format(2**20 / 1e9)] == 1
    assert found[bound.format(2**21 / 1e9)] == 2


def test_openmetrics_is_given_to_who_asks() -> None:
    metrics = Metrics()
    metrics.histogram(telemetry.FLUSH_DURATION).record(1000)
    text, content_type = metrics.export("application/openmetrics-text; version=1.0.0")
    assert "openmetrics" in content_type
    assert text.endswith(b"# EOF\n")


def test_labels_from_outside_cannot_grow_the_memory() -> None:
    metrics = Metrics()
    for number in range(telemetry.SERIES_MAX + 100):
        metrics.counter(telemetry.REQUEST_BUGS, str(number)).value += 1
    found = exported(metrics)
    assert found["unifs_request_bugs_total[('operation', 'other')]"] == 100


def test_every_metric_is_named_by_the_rules_of_prometheus() -> None:
    declared = [value for value in vars(telemetry).values() if isinstance(value, telemetry.Metric)]
    assert set(declared) == set(telemetry.METRICS)
    assert len({metric.name for metric in telemetry.METRICS}) == len(telemetry.METRICS)
    for metric in telemetry.METRICS:
        assert re.fullmatch(r"unifs(_[a-z]+)+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert (metric.kind == "histogram") == metric.name.endswith("_seconds")
        assert not set(metric.labels) & {"path", "cid", "name", "ino"}


async def test_a_reader_gets_what_happens_while_it_reads() -> None:
    log = AccessLog()
    assert not log.is_read
    with log.reading() as reader:
        assert log.is_read
        log.record(A_REQUEST)
        log.record(A_REQUEST._replace(operation="write"))
        seen = []
        async for access in reader:
            seen.append(access.operation)
            if len(seen) == 2:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_record_later, log)
            if len(seen) == 3:
                break
        assert seen == ["read", "write", "late"]
    assert not log.is_read


async def _record_later(log: AccessLog) -> None:
    await trio.lowlevel.checkpoint()
    log.record(A_REQUEST._replace(operation="late"))


async def test_a_slow_reader_loses_the_oldest_and_is_told() -> None:
    log = AccessLog()
    with log.reading() as reader:
        for number in range(log.QUEUED_MAX + 5):
            log.record(A_REQUEST._replace(ino=number))
        async for access in reader:
            assert access.ino == 5
            break
        assert reader.dropped == 5


def test_readers_are_bounded() -> None:
    log = AccessLog()
    with ExitStack() as stack:
        for _ in range(log.READERS_MAX):
            stack.enter_context(log.reading())
        with pytest.raises(TooManyHandles):
            stack.enter_context(log.reading())
    assert not log.is_read
