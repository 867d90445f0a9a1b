"""All checks, in the order in which they are asked and mended.

In stages: what one stage finds has to be mended before the next can be asked, because its checks
take rows as the earlier ones leave them.
"""

from __future__ import annotations

from unifs.fsck import columns, contents, mounts, names, records, shapes, stores, structure

STAGES = (
    columns.TEXT_CHECKS,
    columns.CHECKS,
    shapes.META_CHECKS,
    (*shapes.CHECKS, *mounts.CHECKS),
    (
        *names.CHECKS,
        *records.CHECKS,
        *contents.CHECKS,
        *stores.CHECKS,
        *structure.CHECKS,
    ),
)
