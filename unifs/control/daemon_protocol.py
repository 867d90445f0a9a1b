"""What operations ask of the running daemon.

The composition root provides it; operations and the server see nothing else of the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from unifs.config import Settings
    from unifs.telemetry import AccessLog, Metrics


class Daemon(Protocol):
    """The running unifs, as operations see it."""

    settings: Settings
    metrics: Metrics
    access_log: AccessLog
