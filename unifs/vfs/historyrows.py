"""What a past row says beyond its columns: the CID of its bytes, whether it is a link by CID that
nobody opened, and how two of them differ.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

from unifs.ipfs.cid import Cid
from unifs.ipfs.unixfs.builder import FileBuilder, build_symlink
from unifs.journal.content import LINKED, LargeContent, SmallContent
from unifs.vfs.roots import unpack_link
from unifs.vfs.tree import ATTRIBUTES

if TYPE_CHECKING:
    from unifs.vfs.history import Form
    from unifs.vfs.storage import Storage
    from unifs.vfs.tree import Tree

_LINKED = bytes((LINKED,))


def cid_at(storage: Storage, form: Form) -> Cid | None:
    """The CID of a file's, symlink's or linked directory's bytes; None where nobody knows it."""
    blob = form.content
    if blob and blob[0] == LINKED:
        return unpack_link(blob[1:]).cid
    profile = storage.profile
    kind = stat.S_IFMT(form.mode)
    if kind == stat.S_IFLNK:
        return build_symlink(blob[1:], profile, None).cid
    if kind != stat.S_IFREG:
        return None
    content = storage.contents.decode(blob)
    if content is None:
        return FileBuilder(profile, None).finish().cid
    if isinstance(content, LargeContent):
        return None if content.cid is None else unpack_link(content.cid).cid
    assert isinstance(content, SmallContent)
    return Cid.raw(content.digest) if profile.has_raw_leaves else None


def linked_row(tree: Tree, form: Form) -> Any:
    """The live row of what was linked by its CID and still is; None of everything else.

    A directory of which that is so has no rows for its names, in any epoch.
    """
    if form.content[:1] != _LINKED:
        return None
    row = tree.inode_row(form.ino)
    return row if row is not None and row[5][:1] == _LINKED else None


def differences(before: Form, after: Form) -> list[str]:
    """Words for what differs between two forms of one path; empty where nothing does.

    kind, content, mode, owner, links, time; of a directory names, where any came or went in it.
    """
    old, new = ATTRIBUTES.unpack(before.attributes), ATTRIBUTES.unpack(after.attributes)
    if stat.S_IFMT(old[0]) != stat.S_IFMT(new[0]):
        return ["kind"]
    words = []
    is_directory = stat.S_ISDIR(new[0])
    if not is_directory and before.content != after.content:
        words.append("content")
    if stat.S_IMODE(old[0]) != stat.S_IMODE(new[0]):
        words.append("mode")
    if old[1:3] != new[1:3]:
        words.append("owner")
    if not is_directory and old[3] != new[3]:
        words.append("links")
    if old[6] != new[6]:
        words.append("names" if is_directory else "time")
    return words
