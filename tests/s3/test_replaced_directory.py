"""Names that are an object's and a directory's at the service: at once, or one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.s3.test_exchanges import exchange, held, synced
from unifs.errors import NotFound

if TYPE_CHECKING:
    from tests.s3.operations import Bench


@pytest.mark.parametrize("is_exchanged", [False, True])
@pytest.mark.parametrize("is_new", [False, True])
async def test_what_is_due_in_it_reaches_the_bucket(
    both: Bench, is_new: bool, is_exchanged: bool
) -> None:
    """The object that has its name is taken for it by a rename; neither is lost."""
    bench = both
    bench.put("d/in", b"old")
    bench.put("other", b"other")
    for directory in ("", "d"):
        await bench.names(directory)
    bench.client.delete_object(Bucket=bench.bucket, Key="d/in")
    bench.client.delete_object(Bucket=bench.bucket, Key="d/")
    bench.put("d", b"theirs")
    await bench.system.write(f"{bench.bucket}/d/{'new' if is_new else 'in'}", b"mine")
    if is_exchanged:
        await exchange(bench, "d", "other")
    await synced(bench)
    assert sorted(data for data in held(bench).values() if data) == [b"mine", b"other", b"theirs"]
    with trio.fail_after(30):
        assert sorted(await bench.names()) == sorted({key.partition("/")[0] for key in held(bench)})


async def test_nothing_lies_in_a_file(both: Bench) -> None:
    """What has a file's key and a slash before its own lies in the directory beside the file."""
    bench = both
    bench.put("b/c", b"in")
    bench.put("b", b"file")
    assert await bench.read("b") == b"file"
    with pytest.raises(NotFound):
        await bench.read("b/c")
    with pytest.raises(NotFound):
        await bench.system.unlink(f"{bench.bucket}/b/c")
    assert await bench.read("b%%/c") == b"in"
