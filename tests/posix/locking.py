"""Locks that a caller process holds until it is told otherwise, by name."""

from __future__ import annotations

import fcntl
import os
import struct

#: flock structure of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")
F_OFD_SETLK = 37
TYPES = {"read": fcntl.F_RDLCK, "write": fcntl.F_WRLCK, "none": fcntl.F_UNLCK}


class Locks:
    """Descriptors with their locks."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def take(self, path: str, kind: str, start: int = 0, length: int = 0) -> None:
        """Lock without waiting; ``kind`` is "flock read", "posix write", "ofd read" …"""
        how, _, what = kind.partition(" ")
        key = f"{path} {how}"
        descriptor = self._held.get(key)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDWR)
        try:
            self._lock(descriptor, how, what, start, length)
        except OSError:
            if key not in self._held:
                os.close(descriptor)
            raise
        self._held[key] = descriptor

    @staticmethod
    def _lock(descriptor: int, how: str, what: str, start: int, length: int) -> None:
        if how == "flock":
            kinds = {"read": fcntl.LOCK_SH, "write": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}
            fcntl.flock(descriptor, kinds[what] | fcntl.LOCK_NB)
            return
        command = F_OFD_SETLK if how == "ofd" else fcntl.F_SETLK
        fcntl.fcntl(descriptor, command, _FLOCK.pack(TYPES[what], 0, start, length, 0))

    @staticmethod
    def holder(path: str) -> tuple[str, int]:
        """F_GETLK for a write lock of everything: what is in its way, and whose."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, _FLOCK.pack(TYPES["write"], 0, 0, 0, 0))
        finally:
            os.close(descriptor)
        kind, _, _, _, pid = _FLOCK.unpack(answer)
        return {number: name for name, number in TYPES.items()}[kind], pid

    def drop(self) -> None:
        """Close everything."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()
