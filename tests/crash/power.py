"""Power cuts: the state directory on a loop device that is cut off without a log flush.

    python -m tests.crash.power --cuts 20 [--fs ext4|xfs] [--target unifs|plain] [--scenario NAME]

A cut: stop the daemon (it can acknowledge nothing any more), shut the file system down with
FS_IOC_SHUTDOWN and no log flush, kill the daemon, unmount, mount (the log is replayed), mount unifs
again, check. Everything that was not forced to the disk is gone, in the order of the log;
nothing is reordered.
Each cut looks like a reboot: the program runs in a mount namespace of its own and binds a new boot
id over the kernel's. Needs root and loop devices.

The target ``plain`` works on the loop device itself, with what ext4 promises; it proves the
harness, and with --fake-fsync that the harness finds a file system that lies.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tests.crash.cycle import Campaign, Receipts, Summary
from tests.crash.daemon import Daemon, freeze, thaw
from tests.crash.history import POWER_CUT, POWER_CUT_PLAIN
from tests.crash.kill import lost_and_found
from tests.crash.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Sequence

#: FS_IOC_SHUTDOWN, _IOR('X', 125, __u32), and its flag "do not flush the log".
FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
INSIDE = "UNIFS_TEST_POWER_NAMESPACE"
#: XFS refuses to be smaller than 300 MiB.
IMAGE_BYTES = 1 << 30


class Disk:
    """A file system in a file that can lose its power."""

    def __init__(self, base: Path, kind: str) -> None:
        self.kind, self.image, self.root = kind, base / "disk.img", base / "disk"
        self.root.mkdir()
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        make = {
            # No lazy initialisation: its thread would write during the campaign.
            "ext4": ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            "xfs": ["mkfs.xfs", "-q"],
        }
        subprocess.run([*make[kind], str(self.image)], check=True)

    def mount(self) -> None:
        """Mount; after a cut the log is replayed here."""
        subprocess.run(["mount", "-o", "loop", self.image, self.root], check=True)

    def cut(self) -> None:
        """Drop everything that is not on the disk; every later call on it fails."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount, which after a cut writes nothing."""
        subprocess.run(["umount", self.root], check=True)


def new_boot() -> None:
    """Give this namespace another boot id."""
    fake = Path(tempfile.gettempdir()) / f"boot-{os.getpid()}"
    fake.write_text(f"{uuid.uuid4()}\n")
    subprocess.run(["umount", BOOT_ID], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["mount", "--bind", fake, BOOT_ID], check=True)
    fake.unlink()


class PlainDisk:
    """The workload directly on the disk: what the kernel's file system promises."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self.root = disk, disk.root

    def start(self) -> None:
        """Mount the disk."""
        self.disk.mount()

    def crash(self, workers: Sequence[int]) -> list[str]:
        """Cut the power. The workers get EIO and end; they hold the disk until then."""
        freeze(workers)
        self.disk.cut()
        thaw(workers)
        subprocess.run(["umount", "-l", self.disk.root], check=True)
        return []

    def receipts(self) -> Receipts:
        """A plain file system leaves none."""
        return Receipts("", [])


class PoweredDaemon:
    """A daemon whose state directory lies on a disk that loses its power."""

    def __init__(self, disk: Disk, daemon: Daemon, seed: int) -> None:
        self.disk, self.daemon, self.root = disk, daemon, daemon.root
        self.choose = random.Random(seed)

    def start(self) -> None:
        """Boot: mount the disk, then unifs."""
        self.disk.mount()
        new_boot()
        self.daemon.start()

    def crash(self, workers: Sequence[int]) -> list[str]:
        """Cut the power at this moment; the workers see a dead mount."""
        self._write_back_by_itself()
        freeze(self.daemon.pids())
        self.disk.cut()
        self.daemon.kill()
        self.disk.unmount()
        return []

    def _write_back_by_itself(self) -> None:
        """Do sometimes what the kernel may do at any time: write some dirty pages to the disk."""
        wal = self.daemon.state / "tree.db-wal"
        which = self.choose.choice(("nothing", "the write-ahead log", "everything"))
        if which == "everything":
            fd = os.open(self.disk.root, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            subprocess.run(["sync", "-f", self.disk.root], check=True)
        elif which == "the write-ahead log" and wal.exists():
            fd = os.open(wal, os.O_RDONLY)
            os.fdatasync(fd)
            os.close(fd)

    def receipts(self) -> Receipts:
        """Return what recovery wrote about bytes that it could not place."""
        return lost_and_found(self.daemon.state)


def run_cuts(options: argparse.Namespace, base: Path) -> Summary:
    """Cut the power ``options.cuts`` times and return what was found."""
    scratch = base / "manifests"
    scratch.mkdir()
    disk = Disk(base, options.fs)
    daemon = Daemon(base)
    daemon.state = disk.root / "state"
    daemon.command = [*daemon.command[:-2], str(daemon.state), str(daemon.mount)]
    if options.target == "plain":
        campaign = Campaign(PlainDisk(disk), POWER_CUT_PLAIN, scratch, options.seed)
    else:
        powered = PoweredDaemon(disk, daemon, options.seed)
        campaign = Campaign(powered, POWER_CUT, scratch, options.seed)
    if options.scenario != "mixed":
        campaign.scenarios, campaign.is_ended_first = (options.scenario,), True
    if options.fake_fsync:
        campaign.extra_arguments = ("--fake-fsync",)
    try:
        summary = campaign.run(options.cuts)
        if options.keep:
            shutil.copytree(scratch, options.keep, dirs_exist_ok=True)
        if summary.violations:
            print(daemon.tail()[-3000:], campaign.target.receipts().text, sep="\n", file=sys.stderr)
        return summary
    finally:
        daemon.close()
        subprocess.run(["umount", "-l", disk.root], stderr=subprocess.DEVNULL, check=False)


def main() -> int:
    """Run a campaign in a namespace of its own; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fs", choices=("ext4", "xfs"), default="ext4")
    parser.add_argument("--target", choices=("unifs", "plain"), default="unifs")
    parser.add_argument("--scenario", choices=("mixed", *SCENARIOS), default="mixed")
    parser.add_argument("--fake-fsync", action="store_true", help="a planted fault")
    parser.add_argument(
        "--dir", default=tempfile.gettempdir(), help="where the disk's image is kept"
    )
    parser.add_argument("--keep", type=Path, help="copy the manifests here, to see what led to it")
    options = parser.parse_args()
    if INSIDE not in os.environ:
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m"]
        command += ["tests.crash.power", *sys.argv[1:]]
        return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="unifs-power-", dir=options.dir) as name:
        summary = run_cuts(options, Path(name))
    print(f"power cuts of {options.target} on {options.fs}, {options.scenario}: {summary}")
    return 0 if summary.is_proof else 1


if __name__ == "__main__":
    sys.exit(main())
