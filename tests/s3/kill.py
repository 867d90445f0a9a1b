"""kill -9 of the daemon in the middle of what takes S3 many requests; then it must converge.

    scripts/campaign s3-kill --kills 60 [--seed N]

Three scenarios: an upload in parts, a directory of 1,000 keys that is renamed, 1,000 files that are
removed. A proxy between daemon and server counts requests, so that the daemon dies after exactly as
many of them as asked for. After the restart and a ``journal sync`` the bucket holds what the tree
was told, no more and no less, and nothing of an upload is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.crash.daemon import Daemon, repository_environment
from tests.servers.faultproxy import Fault, FaultProxy
from tests.servers.s3 import Weed
from unifs.mounts.s3.names import PROBE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.http1 import Head
    from tests.servers.s3 import S3Server

KEYS = 1_000
LARGE_BYTES = 64 << 20
PART_BYTES = 8 << 20
REACH_S = 60.0
SYNC_S = 120.0


class Tap(threading.Thread):
    """A fault proxy in a thread of its own, which counts the requests of one kind."""

    def __init__(self, upstream: str, counts: Callable[[Head], bool]) -> None:
        super().__init__(name="tap")
        self._upstream = upstream
        self._counts = counts
        self._ready = threading.Event()
        self.count = 0
        #: Requests of that kind take so long: the daemon must not be done before it is killed.
        self.delay_s = 0.0

    def __enter__(self) -> Tap:
        self.start()
        self._ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self.join()

    def run(self) -> None:
        trio.run(self._serve)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with FaultProxy(self._upstream) as proxy:
            proxy.script = self._judge
            self.endpoint = proxy.endpoint
            with trio.CancelScope() as self._scope:
                self._ready.set()
                await trio.sleep_forever()

    def _judge(self, request: Head) -> Fault | None:
        if not self._counts(request):
            return None
        self.count += 1
        return Fault("delay", self.delay_s) if self.delay_s else None

    def reach(self, count: int) -> None:
        """Return when so many requests of that kind have begun."""
        end = time.monotonic() + REACH_S
        while self.count < count:
            assert time.monotonic() < end, f"{self.count} requests of {count} in {REACH_S} s"
            time.sleep(0.001)


@dataclass
class Stage:
    """A bucket, the tap before it and a daemon that mounts it."""

    server: S3Server
    bucket: str
    tap: Tap
    daemon: Daemon

    @property
    def root(self) -> Path:
        return self.daemon.mount / "s3"

    def seed(self, prefix: str) -> dict[str, bytes]:
        """KEYS small objects; key -> bytes."""
        made = {f"{prefix}/f{number:04}": b"content %d" % number for number in range(KEYS)}
        for key, data in made.items():
            self.server.client().put_object(Bucket=self.bucket, Key=key, Body=data)
        return made

    def held(self) -> dict[str, bytes]:
        """Every object, markers of directories left out."""
        client, found = self.server.client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for key in (entry["Key"] for entry in page.get("Contents", [])):
                if not key.endswith("/"):
                    with client.get_object(Bucket=self.bucket, Key=key)["Body"] as body:
                        found[key] = body.read()
        return found

    def shown(self) -> dict[str, bytes]:
        """Every file of the mount."""
        return {
            os.path.relpath(os.path.join(above, name), self.root): Path(above, name).read_bytes()
            for above, _, names in os.walk(self.root)
            for name in names
        }

    def crash(self) -> None:
        """kill -9 and a new daemon, which brings everything to the bucket."""
        self.daemon.kill()
        self.tap.delay_s = 0.0
        self.daemon.start()
        self.sync()

    def sync(self) -> None:
        """Everything reaches the bucket."""
        command = [sys.executable, "-m", "unifs", "ctl", "--state", str(self.daemon.state)]
        done = subprocess.run(
            [*command, "journal", "sync", "/s3", "--timeout-s", str(SYNC_S), "--json"],
            env=repository_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.daemon.tail()

    def uploads(self) -> int:
        """Uploads in parts that nobody completed."""
        listed = self.server.client().list_multipart_uploads(Bucket=self.bucket)
        return len(listed.get("Uploads", []))


@contextlib.contextmanager
def open_stage(server: S3Server, base: Path, counts: Callable[[Head], bool]) -> Iterator[Stage]:
    """``counts`` says which requests the tap counts."""
    base.mkdir(parents=True, exist_ok=True)
    bucket = server.bucket()
    with Tap(server.endpoint, counts) as tap:
        daemon = Daemon(base, below="s3")
        settings = base / "settings.toml"
        settings.write_text(
            "[journal]\nwriteback_delay_s = 0.1\n[mounts.s3]\n"
            f'endpoint = "{tap.endpoint}"\nregion = "{server.region}"\nbucket = "{bucket}"\n'
        )
        command = [sys.executable, "-m", "unifs", "mount", "--foreground", "--config"]
        daemon.command = [*command, str(settings), "--state", str(daemon.state), str(daemon.mount)]
        keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        with _environment(keys):
            try:
                yield Stage(server, bucket, tap, daemon)
                daemon.stop()
            finally:
                daemon.close()


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def same(what: str, found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """Fail, with a few of the names, where two trees are not the same."""
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    other = sorted(key for key in wanted.keys() & found.keys() if found[key] != wanted[key])
    difference = missing + extra + other
    assert not difference, (
        f"{what}: {len(missing)} missing {missing[:3]}, {len(extra)} extra {extra[:3]}, "
        f"{len(other)} with other bytes {other[:3]}"
    )


# --- scenarios ------------------------------------------------------------------------------------


def is_part(request: Head) -> bool:
    """Parts, and the completion."""
    return "partNumber=" in request.target or (
        request.method == "POST" and "uploadId=" in request.target
    )


def upload_in_parts(server: S3Server, base: Path, after: int) -> str:
    """64 MiB written; the daemon dies after ``after`` parts (the mark and the completion count)."""
    data = random.Random(after).randbytes(LARGE_BYTES)
    with open_stage(server, base, is_part) as stage:
        stage.daemon.start()
        stage.tap.delay_s = 0.02
        (stage.root / "large").write_bytes(data)
        stage.tap.reach(after)
        stage.crash()
        same("held", stage.held(), {"large": data})
        same("shown", stage.shown(), {"large": data})
        assert stage.uploads() == 0, "an upload is left"
        return f"{stage.tap.count} requests for {LARGE_BYTES // PART_BYTES} parts"


def probes_in(held: dict[str, bytes]) -> dict[str, bytes]:
    """What a daemon leaves that dies while it tries what a service heeds; a later one sweeps it."""
    return {key: data for key, data in held.items() if PROBE in key and not data}


def is_change(request: Head) -> bool:
    """Whatever changes the bucket."""
    return request.method in ("PUT", "DELETE", "POST")


def rename_of_a_directory(server: S3Server, base: Path, after: int) -> str:
    """A directory of 1,000 keys gets another name; the daemon dies after ``after`` changes."""
    with open_stage(server, base, is_change) as stage:
        seeded = stage.seed("old")
        stage.daemon.start()
        assert len(os.listdir(stage.root / "old")) == KEYS
        stage.tap.delay_s = 0.001
        os.rename(stage.root / "old", stage.root / "new")
        stage.tap.reach(after)
        stage.crash()
        wanted = {f"new/{key.rpartition('/')[2]}": data for key, data in seeded.items()}
        held = stage.held()
        probes = probes_in(held)
        same("held", held, wanted | probes)
        same("shown", stage.shown(), wanted)
        return f"{stage.tap.count} changes for {KEYS} keys, {len(probes)} probes left"


def removal_of_many(server: S3Server, base: Path, after: int) -> str:
    """1,000 files are removed and one replaced by somebody; killed after ``after`` changes."""
    with open_stage(server, base, is_change) as stage:
        stage.seed("gone")
        stage.daemon.start()
        names = sorted(os.listdir(stage.root / "gone"))
        assert len(names) == KEYS
        stage.tap.delay_s = 0.05
        theirs = f"gone/{names[-1]}"
        server.client().put_object(Bucket=stage.bucket, Key=theirs, Body=b"theirs")
        for name in names:
            os.unlink(stage.root / "gone" / name)
        stage.tap.reach(after)
        stage.crash()
        held = stage.held()
        probes = probes_in(held)
        same("held", held, {theirs: b"theirs"} | probes)
        told = f"{stage.tap.count} changes for {KEYS} removals, {len(probes)} probes left"
        return told


#: The scenarios, and the last request after which a kill makes sense.
SCENARIOS: dict[str, tuple[Callable[[S3Server, Path, int], str], int]] = {
    "upload": (upload_in_parts, 10),
    "rename": (rename_of_a_directory, 1_900),
    "removal": (removal_of_many, 3),
}


def main() -> int:
    """Play what the command line asks for; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="scripts/campaign s3-kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", choices=SCENARIOS)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    place = Path(tempfile.mkdtemp(prefix="unifs-s3-"))
    failed = 0
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        server = stack.enter_context(Weed(place, sweeps=False))
        for number in range(options.kills):
            name = options.scenario or chance.choice(sorted(SCENARIOS))
            scenario, last = SCENARIOS[name]
            after = chance.randint(1, last)
            try:
                told = scenario(server, place / f"kill-{number}", after)
            except AssertionError as error:
                failed += 1
                log = (place / f"kill-{number}" / "daemon.log").read_bytes()[-2000:].decode()
                told = f"FAILED: {str(error)[:1000]}\n{log}"
            print(json.dumps({"kill": number, "scenario": name, "after": after, "told": told}))
            shutil.rmtree(place / f"kill-{number}", ignore_errors=True)
    print(f"{options.kills} kills, {failed} failed")
    return 1 if failed or not options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
