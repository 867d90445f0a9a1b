"""A state directory with something of everything, stopped cleanly; and what must be in it."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import trio

from tests.vfs.harness import BOOT, FileSystem
from tests.vfs.nodeworld import NodeSystem
from unifs.fsck.offline import CLEAN, LEFT, REPAIRED, Outcome, examine

if TYPE_CHECKING:
    from pathlib import Path

SMALL = b"a few bytes of a small file\n"
LARGE = bytes(range(256)) * 800
HUGE = b"".join(bytes((number,)) * 65536 for number in range(40))

FILES = {
    "a": SMALL,
    "solo": b"alone" * 100,
    "d/a2": SMALL,
    "d/large": LARGE,
    "d/e/huge": HUGE,
    "d/e/open": LARGE[::-1],
    "d/empty": b"",
}


async def _fill(path: Path) -> None:
    async with NodeSystem(path) as fs:
        await fs.mkdir("d")
        await fs.mkdir("d/e")
        for name, data in FILES.items():
            if name not in ("d/a2", "d/e/open"):
                await fs.write(name, data)
        await FileSystem.link(fs, "a", "d/a2")
        await fs.symlink(b"../a", "d/link")
        await fs.mknod("d/fifo", 0o010644)
        await fs.setxattr("solo", b"user.k", b"v")
        await fs.add(b"pinned" * 50, pin=True)
        await fs.settle()
        # A second epoch, with a past; and one large content that is not sealed.
        await fs.setattr("solo", mode=0o600)
        await fs.write("d/gone", b"gone")
        await fs.settle()
        await fs.unlink("d/gone")
        await fs.write("d/e/open", FILES["d/e/open"])
        await fs.storage.flusher.flush()


def make(path: Path) -> None:
    """Fill a state directory."""
    trio.run(_fill, path)


def copy(source: Path, target: Path) -> None:
    """Another one like it; the reserve is made anew."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("reserve", "added"))


@dataclass
class State:
    """One state directory in which something will be planted."""

    path: Path

    def run(self, sql: str, *bindings: Any) -> int:
        """Change rows of tree.db; how many."""
        with closing(sqlite3.connect(self.path / "tree.db")) as connection:
            count = connection.execute(sql, bindings).rowcount
            connection.commit()
        return count

    def one(self, sql: str, *bindings: Any) -> Any:
        """The first value of the first row."""
        with closing(sqlite3.connect(self.path / "tree.db")) as connection:
            row = connection.execute(sql, bindings).fetchone()
        return None if row is None else row[0]

    def small(self, name: str, sql: str) -> None:
        """Change blocks.db or pins.db."""
        with closing(sqlite3.connect(self.path / name)) as connection:
            connection.execute(sql)
            connection.commit()

    def without_index(self, name: str, sql: str) -> None:
        """Rename a second link of solo behind an index's back."""
        bindings = (self.ino(""), self.ino("solo"))
        with closing(sqlite3.connect(self.path / "tree.db")) as connection:
            row = connection.execute(
                "select rootpage,sql from sqlite_master where name=?", (name,)
            ).fetchone()
            connection.execute("pragma writable_schema=on")
            connection.execute("delete from sqlite_master where name=?", (name,))
            connection.commit()
        with closing(sqlite3.connect(self.path / "tree.db")) as connection:
            connection.execute(sql, bindings)
            connection.execute("pragma writable_schema=on")
            connection.execute(
                "insert into sqlite_master values('index',?,'dentry',?,?)", (name, *row)
            )
            connection.commit()

    def dentry(self, path: str) -> int:
        """The number of a name."""
        return int(self.one("select id from dentry where ino=?", self.ino(path)))

    def ino(self, path: str) -> int:
        """The inode of a path below /mfs, by the rows."""
        ino = self.one("select root from mount where name='mfs'")
        for name in path.split("/") if path else []:
            query = "select ino from dentry where parent=? and name=?"
            ino = self.one(query, ino, os.fsencode(name))
        return int(ino)

    def attributes(self, path: str, at: int, value: int) -> None:
        """Change four bytes of the attributes of a path."""
        ino = self.ino(path)
        packed = bytearray(self.one("select attributes from inode where ino=?", ino))
        packed[at : at + 4] = value.to_bytes(4, "little")
        self.run("update inode set attributes=? where ino=?", bytes(packed), ino)

    def content(self, path: str) -> bytes:
        """The content column of a path."""
        query = "select content from inode where ino=?"
        return bytes(self.one(query, self.ino(path)))

    def content_id(self, path: str) -> int:
        return int.from_bytes(self.content(path)[1:9], "little")

    def container(self, path: str) -> Path:
        """The one file of a large content."""
        query = "select container from holding where content=?"
        return self.path / "data" / f"{self.one(query, self.content_id(path)):016x}"

    def examine(self, repair: bool = False, verify: bool = False) -> Outcome:
        with mock.patch("unifs.state.directory.boot_id", return_value=BOOT):
            return examine(self.path, repair, verify)

    def mend(self, code: str, verify: bool = False) -> Outcome:
        """It is found with that code, mended, and a second look finds nothing."""
        look = self.examine(verify=verify)
        assert code in {each.code for each in look.found}, look.found
        assert look.exit_code == LEFT
        assert look.receipt == ""
        outcome = self.examine(repair=True, verify=verify)
        assert code in {each.code for each in outcome.found}
        assert outcome.exit_code == REPAIRED, outcome.left
        again = self.examine(verify=True)
        assert again.exit_code == CLEAN, again.found
        return outcome

    def files(self) -> dict[str, bytes | Exception]:
        """Every file below /mfs by its path; what reading it raises."""
        return trio.run(_read_all, self.path)

    def places(self, moved: dict[str, str]) -> dict[str, str]:
        """Where a plant moves files, with the numbers of before the plant in it."""
        return {name: self._place(place) for name, place in moved.items()}

    def _place(self, place: str) -> str:
        place = re.sub(r"\{dentry ([^}]+)\}", lambda found: str(self.dentry(found[1])), place)
        return re.sub(r"\{([^}]+)\}", lambda found: str(self.ino(found[1])), place)

    def check_files(self, places: dict[str, str], lost: tuple[str, ...]) -> None:
        """Every file is there, at its place, with its bytes; but for those that are lost."""
        files = self.files()
        for name, data in FILES.items():
            found = files.get(places.get(name, name))
            if name in lost:
                # Not the bytes, but never others: what is left of them, or an honest error.
                assert found == b"" or isinstance(found, Exception), (name, found)
            else:
                assert found == data, (name, sorted(files))


async def _read_all(path: Path) -> dict[str, bytes | Exception]:
    found: dict[str, bytes | Exception] = {}
    async with NodeSystem(path) as fs:
        waiting = [""]
        while waiting:
            top = waiting.pop()
            for name in await fs.listdir(top):
                here = f"{top}/{os.fsdecode(name)}" if top else os.fsdecode(name)
                mode = (await fs.stat(here)).mode & 0o170000
                if mode == 0o040000:
                    waiting.append(here)
                elif mode == 0o100000:
                    try:
                        found[here] = await fs.read(here)
                    except Exception as error:
                        found[here] = error
        await fs.roots.build()
        assert fs.roots.current() is not None
    return found
