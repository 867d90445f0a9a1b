"""Counters, histograms and the access log of one daemon.

Owns every metric's name, unit and labels: they stand here and nowhere else. The composition root
makes one ``Metrics`` and one ``AccessLog`` and hands them to whoever counts; the control server
exports them. Nothing here may cost a request more than one list increment and one look at
``is_read``.

Everything runs on the daemon's event loop; nothing here is safe to call from a thread.

Labels are few and known in advance (operation, mount, tier), never a path or a CID.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

import trio

import unifs
from unifs.errors import TooManyHandles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric as Family


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its exported name ends in its unit."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()


REQUEST_DURATION: Final = Metric(
    "histogram",
    "unifs_request_duration_seconds",
    "Time from a request of the kernel to its reply",
    ("operation",),
)
REQUEST_ERRORS: Final = Metric(
    "counter",
    "unifs_request_errors_total",
    "Requests of the kernel that were answered with an error",
    ("operation", "errno"),
)
REQUEST_BUGS: Final = Metric(
    "counter",
    "unifs_request_bugs_total",
    "Requests of the kernel that met a bug: answered with EIO, traceback in the log",
    ("operation",),
)
REQUESTS_SUSPENDED: Final = Metric(
    "gauge", "unifs_requests_suspended", "Requests that wait for a mount's backend", ("mount",)
)
REQUESTS_REFUSED: Final = Metric(
    "counter",
    "unifs_requests_refused_total",
    "Requests answered with ETIMEDOUT at once, because too many already wait for their mount",
    ("mount",),
)
INODES_HOT: Final = Metric("gauge", "unifs_inodes_hot", "Inodes kept with their reply built")
HANDLES_OPEN: Final = Metric("gauge", "unifs_handles_open", "Open files and directories")
CACHE_HITS: Final = Metric(
    "counter", "unifs_cache_hits_total", "Extents and blocks found in a tier", ("tier",)
)
CACHE_FAULTS: Final = Metric(
    "counter", "unifs_cache_faults_total", "Cached bytes that failed their check", ("tier",)
)
CACHE_BYTES: Final = Metric("gauge", "unifs_cache_bytes", "Bytes kept in a tier", ("tier",))
JOURNAL_COMMITS: Final = Metric(
    "counter", "unifs_journal_commits_total", "Transactions committed to the journal"
)
JOURNAL_RECORDS: Final = Metric(
    "gauge", "unifs_journal_records", "Changes that are not confirmed yet, by state", ("state",)
)
JOURNAL_DIRTY_BYTES: Final = Metric(
    "gauge",
    "unifs_journal_dirty_bytes",
    "Bytes that are not sealed yet, or not at their mount's backend",
    ("mount",),
)
JOURNAL_DIRTY_BYTES_MAX: Final = Metric(
    "gauge",
    "unifs_journal_dirty_bytes_max",
    "Bytes at which the writers of a mount wait",
    ("mount",),
)
JOURNAL_WAL_BYTES: Final = Metric("gauge", "unifs_journal_wal_bytes", "Size of the journal's WAL")
FLUSH_DURATION: Final = Metric(
    "histogram", "unifs_flush_duration_seconds", "One flush round: data, segment, WAL"
)
STORE_BYTES: Final = Metric(
    "gauge", "unifs_store_bytes", "Bytes of own data on disk, by kind of file", ("kind",)
)
BACKEND_CHANGES: Final = Metric(
    "gauge", "unifs_backend_changes", "Objects that a backend does not have yet", ("mount", "state")
)
BACKEND_DIRTY_BYTES: Final = Metric(
    "gauge", "unifs_backend_dirty_bytes", "Bytes that a backend does not have yet", ("mount",)
)
BACKEND_CONFIRMED: Final = Metric(
    "counter", "unifs_backend_confirmed_total", "Changes that a backend confirmed", ("mount",)
)
BACKEND_ROWS: Final = Metric(
    "gauge", "unifs_backend_rows", "Objects of a backend that are known here", ("mount",)
)
BACKEND_UP: Final = Metric(
    "gauge", "unifs_backend_up", "1 where the last call of a backend was answered", ("mount",)
)
BACKEND_CALLS: Final = Metric(
    "counter", "unifs_backend_calls_total", "Calls of a backend", ("mount", "call")
)
BACKEND_ERRORS: Final = Metric(
    "counter",
    "unifs_backend_errors_total",
    "Calls that a backend did not answer, or refused",
    ("mount", "error_code"),
)
BACKEND_SENT: Final = Metric(
    "counter", "unifs_backend_sent_bytes_total", "Content sent to a backend", ("mount",)
)
BACKEND_RECEIVED: Final = Metric(
    "counter", "unifs_backend_received_bytes_total", "Content read from a backend", ("mount",)
)
TASK_BUGS: Final = Metric(
    "counter", "unifs_task_bugs_total", "Background tasks that failed and began again", ("task",)
)
CONTROL_DURATION: Final = Metric(
    "histogram",
    "unifs_control_duration_seconds",
    "Time from a control request to the end of its answer",
    ("operation",),
)
CONTROL_ERRORS: Final = Metric(
    "counter",
    "unifs_control_errors_total",
    "Control requests that were answered with an error",
    ("operation", "error_code"),
)
BUILD_INFO: Final = Metric("gauge", "unifs_build_info", "The version that runs", ("version",))

METRICS: Final = (
    REQUEST_DURATION,
    REQUEST_ERRORS,
    REQUEST_BUGS,
    REQUESTS_SUSPENDED,
    REQUESTS_REFUSED,
    INODES_HOT,
    HANDLES_OPEN,
    CACHE_HITS,
    CACHE_FAULTS,
    CACHE_BYTES,
    JOURNAL_COMMITS,
    JOURNAL_RECORDS,
    JOURNAL_DIRTY_BYTES,
    JOURNAL_DIRTY_BYTES_MAX,
    JOURNAL_WAL_BYTES,
    FLUSH_DURATION,
    STORE_BYTES,
    BACKEND_CHANGES,
    BACKEND_DIRTY_BYTES,
    BACKEND_CONFIRMED,
    BACKEND_ROWS,
    BACKEND_UP,
    BACKEND_CALLS,
    BACKEND_ERRORS,
    BACKEND_SENT,
    BACKEND_RECEIVED,
    TASK_BUGS,
    CONTROL_DURATION,
    CONTROL_ERRORS,
    BUILD_INFO,
)

#: Different label values one metric may have; what comes later is counted as "other".
SERIES_MAX: Final = 512

BUCKETS: Final = 64
#: Buckets below 1 µs and above 137 s say nothing that anybody acts on.
_FIRST_BUCKET, _LAST_BUCKET = 10, 37


class Counter:
    """A number that grows: ``counter.value += 1``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Histogram:
    """Durations by powers of two: ``histogram.counts[elapsed_ns.bit_length()] += 1``.

    Bucket b counts durations from 2**(b-1) up to, not including, 2**b nanoseconds. There is no sum:
    it would be a second update per request, and the buckets bound it within a factor of two. So the
    number of durations is exported as the bucket +Inf alone.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS

    def record(self, elapsed_ns: int) -> None:
        """What hot paths do inline."""
        self.counts[elapsed_ns.bit_length()] += 1


class Metrics:
    """The numbers of one daemon."""

    def __init__(self) -> None:
        self._counters: dict[Metric, dict[tuple[str, ...], Counter]] = {}
        self._histograms: dict[Metric, dict[tuple[str, ...], Histogram]] = {}
        self._gauges: dict[Metric, Callable[[], Mapping[tuple[str, ...], float]]] = {}
        self.watch_all(BUILD_INFO, lambda: {(unifs.__version__,): 1})

    def counter(self, metric: Metric, *labels: str) -> Counter:
        """The counter for these label values, made at its first use. Keep it; do not look it up."""
        assert metric.kind == "counter"
        return _series(self._counters.setdefault(metric, {}), metric, labels, Counter)

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """The histogram for these label values, made at its first use."""
        assert metric.kind == "histogram"
        return _series(self._histograms.setdefault(metric, {}), metric, labels, Histogram)

    def watch(self, metric: Metric, value: Callable[[], float]) -> None:
        """Ask ``value`` at each export for a number without labels."""
        assert not metric.labels
        self.watch_all(metric, lambda: {(): value()})

    def watch_all(
        self, metric: Metric, values: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        """Ask ``values`` at each export: label values -> number. Replaces an earlier one.

        For gauges, and for counters that somebody else counts anyway.
        """
        assert metric.kind in ("gauge", "counter")
        self._gauges[metric] = values

    def export(self, accept: str = "") -> tuple[bytes, str]:
        """The text for Prometheus and its content type; OpenMetrics where ``accept`` asks."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def collect(self) -> Iterator[Family]:
        """What prometheus_client asks a collector for."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        for metric, counters in self._counters.items():
            family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, counter in counters.items():
                family.add_metric(labels, counter.value)
            yield family
        for metric, histograms in self._histograms.items():
            durations = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, histogram in histograms.items():
                durations.add_metric(labels, _cumulated(histogram.counts), sum_value=None)
            yield durations
        for metric, values in self._gauges.items():
            is_counter = metric.kind == "counter"
            watched = (CounterMetricFamily if is_counter else GaugeMetricFamily)(
                metric.name, metric.help, labels=metric.labels
            )
            for labels, number in values().items():
                watched.add_metric(labels, number)
            yield watched


def _series(
    series: dict[tuple[str, ...], T], metric: Metric, labels: tuple[str, ...], make: Callable[[], T]
) -> T:
    assert len(labels) == len(metric.labels), metric.name
    found = series.get(labels)
    if found is None:
        if len(series) >= SERIES_MAX:
            labels = ("other",) * len(labels)
        found = series.setdefault(labels, make())
    return found


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    total = sum(counts[:_FIRST_BUCKET])
    buckets: list[tuple[str, float]] = []
    for bucket in range(_FIRST_BUCKET, _LAST_BUCKET + 1):
        total += counts[bucket]
        buckets.append((repr((1 << bucket) / 1e9), total))
    buckets.append(("+Inf", sum(counts)))
    return buckets


# --- the access log -----------------------------------------------------------------------------


class Access(NamedTuple):
    """One request of the kernel and what it was answered. errno 0 is success."""

    at_ns: int
    operation: str
    ino: int
    name: bytes
    offset: int
    size: int
    pid: int
    uid: int
    errno: int
    elapsed_ns: int


class AccessReader:
    """The requests since this reader came, oldest first: iterate it.

    A reader that lags behind loses the oldest; ``dropped`` counts them.
    """

    def __init__(self, queued_max: int) -> None:
        self.dropped = 0
        self._queue: deque[Access] = deque(maxlen=queued_max)
        self._arrived = trio.Event()

    def add(self, access: Access) -> None:
        """Queue one request; a full queue loses its oldest."""
        if len(self._queue) == self._queue.maxlen:
            self.dropped += 1
        self._queue.append(access)
        self._arrived.set()

    def __aiter__(self) -> AccessReader:
        return self

    async def __anext__(self) -> Access:
        while not self._queue:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._queue.popleft()


class AccessLog:
    """Requests as they are answered, for whoever reads along.

    The driver looks at ``is_read`` and builds an ``Access`` only when it is true.
    """

    #: Requests a reader may lag behind: 1 MiB or so, two seconds at full load.
    QUEUED_MAX: Final = 20_000
    READERS_MAX: Final = 16

    def __init__(self) -> None:
        self.is_read = False
        self._readers: list[AccessReader] = []

    def record(self, access: Access) -> None:
        """Hand one request to all readers. Never blocks."""
        for reader in self._readers:
            reader.add(access)

    @contextmanager
    def reading(self) -> Iterator[AccessReader]:
        """Read along inside this context."""
        if len(self._readers) >= self.READERS_MAX:
            raise TooManyHandles(f"the access log already has {self.READERS_MAX} readers")
        reader = AccessReader(self.QUEUED_MAX)
        self._readers.append(reader)
        self.is_read = True
        try:
            yield reader
        finally:
            self._readers.remove(reader)
            self.is_read = bool(self._readers)
