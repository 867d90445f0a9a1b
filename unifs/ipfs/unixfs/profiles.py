"""Profiles: the choices that decide which CID a file or a directory gets.

Every writer below ``unixfs/`` takes a ``Profile``; a state directory keeps one for its life. Values
come from IPIP-0499 (CID profiles) and from what Kubo does by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

#: How a directory's size is told when deciding between one block and a HAMT: the exact length of
#: the one block, or the sum of the lengths of names and CIDs.
SizeRule = Literal["block", "links"]

#: Blocks that this package makes stay below what Bitswap carries.
BLOCK_MAX_BYTES: Final = 2 << 20
#: Blocks that this package reads: larger ones exist in foreign DAGs, and are refused beyond this.
BLOCK_HARD_MAX_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Profile:
    """One way of turning bytes and names into a DAG.

    Files are cut into chunks of ``chunk_bytes``, a node links at most ``width`` children. A
    directory whose size by ``hamt_rule`` is **above** ``hamt_threshold_bytes`` becomes a HAMT of
    ``hamt_fanout``. ``has_raw_leaves`` tells whether chunks are raw blocks or wrapped in dag-pb.
    """

    name: str
    chunk_bytes: int
    width: int
    cid_version: int
    has_raw_leaves: bool
    hamt_rule: SizeRule
    hamt_threshold_bytes: int = 262_144
    hamt_fanout: int = 256


UNIXFS_V1_2025: Final = Profile("unixfs-v1-2025", 1 << 20, 1024, 1, True, "block")
UNIXFS_V0_2015: Final = Profile("unixfs-v0-2015", 256 << 10, 174, 0, False, "links")
#: ``ipfs add --cid-version=1`` without further options, Kubo's own default shape.
KUBO_V1: Final = Profile("kubo-v1", 256 << 10, 174, 1, True, "links")

DEFAULT_PROFILE: Final = UNIXFS_V1_2025

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {profile.name: profile for profile in (UNIXFS_V1_2025, UNIXFS_V0_2015, KUBO_V1)}
)
