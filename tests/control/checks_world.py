"""What the tests of operations are told about consistency and conflicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from unifs.control.checks_protocol import (
    Checked,
    FileDamage,
    Receipt,
    Verified,
    Verifying,
    Wrong,
)
from unifs.control.conflicts_protocol import Conflict, Resolved
from unifs.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from unifs.control.conflicts_protocol import Side


class MemoryChecks:
    """Finds what it was given."""

    def __init__(self) -> None:
        self.wrong: list[Wrong] = []
        self.damages: list[FileDamage] = []
        self.found_receipts: list[Receipt] = []
        self.asked: list[tuple[str | None, float | None, int]] = []

    async def fsck(self, is_thorough: bool) -> tuple[list[Wrong], Checked]:
        await trio.lowlevel.checkpoint()
        return self.wrong, self._checked(0)

    async def agree(self) -> tuple[list[Wrong], Checked]:
        return self.wrong, self._checked(1)

    def _checked(self, directories: int) -> Checked:
        found = len(self.wrong)
        return Checked(
            inodes=5, names=4, records=3, contents=2, directories=directories, found=found
        )

    async def verify(
        self, path: str | None, rate_bytes: float | None, after: int
    ) -> AsyncIterator[FileDamage | Verifying | Verified]:
        self.asked.append((path, rate_bytes, after))
        for number, damage in enumerate(self.damages):
            yield damage
            yield Verifying(files=number + 1, bytes_done=10, after=number + 2)
        count = len(self.damages)
        yield Verified(files=count, size_bytes=10 * count, damaged=count, unhashed=0, absent=0)

    async def receipts(self) -> list[Receipt]:
        return self.found_receipts


class MemoryConflicts:
    """Conflicts by the path of ours."""

    def __init__(self) -> None:
        self.conflicts: dict[str, Conflict] = {}
        self.resolved: list[tuple[str, str]] = []

    async def list(self, path: str | None) -> list[Conflict]:
        return [*self.conflicts.values()]

    async def resolve(self, path: str, keep: Side) -> Resolved:
        if path not in self.conflicts:
            raise NotFound(f"{path} is in no conflict")
        self.resolved.append((path, keep))
        return Resolved(path=self.conflicts.pop(path).path, kept=keep)
