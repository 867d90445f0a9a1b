"""Real S3 servers on 127.0.0.1: SeaweedFS, which checks credentials, and moto, the second opinion.

    with Weed(directory) as server:
        server.client().put_object(Bucket=server.bucket(), Key="a", Body=b"x")

``stop`` and ``start`` keep port and (for SeaweedFS) data; ``freeze`` and ``thaw`` are SIGSTOP and
SIGCONT. Ports are explicit, all of them: a server that picks one itself meets its neighbour.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
import sysconfig
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tests.servers.processes import GRPC_OFFSET, NotReadyError, ServerProcess, free_ports

if TYPE_CHECKING:
    from types import TracebackType

ACCESS_KEY = "AKUNIFSTEST"
SECRET_KEY = "unifs/test+secret/0123456789abcdefghij"
REGION = "us-east-1"
#: A second identity of SeaweedFS that may only read and list.
READER_ACCESS_KEY = "AKUNIFSREADER"
READER_SECRET_KEY = "unifs/reader+secret/0123456789abcdefgh"
#: Another process may take a port between our look and the server's bind.
ATTEMPTS = 3
#: The environment's proxy is not for 127.0.0.1.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class S3Server:
    """One S3 service for tests."""

    kind: ClassVar[str] = ""
    endpoint: str
    region = REGION
    access_key = ACCESS_KEY
    secret_key = SECRET_KEY

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = ServerProcess(directory / f"{self.kind}.log")
        self._buckets = 0
        self._clients: list[Any] = []
        self._client: Any = None

    # --- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        for attempt in range(1, ATTEMPTS + 1):
            self._choose_ports()
            try:
                self.start()
            except NotReadyError:
                self._clean_up()
                if attempt == ATTEMPTS:
                    raise
            else:
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self._clients:
            client.close()
        self.process.end(signal.SIGKILL)
        self._clean_up()

    def _choose_ports(self) -> None:
        """Sets ``endpoint``."""
        raise NotImplementedError

    def _clean_up(self) -> None:
        """Remove what the server left outside its directory."""

    def start(self) -> None:
        """Start, on the same ports and data as before; returns when it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the server; connections to its port are refused until ``start``."""
        self.process.end()

    def freeze(self) -> None:
        """Stop answering, with every connection open."""
        self.process.freeze()

    def thaw(self) -> None:
        """Answer again, first what has waited."""
        self.process.thaw()

    def recover(self) -> None:
        """Running and answering, whatever a test has done to it."""
        self.thaw()
        if not self.process.is_running:
            self.stop()
            self.start()

    # --- use ------------------------------------------------------------------------------------

    def client(self, **options: Any) -> Any:
        """A boto3 client; ``options`` go to boto3. Without any, always the same one."""
        if not options and self._client is not None:
            return self._client
        client = new_client(self, **options)
        self._clients.append(client)
        if not options:
            self._client = client
        return client

    def bucket(self) -> str:
        """The name of a fresh, empty bucket."""
        from botocore.exceptions import ConnectionClosedError

        self._buckets += 1
        name = f"bucket-{self._buckets:04}"
        # The connection that an earlier test left may have been closed by the server meanwhile.
        with suppress(ConnectionClosedError):
            self.client().list_buckets()
        self.client().create_bucket(Bucket=name)
        # SeaweedFS learns of its own buckets by a subscription, a moment later under load.
        self.client().get_waiter("bucket_exists").wait(
            Bucket=name, WaiterConfig={"Delay": 1, "MaxAttempts": 10}
        )
        return name

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def _is_ready(self) -> bool:
        """Whether it lists its buckets."""
        from botocore.exceptions import BotoCoreError, ClientError

        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        try:
            self.client().list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True


def new_client(server: S3Server, **options: Any) -> Any:
    """A boto3 client of ``server`` that does what it is told: no retries, no extra checksums."""
    from boto3.session import Session
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=5,
        read_timeout=30,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"},
        proxies={"http": None, "https": None},
        signature_version="s3v4",
    )
    if "config" in options:
        options["config"] = config.merge(options["config"])
    told = {
        "endpoint_url": server.endpoint,
        "region_name": server.region,
        "aws_access_key_id": server.access_key,
        "aws_secret_access_key": server.secret_key,
        "config": config,
    }
    return Session().client("s3", **(told | options))


class Weed(S3Server):
    """SeaweedFS, all of it in one process (``weed mini``): 0.5 s to start, 125 MiB."""

    kind = "weed"

    def __init__(self, directory: Path, *, sweeps: bool = True) -> None:
        """``sweeps``: it removes directories two minutes after they were emptied, as is its habit.

        It is known to take along what is stored there in that moment (its issue 10779): where a
        campaign counts what was lost, that is not to be counted.
        """
        super().__init__(directory)
        self._sweeps = sweeps

    def _choose_ports(self) -> None:
        self._ports = free_ports(len(WEED_PARTS), (0, GRPC_OFFSET))
        self.endpoint = f"http://127.0.0.1:{self._ports[WEED_PARTS.index('s3')]}"

    @property
    def filer_port(self) -> int:
        """Where files go in past S3, unsigned: for filling a bucket quickly."""
        return self._ports[WEED_PARTS.index("filer")]

    def start(self) -> None:
        data = self.directory / "weed"
        data.mkdir(exist_ok=True)
        if not self._sweeps:
            # Read from the directory that it is started in.
            settings = self.directory / "filer.toml"
            settings.write_text(UNSWEPT.format(data / "filer"))
        identities = self.directory / "identities.json"
        identities.write_text(json.dumps({"identities": IDENTITIES}))
        command = [program("weed"), "-logtostderr=true", "mini"]
        command += [f"-dir={data}", f"-s3.config={identities}"]
        for name, port in zip(WEED_PARTS, self._ports, strict=True):
            command += [f"-{name}.port={port}", f"-{name}.port.grpc={port + GRPC_OFFSET}"]
        self.process.launch([*command, *WEED_OPTIONS], self._is_ready)

    def _is_ready(self) -> bool:
        # S3 answers before the master knows the volumes: what is stored could not be read yet.
        master = self._ports[WEED_PARTS.index("master")]
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{master}/dir/status", timeout=5
            ) as answer:
                topology = json.load(answer)["Topology"]
        except OSError:
            return False
        return bool(topology["DataCenters"]) and super()._is_ready()

    def _clean_up(self) -> None:
        # Its unix sockets, named by port; the directory cannot be chosen.
        for port in self._ports:
            for name in ("master", "volume", "filer", "s3", "admin"):
                Path(f"/tmp/seaweedfs-{name}-{port}.sock").unlink(missing_ok=True)
                Path(f"/tmp/seaweedfs-{name}-grpc-{port + GRPC_OFFSET}.sock").unlink(
                    missing_ok=True
                )


#: A filer's settings file also says where its database is.
UNSWEPT = """\
[filer.options]
s3.empty_folder_cleanup_delay = "24h"
[leveldb2]
enabled = true
dir = "{}"
"""
#: What ``weed mini`` runs; each listens twice, for HTTP and for gRPC.
WEED_PARTS = ("master", "volume", "filer", "s3", "admin")
WEED_OPTIONS = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-master.telemetry=false",
    # What Amazon does, where SeaweedFS is kinder: no bucket by a mere put, none removed with keys.
    "-s3.autoCreateBucket=false",
    "-s3.allowDeleteBucketNotEmpty=false",
    "-s3.iam=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-admin.ui=false",
    "-webdav=false",
    "-master.volumeSizeLimitMB=64",
    "-volume.preStopSeconds=0",
)
IDENTITIES = [
    {
        "name": "unifs",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    },
    {
        "name": "reader",
        "credentials": [{"accessKey": READER_ACCESS_KEY, "secretKey": READER_SECRET_KEY}],
        "actions": ["Read", "List"],
    },
]


class Moto(S3Server):
    """moto's server: good semantics, no look at signatures; its data ends with its process."""

    kind = "moto"

    def _choose_ports(self) -> None:
        (port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1"]
        self.process.launch([*command, "-p", str(self.port)], self._is_ready)


def program(name: str) -> str:
    """The path of a program that a package brought, beside this interpreter or on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return found
