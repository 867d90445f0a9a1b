"""The fault campaign: a tree over a real S3 server behind a proxy that breaks every third request.

    scripts/campaign s3 --faults 10000 [--seed N] [--minutes M]

Two kinds of runs alternate. *Alone*: names and bytes are known to a model; after each round of
changes the faults stop; tree and bucket must agree, and be what the model is: nothing lost, nothing
under another name, nothing there that was removed. *Together*: somebody else writes to the same
keys, past the proxy; tree and bucket must agree, and what somebody else wrote last, and nobody here
touched since, must still be in the bucket, under its name or beside it.

The daemon is killed now and then. trio's clock runs ten times as fast as the wall's, so that
pauses cost a tenth; the server and the network do not know. The seed decides the steps and which
request of a run meets which fault; how requests of several tasks follow each other it cannot.

A violation ends its run and is told with the run's history; the others go on. After
``VIOLATIONS_MAX`` of them, or M minutes, no new run begins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import trio
from botocore.config import Config
from trio.testing import MockClock

from tests.remote.system import RemoteSystem
from tests.remote.test_random import PATHS, Run, shown
from tests.servers.faultproxy import Fault, FaultProxy, Kind, Seeded, Seen
from tests.servers.s3 import Weed
from unifs.errors import DeadlineExceeded, NotFound, UnifsError, Unreachable
from unifs.journal.writeback_due import WritebackLimits
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.names import is_probe
from unifs.mounts.s3.options import Credentials, S3Options

if TYPE_CHECKING:
    from tests.servers.http1 import Head
    from tests.servers.s3 import S3Server

log = logging.getLogger(__name__)

CLOCK_RATE = 10.0
#: How long what was cut off is looked for; the proxy delivers it after half of that at most.
LATE_S = 20.0
#: Of the requests while faults are on.
FAULT_RATE = 0.33
STEPS_A_ROUND = 40
ROUNDS_A_RUN = 5
#: Of a call that fails for a passing reason; each try meets new luck.
TRIES_MAX = 200
#: Requests shown of a run that failed.
SEEN_SHOWN = 2_000
#: Looks at tree and bucket, 40 s apart, before they are said to differ.
AGREE_TRIES = 5
#: Runs at a time; most of the time of one is waiting.
LANES = 40
VIOLATIONS_MAX = 5
ROUND_S = 600.0
#: So long a round waits for the end of all changes while there are faults.
STORM_S = 300.0
#: So long a round has faults at most.
STORM_MAX_S = 1500.0
SIZES = (0, 12, 3_000, 70_000, 300_000)
#: Above what is stored in one PUT.
BIG_BYTES = (17 << 20) + 123


class Fixed:
    """One identity for ever."""

    def __init__(self, server: S3Server) -> None:
        self._identity = Credentials(server.access_key, server.secret_key)

    async def current(self) -> Credentials | None:
        return self._identity


class Bucket:
    """What the service holds, seen past mount and proxy; and somebody else's hand on it."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.name = server.bucket()
        # It is not what is tried here: it waits for a busy machine.
        patient = Config(read_timeout=300, connect_timeout=60)
        self.client = server.client(config=patient)

    async def everything(self) -> dict[str, bytes | None]:
        """Path -> bytes of every object, None of every directory."""
        return await trio.to_thread.run_sync(self._everything)

    def _everything(self) -> dict[str, bytes | None]:
        client = self.client
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        keys = [held["Key"] for page in pages for held in page.get("Contents", [])]
        found: dict[str, bytes | None] = {}
        for key in keys:
            path = ""
            for depth, segment in enumerate(parts := key.split("/")):
                path = f"{path}/{segment}" if path else segment
                if depth == len(parts) - 1:
                    break
                if "/".join(parts[: depth + 1]) in keys:
                    # An object has the name of the directory; docs/s3.md says how that is shown.
                    path += "%%"
                found.setdefault(path, None)
            if not key.endswith("/") and not is_probe(key):
                # What is removed meanwhile is not held; whoever compares looks again.
                with contextlib.suppress(client.exceptions.NoSuchKey):
                    answer = client.get_object(Bucket=self.name, Key=key)
                    with answer["Body"] as body:
                        found[path] = body.read()
        return found

    async def change(self, path: str, data: bytes) -> None:
        """Somebody else stores something."""
        put = partial(self.client.put_object, Bucket=self.name, Key=path, Body=data)
        await trio.to_thread.run_sync(put)

    async def unlisted(self, wanted: dict[bytes, str]) -> list[str]:
        """Of bytes and the keys that they were stored at, the keys that have them."""

        def has(data: bytes, key: str) -> bool:
            try:
                with self.client.get_object(Bucket=self.name, Key=key)["Body"] as body:
                    return bool(body.read() == data)
            except self.client.exceptions.NoSuchKey:
                return False

        return [
            key for data, key in wanted.items() if await trio.to_thread.run_sync(has, data, key)
        ]

    async def uncover(self, key: str) -> None:
        """Make the service list a key again (``tests.servers.hidden``)."""
        marker = f"{key.rpartition('/')[0]}/"
        put = partial(self.client.put_object, Bucket=self.name, Key=marker, Body=b"")
        await trio.to_thread.run_sync(put)

    def uploads(self) -> list[str]:
        """Keys of uploads in parts that nobody completed."""
        listed = self.server.client().list_multipart_uploads(Bucket=self.name)
        return [held["Key"] for held in listed.get("Uploads", [])]


class FaultyRun(Run):
    """``Run`` over S3: failures that pass are tried again, as a person would."""

    remote: Any

    def __init__(self, system: RemoteSystem, bucket: Bucket, proxy: FaultProxy) -> None:
        super().__init__(system, bucket)  # type: ignore[arg-type]
        self.bucket = bucket
        self.proxy = proxy
        self.tried_again: Counter[str] = Counter()

    async def do(self, step: tuple[Any, ...]) -> None:
        for _ in range(TRIES_MAX):
            try:
                await super().do(step)
            except UnifsError as error:
                if not error.is_transient:
                    raise
                self.tried_again[type(error).__name__] += 1
                await trio.sleep(0.2)
            else:
                return
        raise AssertionError(f"{step} fails for ever")

    async def write(self, path: str, number: int) -> None:
        data = content(number)
        await self.system.write(path, data)
        self.model.put(path, data)

    async def big(self, path: str, number: int) -> None:
        if not await self._has_parents(("write", path)):
            return
        data = random.Random(number).randbytes(BIG_BYTES)
        await self.system.write(path, data)
        self.model.put(path, data)

    async def read(self, path: str) -> None:
        data = await self.system.read(path)
        assert data == self.model.paths.get(path), f"{path} reads wrong"

    async def foreign(self, path: str, number: int) -> None:
        data = b"foreign%d" % number
        known = await self.bucket.everything()
        above = known.get(path.rpartition("/")[0]) if "/" in path else None
        if data in self.unseen or known.get(path, b"") is None or above is not None:
            # Nobody puts an object where a directory is, or below one that is a file.
            return
        await self.bucket.change(path, data)
        now_s = trio.current_time()
        self.proxy.seen.append(Seen("foreign", f"{path} {data!r}", None, 200, now_s))
        self.unseen = {held: where for held, where in self.unseen.items() if where != path}
        self.unseen[data] = path

    def forgive(self) -> None:
        """The faults are over: nobody waits out a pause that grew while they lasted."""
        writeback = self.system.volume.writeback
        for due in writeback.dues.values():
            due.attempts, due.retry_at = 0, 0.0
            writeback._push(due)
        writeback.wake()

    async def settle(self) -> None:
        await self.system.sync()
        assert not self.system.volume.status.quarantined()


def honest(request: Head, fault: Fault | None) -> Fault | None:
    """Without wrong ETags in answers to HEAD: such a version is believed to be somebody else's, and
    the next save to be a conflict. Nothing is lost by it; but *alone* judges names, too."""
    if fault is not None and fault.kind == "wrong_etag" and request.method == "HEAD":
        return Fault("delay", fault.seconds)
    return fault


def content(number: int) -> bytes:
    """Bytes that say whose they are, of a size that the number decides."""
    size = SIZES[number % len(SIZES)]
    mark = b"<%d>" % number
    return (mark * (size // len(mark) + 1))[: max(size, len(mark))]


def draw(chance: random.Random, is_alone: bool, number: int) -> tuple[Any, ...]:
    """The next step; ``number`` is in no other step of the run."""
    path, other = chance.choice(PATHS), chance.choice(PATHS)
    steps: list[tuple[float, tuple[Any, ...]]] = [
        (8, ("write", path, number)),
        (3, ("patch", path, number)),
        (3, ("unlink", path)),
        (3, ("mkdir", path)),
        (2, ("rmdir", path)),
        (4, ("rename", path, other)),
        (1, ("exchange", path, other)),
        (4, ("sleep", chance.choice((0.1, 0.5, 1.0, 2.5, 2.5, 40.0)))),
        (0.3, ("big", path, number)),
        (0.4, ("kill",)),
    ]
    steps.append((3, ("read", path)) if is_alone else (4, ("foreign", path, number)))
    (step,) = chance.choices([step for _, step in steps], [weight for weight, _ in steps])
    return step


class Campaign:
    """Runs until so many requests have met a fault."""

    def __init__(self, server: S3Server, place: Path, seed: int) -> None:
        self.server = server
        self.place = place
        self.seed = seed
        self.dealt: Counter[str] = Counter()
        self.requests = 0
        self.steps = 0
        self.rounds = 0
        self.runs = 0
        #: Objects of somebody else that the service had and listed no more.
        self.hidden = 0
        #: One text for each run that broke a promise.
        self.violations: list[str] = []

    async def run(self, faults: int, minutes: float) -> None:
        """Alternate runs alone and together, several at a time."""
        self._faults = faults
        self._end = time.monotonic() + minutes * 60
        async with trio.open_nursery() as nursery:
            for _ in range(min(LANES, faults // 25 + 1)):
                nursery.start_soon(self._lane)

    async def _lane(self) -> None:
        while not self._is_enough():
            number = self.runs
            self.runs += 1
            await self._one(number, is_alone=number % 2 == 0)

    def _is_enough(self) -> bool:
        if len(self.violations) >= VIOLATIONS_MAX or time.monotonic() > self._end:
            return True
        return sum(self.dealt.values()) >= self._faults

    async def _one(self, number: int, *, is_alone: bool) -> None:
        chance = random.Random(self.seed * 1_000 + number)
        place = self.place / f"run-{number}"
        bucket = Bucket(self.server)
        async with FaultProxy(self.server.endpoint) as proxy:
            options = S3Options(endpoint=proxy.endpoint, bucket=bucket.name)
            mount = S3Mount("s3", options, Fixed(self.server))
            limits = WritebackLimits(late_s=LATE_S)
            async with mount.serve(), RemoteSystem(place, mount, limits=limits) as system:
                run = FaultyRun(system, bucket, proxy)
                history: list[Any] = []
                try:
                    for _ in range(ROUNDS_A_RUN):
                        await self._round(run, proxy, (chance, history), is_alone=is_alone)
                        self._count(proxy)
                        log.info("%d faults, %d rounds", sum(self.dealt.values()), self.rounds)
                        if self._is_enough():
                            break
                except Exception as error:
                    self._violated(number, proxy, history, error)
        shutil.rmtree(place)

    def _violated(
        self, number: int, proxy: FaultProxy, history: list[Any], error: Exception
    ) -> None:
        self._count(proxy)
        told = "".join(traceback.format_exception(error))
        seen = "\n".join(map(str, list(proxy.seen)[-SEEN_SHOWN:]))
        self.violations.append(f"run {number} of seed {self.seed}: {told}")
        print(f"run {number}: {history}\n{seen}\n{told}", file=sys.stderr, flush=True)

    def _count(self, proxy: FaultProxy) -> None:
        self.dealt += proxy.dealt
        self.requests += proxy.requests
        proxy.dealt.clear()
        proxy.requests = 0

    async def _round(
        self,
        run: FaultyRun,
        proxy: FaultProxy,
        how: tuple[random.Random, list[Any]],
        *,
        is_alone: bool,
    ) -> None:
        chance, _ = how
        seeded = Seeded(chance.randrange(1 << 30), FAULT_RATE, get_args(Kind), LATE_S / 2)
        proxy.script = (lambda request: honest(request, seeded(request))) if is_alone else seeded
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_storm, run, proxy)
            await self._play(run, proxy, how, is_alone=is_alone)
            nursery.cancel_scope.cancel()
        self.rounds += 1

    async def _end_storm(self, run: FaultyRun, proxy: FaultProxy) -> None:
        """Faults end after a while: whoever asks below a directory waits for the end of its rename,
        here without a deadline, and that may take a hundred requests in a row."""
        await trio.sleep(STORM_MAX_S)
        proxy.calm()
        run.forgive()

    async def _play(
        self,
        run: FaultyRun,
        proxy: FaultProxy,
        how: tuple[random.Random, list[Any]],
        *,
        is_alone: bool,
    ) -> None:
        chance, history = how
        with trio.fail_after(ROUND_S * CLOCK_RATE):
            for _ in range(STEPS_A_ROUND):
                step = draw(chance, is_alone, len(history))
                history.append((round(trio.current_time(), 1), step))
                await run.do(step)
                self.steps += 1
            if chance.random() < 0.5:
                # Half of the rounds end in the middle of the storm, half come through it. What
                # needs many requests in a row may not: pauses grow to five minutes.
                with trio.move_on_after(STORM_S):
                    await run.settle()
            proxy.calm()
            run.forgive()
            await run.settle()
            history.append("settled")
            await (self._judge_alone(run) if is_alone else self._judge_together(run))

    async def _judge_alone(self, run: FaultyRun) -> None:
        for pause_s in (0, 40):
            await trio.sleep(pause_s)
            differ("tree and bucket", await self._agreed(run), run.model.paths)
        await run.system.kill()
        differ("tree after a kill", await self._agreed(run), run.model.paths)

    async def _agreed(self, run: FaultyRun) -> dict[str, bytes | None]:
        """What tree and bucket both hold; fails where they do not come to agree."""
        tree: dict[str, bytes | None] = {}
        held: dict[str, bytes | None] = {}
        for _ in range(AGREE_TRIES):
            with contextlib.suppress(NotFound, Unreachable, DeadlineExceeded):
                # A name that somebody else removed is believed until it is looked at; and the
                # clock runs so fast that a busy machine is late for deadlines.
                tree = await shown(run.system)
                await run.settle()
                held = await run.bucket.everything()
                if tree == held:
                    return tree
            await trio.sleep(40)
        differ("tree", tree, held)
        raise AssertionError("names vanish for ever")

    async def _judge_together(self, run: FaultyRun) -> None:
        await trio.sleep(40)
        held = await self._agreed(run)
        missing = self._missing(run, held)
        hidden = await run.bucket.unlisted({data: run.unseen[data] for data in missing})
        if hidden:
            # SeaweedFS hides what is stored while its directory is deleted. It is there, and
            # unifs has not touched it; listed again, it is judged like the others.
            self.hidden += len(hidden)
            for key in hidden:
                await run.bucket.uncover(key)
            held = await self._agreed(run)
            missing = self._missing(run, held)
        told = {path: short(held, path) for path in sorted(held)}
        assert not missing, f"somebody else's changes are lost: {missing}; found {told}"

    def _missing(self, run: FaultyRun, held: dict[str, bytes | None]) -> set[bytes]:
        return set(run.unseen) - {data for data in held.values() if data is not None}


def differ(what: str, found: dict[str, bytes | None], wanted: dict[str, bytes | None]) -> None:
    """Fail, naming the paths, where two trees are not the same."""
    if found == wanted:
        return
    paths = [
        path for path in found.keys() | wanted.keys() if found.get(path, 0) != wanted.get(path, 0)
    ]
    told = {path: (short(found, path), short(wanted, path)) for path in sorted(paths)}
    raise AssertionError(f"{what} differs (found, wanted): {told}")


def short(tree: dict[str, bytes | None], path: str) -> str:
    """What is at a path, in a few letters."""
    if path not in tree:
        return "absent"
    data = tree[path]
    return "directory" if data is None else f"{len(data)} bytes {data[:20]!r}"


def play(server: S3Server, place: Path, seed: int, faults: int, minutes: float = 60.0) -> Campaign:
    """Run a campaign to its end."""
    campaign = Campaign(server, place, seed)
    trio.run(campaign.run, faults, minutes, clock=MockClock(rate=CLOCK_RATE))
    return campaign


def main() -> int:
    """Play what the command line asks for; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="scripts/campaign s3", description=__doc__)
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    log.setLevel(logging.INFO)
    place = Path(tempfile.mkdtemp(prefix="unifs-s3-"))
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        server = stack.enter_context(Weed(place, sweeps=False))
        campaign = play(server, place, options.seed, options.faults, options.minutes)
    faults = sum(campaign.dealt.values())
    told = {
        "seed": options.seed,
        "faults": faults,
        "requests": campaign.requests,
        "steps": campaign.steps,
        "runs": campaign.runs,
        "rounds": campaign.rounds,
        "seconds": round(time.monotonic() - started),
        "hidden": campaign.hidden,
        "violations": len(campaign.violations),
        "kinds": dict(sorted(campaign.dealt.items())),
    }
    print(json.dumps(told))
    return 1 if campaign.violations or faults < options.faults else 0


if __name__ == "__main__":
    sys.exit(main())
