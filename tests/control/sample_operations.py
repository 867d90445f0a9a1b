"""Operations of every shape, for the tests of the surfaces."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Literal

import msgspec
import trio
from msgspec import Meta

from unifs.control.registry import Download, Emit, Param, Upload, operation
from unifs.errors import Corrupt, NotAvailableOffline


class Echo(msgspec.Struct):
    """What was given."""

    text: str
    number: int = 0
    flag: bool = False
    color: str = "red"
    names: list[str] = []


class Line(msgspec.Struct):
    """One event."""

    number: int


class Count(msgspec.Struct):
    """How many bytes came."""

    bytes: int


class Nothing(msgspec.Struct):
    """Nothing."""


@operation("sample.echo")
async def echo(
    daemon: object,
    text: Annotated[str, Param("any text")],
    number: Annotated[int, Meta(ge=0), Param("a number", short="-n")] = 0,
    flag: Annotated[bool, Param("yes or no")] = False,
    color: Annotated[Literal["red", "blue"], Param("one of two")] = "red",
    names: Annotated[list[str], Param("some names")] = [],  # noqa: B006
) -> Echo:
    """Say it again.

    For a test.
    """
    return Echo(text, number, flag, color, names)


@operation("sample.lines")
async def lines(
    daemon: object,
    emit: Emit[Line],
    count: Annotated[int, Param("how many")],
    fails: Annotated[bool, Param("fail at the end")] = False,
) -> None:
    """Count.

    Slowly.
    """
    for number in range(count):
        await emit(Line(number))
    if fails:
        raise NotAvailableOffline("the rest is elsewhere")


@operation("sample.forever")
async def forever(daemon: "SampleDaemon", emit: Emit[Line]) -> None:
    """Never end."""
    try:
        while True:
            await emit(Line(1))
            await trio.sleep(0.01)
    finally:
        daemon.ended.set()


@operation("sample.hang")
async def hang(daemon: "SampleDaemon") -> Nothing:
    """Wait until cancelled."""
    daemon.began.set()
    try:
        await trio.sleep_forever()
    finally:
        daemon.ended.set()
    raise AssertionError


@operation("sample.named", mutates=True)
async def named(daemon: "SampleDaemon", upload: Upload) -> Nothing:
    """Wait until cancelled, without a look at what is sent."""
    return await hang(daemon)


@operation("sample.bug")
async def bug(daemon: object) -> Nothing:
    """Fail in a way nobody named."""
    raise RuntimeError("secret detail")


@operation("sample.disk")
async def disk(daemon: object) -> Nothing:
    """Fail as the disk does."""
    raise OSError(28, "No space left on device")


@operation("sample.change", mutates=True)
async def change(daemon: object) -> Nothing:
    """Change something."""
    return Nothing()


@operation("sample.send", mutates=True)
async def send(
    daemon: object,
    upload: Upload,
    limit: Annotated[int | None, Param("stop after this many bytes")] = None,
    names: Annotated[list[str], Param("some names")] = [],  # noqa: B006
) -> Count:
    """Count the bytes that come."""
    total = 0
    async with aclosing(upload.chunks) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            total += len(chunk)
            if limit is not None and total > limit:
                raise Corrupt("that is not what it should be", total=total)
    return Count(total)


@operation("sample.fetch")
async def fetch(
    daemon: object,
    size: Annotated[int, Param("how many bytes")],
    fails: Annotated[bool, Param("fail at the end")] = False,
) -> Download:
    """Give bytes."""

    async def chunks() -> AsyncIterator[bytes]:
        sent = 0
        while sent < size:
            chunk = bytes(min(65536, size - sent))
            sent += len(chunk)
            yield chunk
            await trio.lowlevel.checkpoint()
        if fails:
            raise NotAvailableOffline("the rest is elsewhere", at=sent)

    return Download(chunks(), size_bytes=size)


class SampleDaemon:
    """What the sample operations ask of their daemon."""

    began: trio.Event
    ended: trio.Event
