"""`ctl fsck`, `ctl verify`, `ctl journal verify` and `receipts`, `ctl conflicts`, by the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.control.checks_protocol import FileDamage, Receipt, Wrong
from unifs.control.conflicts_protocol import Conflict

if TYPE_CHECKING:
    from tests.control.conftest import Shell

WRONG = Wrong(code="LINK_COUNT", message="/mfs/a has 1 names and says 9")


async def test_fsck_says_what_is_wrong_and_ends_with_damage(shell: Shell) -> None:
    (checked,) = await shell.json("ctl", "fsck")
    assert (checked["event"], checked["found"]) == ("checked", 0)
    shell.world.checks.wrong = [WRONG]
    code, out, err = await shell.run("ctl", "fsck", "--verify")
    assert code == 6
    assert b"LINK_COUNT" in out
    assert b"/mfs/a has 1 names and says 9" in out
    assert "1 thing is wrong" in err
    assert "unmount the tree, then `unifs fsck --repair`" in err


async def test_the_journal_is_proven(shell: Shell) -> None:
    (checked,) = await shell.json("ctl", "journal", "verify")
    assert (checked["directories"], checked["records"]) == (1, 3)
    shell.world.checks.wrong = [WRONG]
    code, _, err = await shell.run("ctl", "journal", "verify")
    assert (code, "1 thing does not agree" in err) == (6, True)
    assert "unmount the tree, then `unifs fsck --repair`" in err


async def test_verify_names_damage_and_can_go_on(shell: Shell) -> None:
    (verified,) = await shell.json("ctl", "verify")
    assert verified["damaged"] == 0
    damage = FileDamage(path="/mfs/d/a", offset=1 << 20, size_bytes=10, reason="rot")
    shell.world.checks.damages = [damage]
    code, out, err = await shell.run("ctl", "verify", "/mfs/d", "--rate", "2", "--after", "7")
    assert shell.world.checks.asked[-1] == ("/mfs/d", 2 << 20, 7)
    assert code == 6
    assert b"/mfs/d/a" in out
    assert "1 range of a file is damaged" in err
    assert (await shell.run("ctl", "verify", "--rate", "-1"))[0] == 2


async def test_receipts_are_listed(shell: Shell) -> None:
    receipt = Receipt(
        name="receipt-1.json", kind="kill", time_s=1.0, reverted=2, sentences=["inode 5: …"]
    )
    shell.world.checks.found_receipts = [receipt]
    (found,) = await shell.json("ctl", "journal", "receipts")
    assert (found["name"], found["kind"], found["reverted"]) == ("receipt-1.json", "kill", 2)


async def test_conflicts_are_listed_and_resolved(shell: Shell) -> None:
    ours = "/s3/a.conflict-host-20261121T120000Z.txt"
    shell.world.conflicts.conflicts[ours] = Conflict(
        path="/s3/a.txt", ours=ours, has_theirs=True, time_s=1.0
    )
    (found,) = await shell.json("ctl", "conflicts", "list")
    assert (found["path"], found["ours"]) == ("/s3/a.txt", ours)
    assert (await shell.run("ctl", "conflicts", "resolve", ours, "--keep", "mine"))[0] == 2
    (resolved,) = await shell.json("ctl", "conflicts", "resolve", ours, "--keep", "ours")
    assert (resolved["path"], resolved["kept"]) == ("/s3/a.txt", "ours")
    assert shell.world.conflicts.resolved == [(ours, "ours")]
    assert (await shell.run("ctl", "conflicts", "resolve", ours, "--keep", "ours"))[0] == 4


async def test_sync_waits_until_what_is_asked_for(shell: Shell) -> None:
    await shell.text("ctl", "sync", "/mfs", "--until", "verified")
    code, _, err = await shell.run("ctl", "sync", "--until", "synced", "--timeout", "1")
    assert (code, "not synced after 1 s" in err) == (3, True)
    assert (await shell.run("ctl", "sync", "--until", "written"))[0] == 2
