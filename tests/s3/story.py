"""A settings file, a daemon on a real mount and the command line, beside a running service."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tests.crash.daemon import Daemon, repository_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers.s3 import S3Server

AnyStory = TypeVar("AnyStory", bound="Story")


class Story:
    """One state directory, its settings file and its daemon, beside a running service."""

    def __init__(self, base: Path, server: S3Server) -> None:
        self.server = server
        self.settings = base / "config.toml"
        self.daemon = Daemon(base, below="")
        command = [sys.executable, "-m", "unifs", "mount", "--foreground"]
        command += ["--config", str(self.settings), "--state", str(self.daemon.state)]
        self.daemon.command = [*command, str(self.daemon.mount)]
        self.environment = {"AWS_EC2_METADATA_DISABLED": "true"}
        self.write_settings()

    def write_settings(self, *more: str) -> None:
        """``more`` are further lines."""
        lines = [
            "[journal]",
            "writeback_delay_s = 0.2",
            "[mounts.s3]",
            f'endpoint = "{self.server.endpoint}"',
            'credentials = "work"',
            'region = "us-east-1"',
            *more,
        ]
        self.settings.write_text("\n".join(lines))

    @property
    def root(self) -> Path:
        return self.daemon.mount / "s3"

    def run(self, *arguments: str, secret: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "unifs", "ctl", "--state", str(self.daemon.state)]
        return subprocess.run(
            [*command, *arguments],
            env=repository_environment() | {"S3_SECRET": secret},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ctl(self, *arguments: str, secret: str = "") -> list[dict[str, Any]]:
        result = self.run(*arguments, "--json", secret=secret)
        assert result.returncode == 0, result.stderr + self.daemon.tail()
        return [json.loads(line) for line in result.stdout.splitlines()]

    def start(self) -> None:
        self.daemon.start()
        if not self.ctl("credentials", "ls"):
            self.key("work", self.server.access_key, self.server.secret_key)

    def key(self, name: str, access: str, secret: str) -> None:
        self.ctl(
            "credentials", "add", name, "--access-key", access, "--secret-key-env", "S3_SECRET",
            "--replace", secret=secret,
        )  # fmt: skip

    def warnings(self) -> list[str]:
        """What is said to be wrong with the service; a machine under load has other worries."""
        (status,) = self.ctl("status")
        return [each for each in status["warnings"] if each.startswith("s3 ")]

    def object(self, bucket: str, key: str) -> bytes:
        body: bytes = self.server.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return body


@contextmanager
def started(made: AnyStory) -> Iterator[AnyStory]:
    """The daemon runs inside, and has to end well."""
    try:
        made.start()
        yield made
        made.daemon.stop()
    finally:
        made.daemon.close()


def until(condition: Callable[[], bool], what: str, limit_s: float = 120.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.02)
