"""A file whose key is that of its directory, through the whole tree: on moto, for SeaweedFS drops
its bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from unifs.errors import NotEmpty

if TYPE_CHECKING:
    from tests.s3.operations import Bench


async def test_it_is_renamed_with_its_directory_and_keeps_it(moto_bench: Bench) -> None:
    bench = moto_bench
    bench.put("d/", b"theirs")
    bench.put("d/f", b"1")
    assert await bench.names("d") == ["%%", "f"]
    await bench.system.rename(f"{bench.bucket}/d", f"{bench.bucket}/e")
    assert await bench.read("e/%%") == b"theirs"
    await bench.system.sync()
    assert (bench.get("e/"), bench.get("e/f")) == (b"theirs", b"1")
    await bench.system.kill()
    await bench.shell.text("ctl", "refresh", "-r", f"{bench.top}/e")
    assert await bench.names("e") == ["%%", "f"]
    assert await bench.read("e/%%") == b"theirs"
    await bench.write("e/%%", b"ours")
    await bench.system.unlink(f"{bench.bucket}/e/f")
    with pytest.raises(NotEmpty):
        await bench.system.rmdir(f"{bench.bucket}/e")
    await bench.system.sync()
    assert bench.get("e/") == b"ours"
