"""What operations ask of the daemon about its own consistency, and what they are answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from unifs.control.daemon_protocol import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class Wrong(Answer, tag="found", tag_field="event"):
    """One inconsistency: a code that stays the same, and a sentence."""

    code: str
    message: str


class Checked(Answer, tag="checked", tag_field="event"):
    """What was looked at, and how much of it was wrong."""

    inodes: int
    names: int
    records: int
    contents: int
    #: Directories of /mfs whose blocks were compared with their rows.
    directories: int
    found: int


class FileDamage(Answer, tag="damage", tag_field="event"):
    """A range of a file whose bytes are not what they were."""

    path: str
    offset: int
    size_bytes: int
    reason: str


class Verifying(Answer, tag="progress", tag_field="event"):
    """How far a verification is; it can go on ``after`` this inode."""

    files: int
    bytes_done: int
    after: int


class Verified(Answer, tag="verified", tag_field="event"):
    """What a verification read. ``unhashed``: files without hashes yet, which were only read;
    ``absent``: files linked by CID or at a backend whose bytes are not all on this machine.
    """

    files: int
    size_bytes: int
    damaged: int
    unhashed: int
    absent: int


class Receipt(Answer):
    """What recovery or a repair did. ``name`` is its file in lost+found."""

    name: str
    kind: str
    time_s: float
    #: Files that went back to an earlier content, or got their names back.
    reverted: int
    #: What is in lost+found because of it, and every other thing worth a sentence.
    sentences: list[str]


class Checks(Protocol):
    """Is what is stored what was stored."""

    async def fsck(self, is_thorough: bool) -> tuple[Sequence[Wrong], Checked]:
        """Every inconsistency of rows, records and contents; ``is_thorough``: hash them too."""
        ...

    async def agree(self) -> tuple[Sequence[Wrong], Checked]:
        """Where journal, tree, contents and CIDs do not agree."""
        ...

    def verify(
        self, path: str | None, rate_bytes: float | None, after: int
    ) -> AsyncIterator[FileDamage | Verifying | Verified]:
        """Read every file from the disk and hash it; at most ``rate_bytes`` a second.

        ``Verifying`` comes after each file.
        """
        ...

    async def receipts(self) -> Sequence[Receipt]:
        """The newest first."""
        ...
