"""What a service could never hold is refused when it is made, and never waits in the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from unifs.errors import CrossMount, InvalidArgument, NotPermitted

if TYPE_CHECKING:
    from tests.s3.operations import Bench


async def test_names_that_no_key_has_are_refused_at_once(bench: Bench) -> None:
    system, top = bench.system, bench.bucket
    await bench.write("file", b"x")
    for name in ("a%%2Fb", "b%%", "file%%", "long%%+"):
        with pytest.raises(InvalidArgument):
            await bench.write(name, b"x")
        with pytest.raises(InvalidArgument):
            await system.mkdir(f"{top}/{name}")
        with pytest.raises(InvalidArgument):
            await system.symlink(b"x", f"{top}/{name}")
        with pytest.raises(InvalidArgument):
            await system.rename(f"{top}/file", f"{top}/{name}")
    # Beside no file it would be shown under its plain name.
    bench.put("k")
    bench.put("k/below")
    assert "k%%" in await bench.names()
    await system.mkdir(f"{top}/other")
    with pytest.raises(InvalidArgument):
        await system.rename(f"{top}/k%%", f"{top}/other/k%%")
    await bench.write("50%%25%2F", b"y")
    await system.sync()
    assert bench.get("50%%2F") == b"y"
    assert (await system.daemon.journal.status(None)).quarantined == 0


async def test_where_buckets_lie_is_nothing_else(bench: Bench) -> None:
    system, top = bench.system, bench.bucket
    await bench.write("file", b"x")
    await system.mkdir(f"{top}/directory")
    with pytest.raises(NotPermitted):
        await system.write("file", b"x")
    with pytest.raises(NotPermitted):
        await system.symlink(b"x", "link")
    with pytest.raises(InvalidArgument):
        await system.mkdir("Not A Bucket")
    # Programs copy then, and remove.
    for old, new in (
        (top, "other-bucket"),
        (f"{top}/file", "moved-file"),
        (f"{top}/directory", "moved-directory"),
    ):
        with pytest.raises(CrossMount):
            await system.rename(old, new)
    await system.mkdir("made-bucket")
    await system.sync()
    names = [each["Name"] for each in bench.client.list_buckets()["Buckets"]]
    assert {top, "made-bucket"} <= {*names}
    assert (await system.daemon.journal.status(None)).quarantined == 0
