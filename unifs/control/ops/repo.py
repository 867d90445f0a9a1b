"""The repository: what the node stores."""

from typing import Annotated

from unifs.control.daemon_protocol import Answer, Daemon
from unifs.control.ops.progress import telling
from unifs.control.registry import Emit, Param, operation
from unifs.errors import Corrupt


class RepoStat(Answer):
    """The blockstore in numbers. ``limit_bytes`` is null where there is no limit."""

    blocks: int
    own_bytes: int
    content_bytes: int
    segments: int
    limit_bytes: int | None
    pins: int


class Collected(Answer):
    """What a collection did. ``missing`` and ``damages`` name what it came across."""

    removed_blocks: int
    removed_bytes: int
    freed_bytes: int
    duration_s: float
    missing: list[str]
    damages: list[str]


class Verifying(Answer, tag="progress", tag_field="event"):
    """How many blocks have been read."""

    blocks: int


class Damage(Answer, tag="damage", tag_field="event"):
    """One damaged thing: ``cid`` is null for bytes that are no block."""

    cid: str | None
    where: str
    reason: str


class Verified(Answer, tag="verified", tag_field="event"):
    """What a verification read and found."""

    blocks: int
    size_bytes: int
    damaged: int
    is_index_rebuilt: bool


@operation("repo.stat")
async def stat(daemon: Daemon) -> RepoStat:
    """Tell how much the node stores."""
    found = await daemon.node.repo_stat()
    return RepoStat(
        blocks=found.blocks,
        own_bytes=found.own_bytes,
        content_bytes=found.content_bytes,
        segments=found.segments,
        limit_bytes=found.limit_bytes,
        pins=found.pins,
    )


@operation("repo.gc", mutates=True)
async def collect(daemon: Daemon) -> Collected:
    """Delete what no pin, no file and no history needs.

    Safe at any time: what is being written, read or imported stays.
    """
    found = await daemon.node.repo_gc()
    return Collected(
        removed_blocks=found.removed_blocks,
        removed_bytes=found.removed_bytes,
        freed_bytes=found.freed_bytes,
        duration_s=found.duration_s,
        missing=list(found.missing),
        damages=list(found.damages),
    )


@operation("repo.verify")
async def verify(
    daemon: Daemon,
    emit: Emit[Verifying | Damage | Verified],
    progress: Annotated[bool, Param("tell how far it is", hidden=True)] = False,
) -> None:
    """Hash everything that is stored again and name what is damaged.

    Ends with CORRUPT (6) where anything is.
    """

    async def tell(blocks: int) -> None:
        await emit(Verifying(blocks=blocks))

    found = await telling(daemon.node.repo_verify, tell if progress else None)
    for each in found.damages:
        cid = None if each.cid is None else str(each.cid)
        await emit(Damage(cid=cid, where=each.where, reason=each.reason))
    await emit(
        Verified(
            blocks=found.blocks,
            size_bytes=found.size_bytes,
            damaged=len(found.damages),
            is_index_rebuilt=found.is_index_rebuilt,
        )
    )
    if found.damages:
        raise Corrupt(f"{len(found.damages)} of {found.blocks} blocks are damaged")
