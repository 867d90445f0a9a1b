"""What `/metrics` shows of this daemon: numbers its parts keep anyway, asked at each export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs import telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from unifs.answers.journal import JournalAnswer
    from unifs.cache.reads import ReadCache
    from unifs.remotes import Remote, Remotes
    from unifs.telemetry import Metrics
    from unifs.vfs.storage import Storage
    from unifs.vfs.vfs import Vfs


def watch(
    metrics: Metrics, vfs: Vfs, storage: Storage, cache: ReadCache, journal: JournalAnswer
) -> None:
    """Tell the metrics where their numbers are."""
    metrics.watch(telemetry.INODES_HOT, lambda: vfs.statistics()["hot"])
    metrics.watch(
        telemetry.HANDLES_OPEN,
        lambda: vfs.statistics()["handles"] + vfs.statistics()["directories"],
    )
    metrics.watch(telemetry.JOURNAL_COMMITS, lambda: storage.database.commits)
    metrics.watch(telemetry.JOURNAL_WAL_BYTES, lambda: storage.database.wal_bytes)
    metrics.watch_all(telemetry.JOURNAL_DIRTY_BYTES, lambda: _by_mount(journal.unsynced_bytes()))
    metrics.watch_all(
        telemetry.JOURNAL_DIRTY_BYTES_MAX, lambda: _by_mount(journal.unsynced_bytes_max())
    )
    metrics.watch_all(telemetry.JOURNAL_RECORDS, lambda: _records(journal))
    metrics.watch_all(telemetry.STORE_BYTES, lambda: _store_bytes(storage))
    metrics.watch_all(telemetry.CACHE_BYTES, lambda: _cache_bytes(cache))
    metrics.watch_all(telemetry.CACHE_HITS, lambda: _disk_counts(cache, "hits"))
    metrics.watch_all(telemetry.CACHE_FAULTS, lambda: _disk_counts(cache, "faults"))
    storage.flusher.on_round = metrics.histogram(telemetry.FLUSH_DURATION).record


def watch_remotes(metrics: Metrics, remotes: Remotes) -> None:
    """Tell the metrics where the numbers of each backend are."""

    def by_mount(value: Callable[[Remote], float]) -> Mapping[tuple[str, ...], float]:
        return {(remote.name,): value(remote) for remote in remotes}

    def states() -> Mapping[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = {}
        for remote in remotes:
            counts = remote.volume.writeback.statistics()
            for state in ("waiting", "running", "quarantined"):
                found[remote.name, state] = counts[state]
        return found

    def counted(of: Callable[[Remote], Mapping[str, int]]) -> Mapping[tuple[str, ...], float]:
        return {
            (remote.name, label): number
            for remote in remotes
            for label, number in of(remote).items()
        }

    watch_all = metrics.watch_all
    watch_all(telemetry.BACKEND_CHANGES, states)
    watch_all(
        telemetry.BACKEND_DIRTY_BYTES,
        lambda: by_mount(lambda each: each.volume.unsynced.size_bytes),
    )
    watch_all(
        telemetry.BACKEND_CONFIRMED, lambda: by_mount(lambda each: each.volume.writeback.confirmed)
    )
    watch_all(telemetry.BACKEND_ROWS, lambda: by_mount(lambda each: each.volume.rows))
    watch_all(telemetry.BACKEND_UP, lambda: by_mount(lambda each: not each.problem))
    watch_all(telemetry.BACKEND_CALLS, lambda: counted(lambda each: each.mount.health.calls))
    watch_all(telemetry.BACKEND_ERRORS, lambda: counted(lambda each: each.mount.health.failures))
    watch_all(telemetry.BACKEND_SENT, lambda: by_mount(lambda each: each.mount.health.sent_bytes))
    watch_all(
        telemetry.BACKEND_RECEIVED, lambda: by_mount(lambda each: each.mount.health.received_bytes)
    )


def _records(journal: JournalAnswer) -> dict[tuple[str, ...], float]:
    counts = journal.count()
    return {
        ("open",): counts.open,
        ("closed",): counts.closed,
        ("sealed",): counts.sealed,
        ("quarantined",): counts.quarantined,
    }


def _by_mount(sizes: dict[str, int]) -> dict[tuple[str, ...], float]:
    return {(mount,): size for mount, size in sizes.items()}


def _store_bytes(storage: Storage) -> dict[tuple[str, ...], float]:
    return {
        ("nodes",): storage.nodes.statistics().size_bytes,
        ("contents",): storage.segments.statistics().size_bytes,
    }


def _cache_bytes(cache: ReadCache) -> dict[tuple[str, ...], float]:
    statistics = cache.statistics()
    found: dict[tuple[str, ...], float] = {("memory",): statistics.memory.bytes}
    if statistics.disk is not None:
        found[("disk",)] = statistics.disk.bytes
    return found


def _disk_counts(cache: ReadCache, what: str) -> dict[tuple[str, ...], float]:
    disk = cache.statistics().disk
    return {} if disk is None else {("disk",): getattr(disk, what)}
