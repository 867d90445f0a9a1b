"""A served registry on a real unix socket, and a client that talks to it from a thread."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from tests.control import sample_operations
from tests.control.world import World
from unifs import cli, config
from unifs.control.client import Client
from unifs.control.ops import operations
from unifs.control.registry import Registry
from unifs.control.server import serve
from unifs.telemetry import AccessLog, Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class Daemon(sample_operations.SampleDaemon):
    """Settings and telemetry, as the composition root has them."""

    def __init__(self, directory: Path) -> None:
        settings = config.load(state=directory, environment={"HOME": str(directory)})
        control = config.ControlSettings(body_bytes_max=4096, requests_max=8)
        self.settings = msgspec.structs.replace(settings, control=control)
        self.metrics = Metrics()
        self.access_log = AccessLog()
        self.began = trio.Event()
        self.ended = trio.Event()


class Served:
    """A server that runs, and calls to it."""

    def __init__(self, daemon: Daemon, registry: Registry, path: Path) -> None:
        self.daemon = daemon
        self.registry = registry
        self.path = path
        self.client = Client(path)

    async def call(self, name: str, **parameters: Any) -> dict[str, Any]:
        return await trio.to_thread.run_sync(self.client.call, name, parameters)

    async def events(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        return await trio.to_thread.run_sync(
            lambda: list(self.client.events(name, parameters)), abandon_on_cancel=True
        )

    async def run(self, work: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    async def raw(self, request: bytes) -> tuple[int, dict[str, Any]]:
        """The status and JSON that raw bytes are answered with."""
        stream = await trio.open_unix_socket(str(self.path))
        async with stream:
            await stream.send_all(request)
            answer = b""
            while chunk := await stream.receive_some(65536):
                answer += chunk
                if _is_whole(answer):
                    break
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), msgspec.json.decode(body)

    async def post(
        self, path: str, body: bytes, method: str = "POST"
    ) -> tuple[int, dict[str, Any]]:
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        return await self.raw(head.encode() + body)


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-le")]
    return bool(found and lengths) and len(body) >= int(lengths[0])


@asynccontextmanager
async def served(directory: Path, registry: Registry) -> AsyncIterator[Served]:
    """A running server. The caller holds the context, so that it sees how it ends."""
    daemon = Daemon(directory)
    path = directory / "run" / "control.sock"
    async with serve(registry, daemon, path):
        yield Served(daemon, registry, path)


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    found.collect(sample_operations)
    return found


@pytest.fixture
async def sample(tmp_path: Path, registry: Registry) -> AsyncIterator[Served]:
    async with served(tmp_path, registry) as running:
        yield running


def take(iterator: Any, count: int) -> list[Any]:
    return list(itertools.islice(iterator, count))


class Shell:
    """The command line against a running world, in this process."""

    def __init__(self, world: World, capture: Any) -> None:
        self.world = world
        self._capture = capture

    async def run(self, *arguments: str) -> tuple[int, bytes, str]:
        """Exit code, stdout and stderr of one command line."""
        self._capture.readouterr()
        code = await trio.to_thread.run_sync(cli.run, arguments, abandon_on_cancel=True)
        out, err = self._capture.readouterr()
        return code, out, err.decode("utf-8", "surrogateescape")

    async def text(self, *arguments: str) -> str:
        """stdout of a command line that succeeds."""
        code, out, err = await self.run(*arguments)
        assert (code, err) == (0, ""), (code, err)
        return out.decode("utf-8", "surrogateescape")

    async def json(self, *arguments: str) -> list[dict[str, Any]]:
        """The JSON lines of a command line that succeeds."""
        out = await self.text(*arguments, "--json")
        return [msgspec.json.decode(line) for line in out.splitlines()]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world behind the control socket, found through $UNIFS_HOME."""
    made = World(tmp_path)
    monkeypatch.setenv("UNIFS_HOME", str(made.settings.state_directory))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    try:
        async with serve(operations(), made, made.settings.socket_path):
            yield made
    finally:
        made.close()


@pytest.fixture
def shell(world: World, capfdbinary: pytest.CaptureFixture[bytes]) -> Shell:
    return Shell(world, capfdbinary)
