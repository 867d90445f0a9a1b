"""Pins: roots that collections leave alone."""

from typing import Annotated, Literal

from unifs.control.daemon_protocol import Answer, Daemon
from unifs.control.ops.node_path import NodePath, node_path
from unifs.control.registry import Emit, Param, operation
from unifs.errors import Corrupt


class Pin(Answer):
    """One pinned root. ``mode`` is recursive (everything below too) or direct (one block)."""

    cid: str
    mode: str
    created_s: int
    name: str


class PinVerdict(Answer):
    """Whether all that a pin promises is here and right."""

    cid: str
    is_whole: bool
    missing: list[str]
    damaged: list[str]


PinMode = Literal["recursive", "direct"]


@operation("pins.add", mutates=True)
async def add(
    daemon: Daemon,
    cid: NodePath,
    mode: Annotated[PinMode, Param("keep everything below too, or one block")] = "recursive",
    name: Annotated[str | None, Param("a name for the pin", short="-n")] = None,
) -> Pin:
    """Keep content: collections leave it alone.

    Durable when it returns. Everything that the pin promises has to be on this machine.
    """
    resolved = await daemon.node.resolve(await node_path(daemon, cid))
    pin = await daemon.node.pins_add(resolved, mode, name)
    return Pin(cid=str(pin.cid), mode=pin.mode, created_s=pin.created_s, name=pin.name)


@operation("pins.rm", mutates=True)
async def remove(daemon: Daemon, cid: NodePath) -> Pin:
    """Stop keeping content; the next collection may take it."""
    resolved = await daemon.node.resolve(await node_path(daemon, cid))
    pin = await daemon.node.pins_remove(resolved)
    return Pin(cid=str(pin.cid), mode=pin.mode, created_s=pin.created_s, name=pin.name)


@operation("pins.ls")
async def ls(
    daemon: Daemon,
    emit: Emit[Pin],
    mode: Annotated[PinMode | None, Param("only these")] = None,
    name: Annotated[str | None, Param("only pins with this name", short="-n")] = None,
) -> None:
    """List what is pinned, the oldest first."""
    for pin in await daemon.node.pins_scan(mode, name):
        await emit(Pin(cid=str(pin.cid), mode=pin.mode, created_s=pin.created_s, name=pin.name))


@operation("pins.verify")
async def verify(daemon: Daemon, emit: Emit[PinVerdict]) -> None:
    """Read everything that is pinned and say what is missing or damaged.

    Ends with CORRUPT (6) where anything is.
    """
    broken = 0
    async for verdict in daemon.node.pins_verify():
        broken += bool(verdict.missing or verdict.damaged)
        await emit(
            PinVerdict(
                cid=str(verdict.pin.cid),
                is_whole=not verdict.missing and not verdict.damaged,
                missing=[str(each) for each in verdict.missing],
                damaged=[str(each) for each in verdict.damaged],
            )
        )
    if broken:
        raise Corrupt(f"{broken} pins are not whole")
