"""What a block links to, by its codec, and walks over whole DAGs.

Used by collection, pins and CAR export. For collection a link too many is harmless and one too few
is not: of dag-cbor every byte string that reads as a CID counts. Codecs that are not known here
have no links. Source: the IPLD codec specifications of dag-pb, dag-cbor and dag-json.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import libipld

from unifs.errors import Corrupt, InvalidCid
from unifs.ipfs import dagpb
from unifs.ipfs.cid import DAG_PB, RAW, Cid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAG_CBOR: Final = 0x71
DAG_JSON: Final = 0x0129


def has_links(cid: Cid) -> bool:
    """Whether a block of this codec can link to others."""
    return cid.codec in (DAG_PB, DAG_CBOR, DAG_JSON)


def links(cid: Cid, block: bytes) -> list[Cid]:
    """The CIDs that a block links to, in its order; Corrupt if it does not parse."""
    if cid.codec == RAW:
        return []
    try:
        if cid.codec == DAG_PB:
            return [Cid.decode(link.cid_binary) for link in dagpb.decode(block).links]
        if cid.codec == DAG_CBOR:
            return list(_of_value(libipld.decode_dag_cbor(block)))
        if cid.codec == DAG_JSON:
            return list(_of_json(json.loads(block)))
    except (ValueError, RecursionError, InvalidCid) as error:
        raise Corrupt(f"{cid} does not parse: {error}", cid=str(cid)) from error
    return []


def _of_value(value: object) -> Iterator[Cid]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, bytes):
            try:
                yield Cid.decode(item)
            except InvalidCid:
                continue
        elif isinstance(item, dict):
            pending += reversed(item.values())
        elif isinstance(item, list):
            pending += reversed(item)


def _of_json(value: object) -> Iterator[Cid]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            target = item.get("/")
            if len(item) == 1 and isinstance(target, str):
                yield Cid.parse(target)
            else:
                pending += reversed(item.values())
        elif isinstance(item, list):
            pending += reversed(item)


def walk(root: Cid, get: Callable[[Cid], bytes | None]) -> Iterator[Cid]:
    """Every block of a DAG once, depth first, parents before children, in the order of links.

    Blocks that can have links are read with ``get`` (None: go on without what is below); others are
    only named. Errors of ``get`` pass through and end the walk. The blocks of identity CIDs, which
    ``get`` is not asked for, are walked too.
    """
    pending = [root]
    seen: set[bytes] = set()
    while pending:
        cid = pending.pop()
        if cid.multihash in seen:
            continue
        seen.add(cid.multihash)
        yield cid
        if not has_links(cid):
            continue
        block = cid.digest if cid.is_identity else get(cid)
        if block is not None:
            pending += reversed(links(cid, block))
