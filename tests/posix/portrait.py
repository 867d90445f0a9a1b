"""A tree that is hard to keep, and everything about a tree that has to be kept."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def hard_tree(root: Path) -> None:
    """What makes copying hard: links, holes, attributes, modes, odd names, special files, times."""
    root.mkdir()
    (root / "file").write_bytes(b"bytes" * 1000)
    os.link(root / "file", root / "hard")
    (root / "dir").mkdir(mode=0o2750)
    os.link(root / "file", root / "dir/hard too")
    (root / "dir" / os.fsdecode(b"odd\xff\n name")).write_text("odd")
    (root / "soft").symlink_to("dir/nowhere")
    os.mkfifo(root / "fifo", 0o640)
    with (root / "holes").open("wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    for path in (root / "file", root / "dir"):
        os.setxattr(path, "user.one", b"\0\xffvalue")
        os.setxattr(path, "user.two", b"")
    (root / "holes").chmod(0o604)
    (root / "empty").touch()
    for path in (root / "holes", root / "dir", root / "soft", root / "fifo", root):
        os.utime(path, ns=(10**18, 10**18 + 123_456_789), follow_symlinks=False)


def everything(root: Path) -> list[Path]:
    """The paths of a tree, its root first. No symlink is followed: its target may be too long."""
    found = [root]
    for above, directories, files in os.walk(root):
        found += [root.joinpath(above, name) for name in (*directories, *files)]
    return sorted(found)


def portrait(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a tree that an archive has to keep."""
    found: dict[str, tuple[object, ...]] = {}
    links: dict[int, list[str]] = {}
    for path in everything(root):
        name = os.fspath(path.relative_to(root))
        status = path.lstat()
        links.setdefault(status.st_ino, []).append(name)
        is_plain = stat.S_ISREG(status.st_mode)
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            0 if stat.S_ISDIR(status.st_mode) else status.st_nlink,
            status.st_mtime_ns,
            path.read_bytes() if is_plain else None,
            os.readlink(path) if stat.S_ISLNK(status.st_mode) else None,
            {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            },
            tuple(links[status.st_ino][:1]),
        )
    return found
