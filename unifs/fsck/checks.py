"""All checks, in the order in which they are asked and mended: later ones trust earlier ones."""

from __future__ import annotations

from unifs.fsck import contents, mounts, names, records, shapes, stores

CHECKS = (
    *shapes.CHECKS,
    *mounts.CHECKS,
    *names.CHECKS,
    *records.CHECKS,
    *contents.CHECKS,
    *stores.CHECKS,
)
