"""The root of /mfs: whatever changed in whatever order, it is the root of a build from nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unifs.errors import NotAvailableOffline
from unifs.ipfs.embedded import large_directory
from unifs.ipfs.embedded.mfs_root import Child, Dirty, MfsRoot, RootBuilder, build_root
from unifs.ipfs.unixfs.builder import build_symlink
from unifs.ipfs.unixfs.directory import build_directory, list_directory
from unifs.ipfs.unixfs.node import DirEntry, Link
from unifs.ipfs.unixfs.profiles import PROFILES, Profile

from .stores import Store, raw

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pytest

    from unifs.ipfs.cid import Cid

V1 = PROFILES["unixfs-v1-2025"]
SMALL = Profile("small", 1 << 20, 1024, 1, True, "block", hamt_threshold_bytes=600)


@dataclass
class Tree:
    """Rows in memory, with the bookkeeping that a tree's owner does."""

    root: int = 1
    rows: dict[int, dict[bytes, Child]] = field(default_factory=lambda: {1: {}})
    parents: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    links: dict[int, Link] = field(default_factory=dict)
    dirty: dict[int, set[bytes]] = field(default_factory=dict)
    asked: int = 0
    inodes: int = 1

    def put(self, parent: int, name: bytes, child: Child) -> None:
        self.remove(parent, name)
        self.rows[parent][name] = child
        self.dirty.setdefault(parent, set()).add(name)
        if child.kind == "directory":
            self.parents[child.ino] = (parent, name)

    def remove(self, parent: int, name: bytes) -> Child | None:
        old = self.rows[parent].pop(name, None)
        self.dirty.setdefault(parent, set()).add(name)
        if old is not None and old.kind == "directory":
            self.parents.pop(old.ino, None)
        return old

    def file(self, parent: int, name: bytes, data: bytes | None) -> None:
        self.inodes += 1
        cid = None if data is None else raw(data)
        self.put(parent, name, Child(name, self.inodes, "file", cid, len(data or b"")))

    def directory(self, parent: int, name: bytes) -> int:
        self.inodes += 1
        ino = self.inodes
        self.rows[ino] = {}
        self.dirty[ino] = set()
        self.put(parent, name, Child(name, ino, "directory"))
        return ino

    # --- TreeView -------------------------------------------------------------------------------

    def dirty_directories(self) -> list[Dirty]:
        return [Dirty(ino, names) for ino, names in self.dirty.items()]

    def parent(self, ino: int) -> tuple[int, bytes] | None:
        return self.parents.get(ino)

    def count(self, ino: int) -> int:
        return len(self.rows[ino])

    def children(self, ino: int) -> Iterable[Child]:
        self.asked += len(self.rows[ino])
        return self.rows[ino].values()

    def many_children(self, ino: int) -> Iterator[Child | str]:
        """Half of the leaves as text; every tenth as a child too, as if it had changed."""
        for number, child in enumerate(self.children(ino)):
            if child.cid is None or number % 2:
                yield child
                continue
            leaf = child.tsize.to_bytes(4, "little") + child.cid.multihash[2:]
            yield f"{child.name.hex()} {leaf.hex()}"
            if number % 10 == 0:
                yield child

    def child(self, ino: int, name: bytes) -> Child | None:
        self.asked += 1
        return self.rows[ino].get(name)

    def directory_link(self, ino: int) -> Link | None:
        return self.links.get(ino)


def from_nothing(tree: Tree, profile: Profile, ino: int = 1) -> Link:
    entries = []
    for child in tree.rows[ino].values():
        link: Link | None = None
        if child.kind == "directory":
            link = from_nothing(tree, profile, child.ino)
        elif child.kind == "symlink":
            link = build_symlink(child.target, profile, None)
        elif child.cid is not None:
            link = Link(child.cid, child.tsize)
        if link is not None:
            entries.append(DirEntry(child.name, link.cid, link.tsize))
    return build_directory(entries, profile, None)


def build(tree: Tree, blocks: dict[Cid, bytes], profile: Profile = V1) -> MfsRoot:
    def get(cid: Cid) -> bytes:
        if cid not in blocks:
            raise NotAvailableOffline(str(cid))
        return blocks[cid]

    builder = RootBuilder(tree, profile, get, lambda cid, data: blocks.update({cid: bytes(data)}))
    while not builder.is_done:
        assert builder.run(3) is None
    result = builder.result()
    tree.links.update(result.directories)
    tree.dirty.clear()
    return result


def test_an_empty_tree_is_the_empty_directory() -> None:
    tree = Tree()
    result = build(tree, {})
    assert result.root == from_nothing(tree, V1)
    assert result.directories == {1: result.root}
    again = build(tree, {})
    assert (again.root, again.directories) == (result.root, {})


def test_only_what_changed_and_what_is_above_is_built() -> None:
    tree, blocks = Tree(), {}
    a, b = tree.directory(1, b"a"), tree.directory(1, b"b")
    deep = tree.directory(a, b"deep")
    tree.file(deep, b"f", b"1")
    tree.file(b, b"g", b"2")
    first = build(tree, blocks)
    assert set(first.directories) == {1, a, b, deep}
    tree.file(deep, b"f", b"3")
    second = build(tree, blocks)
    assert set(second.directories) == {1, a, deep}
    assert second.root == from_nothing(tree, V1)
    assert second.root != first.root


def test_the_way_up_is_gone_once_in_a_deep_tree() -> None:
    asked = 0

    class Counted(Tree):
        def parent(self, ino: int) -> tuple[int, bytes] | None:
            nonlocal asked
            asked += 1
            return super().parent(ino)

    tree, blocks = Counted(), {}
    ino = 1
    for _ in range(300):
        ino = tree.directory(ino, b"d")
        tree.file(ino, b"f", b"data")
    for name in (b"g", b"h"):
        asked = 0
        assert build(tree, blocks).root == from_nothing(tree, V1)
        assert asked <= 300
        for each in [*tree.rows]:
            tree.file(each, name, b"more")


def test_a_few_changes_in_a_large_directory_touch_only_their_paths() -> None:
    tree, blocks = Tree(), {}
    for number in range(2000):
        tree.file(1, b"name-%d" % number, b"%d" % number)
    build(tree, blocks, SMALL)
    tree.asked = 0
    tree.file(1, b"name-77", b"changed")
    tree.remove(1, b"name-78")
    tree.file(1, b"new", b"new")
    assert build(tree, blocks, SMALL).root == from_nothing(tree, SMALL)
    assert tree.asked <= 6
    for number in range(200):
        tree.file(1, b"name-%d" % number, b"changed again")
    tree.asked = 0
    assert build(tree, blocks, SMALL).root == from_nothing(tree, SMALL)
    assert tree.asked == len(tree.rows[1]), "a tenth changed: built anew from rows"


def test_lost_blocks_are_built_again_from_rows() -> None:
    tree, blocks = Tree(), {}
    for number in range(500):
        tree.file(1, b"name-%d" % number, b"%d" % number)
    build(tree, blocks, SMALL)
    blocks.clear()
    tree.file(1, b"name-1", b"changed")
    result = build(tree, blocks, SMALL)
    assert result.lost == [1]
    assert result.root == from_nothing(tree, SMALL)
    names = {entry.name for entry in list_directory(result.root.cid, blocks.__getitem__)}
    assert len(names) == 500


def test_what_unixfs_cannot_hold_is_left_out_and_said() -> None:
    tree, blocks = Tree(), {}
    tree.file(1, b"open", None)
    tree.put(1, b"fifo", Child(b"fifo", 50, "special"))
    tree.put(1, b"link", Child(b"link", 51, "symlink", target=b"../x"))
    result = build(tree, blocks)
    assert result.unfinished == [2]
    listed = [entry.name for entry in list_directory(result.root.cid, blocks.__getitem__)]
    assert listed == [b"link"]


def test_hard_links_are_two_entries() -> None:
    tree, blocks = Tree(), {}
    child = Child(b"one", 9, "file", raw(b"x"), 1)
    tree.put(1, b"one", child)
    tree.put(1, b"two", Child(b"two", 9, "file", raw(b"x"), 1))
    result = build(tree, blocks)
    entries = list(list_directory(result.root.cid, blocks.__getitem__))
    assert [(entry.name, entry.cid) for entry in entries] == [
        (b"one", raw(b"x")),
        (b"two", raw(b"x")),
    ]


def test_directories_that_were_never_built_are_built_on_the_way() -> None:
    tree, blocks = Tree(), {}
    a = tree.directory(1, b"a")
    b = tree.directory(a, b"b")
    tree.file(b, b"f", b"1")
    first = build(tree, blocks)
    tree.links.clear()
    tree.file(1, b"g", b"2")
    second = build(tree, blocks)
    assert set(second.directories) == {1, a, b}
    assert second.root == from_nothing(tree, V1)
    assert second.directories[a] == first.directories[a]


def test_directories_without_a_name_are_not_built() -> None:
    tree, blocks = Tree(), {}
    gone = tree.directory(1, b"gone")
    build(tree, blocks)
    tree.file(gone, b"f", b"1")
    tree.remove(1, b"gone")
    result = build(tree, blocks)
    assert set(result.directories) == {1}


async def test_large_directories_are_built_in_a_process_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(large_directory, "PROCESS_ENTRIES_MIN", 300)
    store = Store(tmp_path, limit_bytes=1 << 20)
    tree = Tree()
    sub = tree.directory(1, b"sub")
    for number in range(400):
        tree.file(sub, b"name-%d" % number, b"%d" % number)
    with store.blocks.importing():
        result = await build_root(tree, V1, store.blocks, trio.CapacityLimiter(1))
    assert result.root == from_nothing(tree, V1)
    assert store.own.sync_target() is None
    assert len(list(list_directory(result.directories[sub].cid, store.blocks.get))) == 400
    store.close()


NAMES = st.sampled_from(
    [b"%s-%d" % (stem, n) for stem in (b"a", b"long name " * 5) for n in range(9)]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("file"), st.integers(0, 9), NAMES, st.integers(0, 3)),
        st.tuples(st.just("mkdir"), st.integers(0, 9), NAMES, st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 9), NAMES, st.just(0)),
        st.tuples(st.just("move"), st.integers(0, 9), NAMES, st.integers(0, 9)),
        st.tuples(st.just("build"), st.just(0), st.just(b""), st.just(0)),
        st.tuples(st.just("many"), st.integers(0, 9), st.just(b""), st.integers(0, 60)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_any_history_gives_the_root_of_a_build_from_nothing(
    steps: list[tuple[str, int, bytes, int]],
) -> None:
    tree, blocks = Tree(), {}
    for verb, where, name, value in steps:
        attached = [1, *tree.parents]
        parent = attached[where % len(attached)]
        if verb == "file":
            tree.file(parent, name, b"%d" % value)
        elif verb == "many":
            for number in range(value):
                tree.file(parent, b"many-%d" % number, b"%d" % number)
        elif verb == "mkdir":
            tree.directory(parent, name)
        elif verb == "remove":
            detach(tree, tree.remove(parent, name))
        elif verb == "move" and name in tree.rows[parent]:
            target = attached[value % len(attached)]
            child = tree.rows[parent][name]
            if not is_below(tree, target, child.ino):
                tree.remove(parent, name)
                detach(tree, tree.rows[target].get(name))
                tree.put(target, name, child)
        elif verb == "build":
            assert build(tree, blocks, SMALL).root == from_nothing(tree, SMALL)
    result = build(tree, blocks, SMALL)
    assert result.root == from_nothing(tree, SMALL)


def is_below(tree: Tree, ino: int, ancestor: int) -> bool:
    while ino != ancestor:
        above = tree.parents.get(ino)
        if above is None:
            return False
        ino = above[0]
    return True


def detach(tree: Tree, child: Child | None) -> None:
    """What was below a removed directory has no way to the root any more."""
    if child is not None and child.kind == "directory":
        tree.parents.pop(child.ino, None)
        for below in tree.rows[child.ino].values():
            detach(tree, below)
