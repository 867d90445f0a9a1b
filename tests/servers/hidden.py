"""What SeaweedFS does with an object that is stored while its directory is deleted.

    scripts/campaign s3-hidden [--seconds 25]

Two hands without unifs: one stores ``d/f``, looks for it, and deletes it, over and over; the other
deletes ``d/``. A PUT that finds the directory there and arrives when it is gone leaves an object
that answers GET and stands in no listing, until somebody stores something in the directory again.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.s3 import S3Server, Weed

PAIRS = 2


class Pair:
    """Two hands on one directory of a bucket."""

    def __init__(self, server: S3Server, bucket: str, name: str, end: float) -> None:
        self.server = server
        self.end = end
        self.counted: Counter[str] = Counter()
        self.is_pausing = threading.Event()
        self.key = f"<Key>{name}/f</Key>".encode()
        client, told = server.client(), {"Bucket": bucket}
        for_key = {**told, "Key": f"{name}/f"}
        marker = {**told, "Key": f"{name}/"}
        self.urls = {
            "put": ("PUT", client.generate_presigned_url("put_object", for_key)),
            "get": ("GET", client.generate_presigned_url("get_object", for_key)),
            "delete": ("DELETE", client.generate_presigned_url("delete_object", for_key)),
            "list": ("GET", client.generate_presigned_url("list_objects_v2", told)),
            "mark": ("PUT", client.generate_presigned_url("put_object", marker)),
            "remove": ("DELETE", client.generate_presigned_url("delete_object", marker)),
        }

    def store(self) -> None:
        ask = self._asking()
        while time.monotonic() < self.end:
            stored, _ = ask("put")
            found, _ = ask("get")
            self.counted[f"PUT {stored}, GET {found}"] += 1
            if self.key not in ask("list")[1]:
                self.is_pausing.set()
                time.sleep(0.1)
                found, is_listed = ask("get")[0], self.key in ask("list")[1]
                self.counted[f"in no listing, GET {found}"] += not is_listed
                ask("mark")
                self.counted["listed after a PUT of the marker"] += self.key in ask("list")[1]
                self.is_pausing.clear()
            ask("delete")

    def remove(self) -> None:
        ask = self._asking()
        while time.monotonic() < self.end:
            if self.is_pausing.is_set():
                time.sleep(0.01)
                continue
            self.counted[f"DELETE of the directory {ask('remove')[0]}"] += 1

    def _asking(self):  # type: ignore[no-untyped-def]
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port)

        def ask(what: str) -> tuple[int, bytes]:
            method, url = self.urls[what]
            parts = urlsplit(url)
            body = b"bytes" if what == "put" else None
            connection.request(method, f"{parts.path}?{parts.query}", body=body)
            answer = connection.getresponse()
            return answer.status, answer.read()

        return ask


def main() -> None:
    """Count for so many seconds what becomes of the objects."""
    parser = argparse.ArgumentParser(prog="scripts/campaign s3-hidden", description=__doc__)
    parser.add_argument("--seconds", type=float, default=25.0)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="unifs-hidden-"))
    try:
        with Weed(place) as server:
            bucket, end = server.bucket(), time.monotonic() + options.seconds
            pairs = [Pair(server, bucket, f"d{number}", end) for number in range(PAIRS)]
            hands = [
                threading.Thread(target=hand)
                for pair in pairs
                for hand in (pair.store, pair.remove)
            ]
            for hand in hands:
                hand.start()
            for hand in hands:
                hand.join()
            print(json.dumps(sum((pair.counted for pair in pairs), Counter())))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
