"""Pins: kept durably, one mode per root, names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw
import pytest

from unifs.errors import Corrupt, Exists, NotFound, StateNewer
from unifs.ipfs.cid import Cid
from unifs.ipfs.embedded.pins import Pins

from .stores import raw

if TYPE_CHECKING:
    from pathlib import Path

A, B = raw(b"a"), raw(b"b")


def test_pins_survive_reopening(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins.db")
    pins.add(A, name="photos")
    pins.add(Cid(0, 0x70, B.multihash), "direct")
    pins.close()
    pins = Pins(tmp_path / "pins.db")
    assert [(pin.cid, pin.mode, pin.name) for pin in pins.scan()] == [
        (pin.cid, pin.mode, pin.name)
        for pin in sorted(pins.scan(), key=lambda pin: (pin.created_s, pin.cid.binary))
    ]
    assert {(pin.cid, pin.mode, pin.name) for pin in pins.scan()} == {
        (A, "recursive", "photos"),
        (Cid(0, 0x70, B.multihash), "direct", ""),
    }
    assert pins.get(B) is None, "a CIDv1 raw pin is not the CIDv0 pin of the same hash"
    pins.close()


def test_direct_becomes_recursive_but_not_back(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins.db")
    pins.add(A, "direct", "name")
    assert pins.add(A).mode == "recursive"
    assert pins.scan()[0].name == "name"
    with pytest.raises(Exists):
        pins.add(A, "direct")
    assert pins.add(A, name="other").name == "other"
    assert len(pins.scan("recursive")) == 1
    assert pins.scan("direct") == pins.scan(name="name") == []
    pins.close()


def test_removing_what_is_not_pinned_says_so(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins.db")
    with pytest.raises(NotFound, match="is not pinned"):
        pins.remove(A)
    pins.add(A)
    generation = pins.generation
    assert pins.remove(A).cid == A
    assert pins.generation > generation
    assert pins.scan() == []
    pins.close()


def test_restore_undoes_an_add(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins.db")
    before = pins.add(A, "direct", "x")
    pins.add(A, "recursive", "y")
    pins.restore(A, before)
    assert pins.get(A) == before
    pins.restore(A, None)
    assert pins.get(A) is None
    pins.close()


def test_pins_are_written_through(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins.db")
    assert pins._db.pragma("synchronous") == 2
    assert pins._db.pragma("journal_mode") == "wal"
    pins.close()


def test_newer_and_damaged_databases_are_refused_by_name(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins.db")
    pins.add(A)
    pins._db.execute("PRAGMA user_version=7")
    pins.close()
    with pytest.raises(StateNewer):
        Pins(tmp_path / "pins.db")
    (tmp_path / "bad.db").write_bytes(b"x" * 4096)
    with pytest.raises(Corrupt):
        Pins(tmp_path / "bad.db")
    assert issubclass(apsw.NotADBError, apsw.Error)
