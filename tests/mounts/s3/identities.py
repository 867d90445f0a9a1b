"""Identities for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unifs.mounts.s3.options import Credentials


class Fixed:
    """Always the same one; None is anonymous."""

    def __init__(self, credentials: Credentials | None) -> None:
        self.credentials = credentials

    async def current(self) -> Credentials | None:
        return self.credentials
