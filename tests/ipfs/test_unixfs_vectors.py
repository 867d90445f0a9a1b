"""All published UnixFS vectors, by building them and by reading them back."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from unifs.ipfs.unixfs.builder import FileBuilder, hash_leaf, import_file, leaf_cid
from unifs.ipfs.unixfs.directory import DirectoryReader, build_directory, list_directory
from unifs.ipfs.unixfs.node import DirEntry
from unifs.ipfs.unixfs.profiles import PROFILES
from unifs.ipfs.unixfs.reader import FileReader, stat_node

from .conftest import Keystream

if TYPE_CHECKING:
    from unifs.ipfs.cid import Cid

    from .conftest import Blocks

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("unixfs_vectors.json").read_text())
GIB = 1 << 30
SMALL = [vector for vector in VECTORS["files"] if vector.get("size_bytes", 0) < GIB]
LARGE = [vector for vector in VECTORS["files"] if vector.get("size_bytes", 0) >= GIB]


def test_all_eighteen_are_here() -> None:
    assert len(SMALL) + len(LARGE) + len(VECTORS["directories"]) == 18
    assert [vector["size_bytes"] for vector in LARGE] == [GIB, GIB + 1]


@pytest.mark.parametrize("vector", SMALL, ids=lambda vector: vector["cid"])
def test_file(vector: dict[str, Any], blocks: Blocks) -> None:
    if "text" in vector:
        content = vector["text"].encode()
    else:
        content = Keystream(vector["seed"], vector["size_bytes"]).at(0, vector["size_bytes"])
    link = import_file(io.BytesIO(content), PROFILES[vector["profile"]], blocks.put)
    assert str(link.cid) == vector["cid"]
    assert link.size_bytes == len(content)
    assert link.tsize == sum(map(len, blocks.held.values()))
    assert stat_node(link.cid, blocks.get).size_bytes == len(content)
    assert FileReader(link.cid, blocks.get).read(0, len(content) + 1) == content


def test_one_gibibyte_and_one_byte_more(blocks: Blocks) -> None:
    """Both vectors from one pass over the key stream; leaves are made again to be read back."""
    shorter, longer = LARGE
    profile = PROFILES[shorter["profile"]]
    chunk = profile.chunk_bytes
    stream = Keystream(longer["seed"], longer["size_bytes"])
    builders = [FileBuilder(profile, blocks.put) for _ in LARGE]
    offsets: dict[Cid, int] = {}
    whole = hashlib.sha256()
    for offset in range(0, longer["size_bytes"], chunk):
        data = stream.at(offset, chunk)
        whole.update(data)
        digest = hash_leaf(profile, data)
        offsets[leaf_cid(profile, digest)] = offset
        for builder, vector in zip(builders, LARGE, strict=True):
            if offset < vector["size_bytes"]:
                builder.leaf_digest(digest, len(data))
    links = [builder.finish() for builder in builders]
    assert [str(link.cid) for link in links] == [vector["cid"] for vector in LARGE]
    assert len(blocks.held) == 3, "the root over 1,024 leaves is a child in the other DAG"

    def get(cid: Cid) -> bytes:
        return stream.at(offsets[cid], chunk) if cid in offsets else blocks.get(cid)

    reader = FileReader(links[1].cid, get)
    assert reader.size_bytes == GIB + 1
    back = hashlib.sha256()
    for offset in range(0, GIB + 1, 8 << 20):
        back.update(reader.read(offset, 8 << 20))
    assert back.digest() == whole.digest()
    shorter_reader = FileReader(links[0].cid, get)
    for offset in (0, chunk - 64, 511 * chunk + 64, GIB - 64, GIB):
        assert shorter_reader.read(offset, 128) == stream.at(offset, min(128, GIB - offset))


@pytest.mark.parametrize("vector", VECTORS["directories"], ids=lambda vector: vector["cid"])
def test_directory(vector: dict[str, Any], blocks: Blocks) -> None:
    profile = PROFILES[vector["profile"]]
    child = import_file(io.BytesIO(b"x"), profile, blocks.put)
    names = _names(vector) if vector["entries"] else []
    entries = [DirEntry(name, child.cid, child.tsize) for name in names]
    link = build_directory(entries, profile, blocks.put)
    assert str(link.cid) == vector["cid"]
    by_name = {entry.name: entry for entry in list_directory(link.cid, blocks.get)}
    assert sorted(by_name.values(), key=lambda entry: entry.name) == sorted(
        entries, key=lambda entry: entry.name
    )
    reader = DirectoryReader(link.cid, blocks.get)
    for entry in entries:
        assert reader.lookup(entry.name) == entry
        assert reader.lookup(entry.name + b"-") is None


def _names(vector: dict[str, Any]) -> list[bytes]:
    alphabet = VECTORS["alphabet"].encode()
    lengths = [vector["name_bytes"]] * (vector["entries"] - 1) + [vector["last_name_bytes"]]
    stream = Keystream(vector["seed"], sum(lengths)).at(0, sum(lengths))
    letters = bytes(alphabet[byte % len(alphabet)] for byte in stream)
    names = []
    at = 0
    for length in lengths:
        names.append(letters[at : at + length])
        at += length
    return names
