"""Signature Version 4: what proves to a service who sends a request.

Owns canonical requests, signatures in headers and in queries (presigned URLs), and the derived keys
of the last days, which cost four HMACs each and are the same for every request of a day. Does no
I/O and keeps no credentials but those keys; who the identity is, and what time it is, say others.

Source: AWS Signature Version 4 for API requests, and for S3 its two peculiarities: a path is
encoded once and never normalized, and ``x-amz-content-sha256`` is signed.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unifs.mounts.s3.options import Credentials

ALGORITHM: Final = "AWS4-HMAC-SHA256"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
#: A week, the longest that services accept.
EXPIRY_MAX_S: Final = 7 * 24 * 3600
#: Derived keys kept: a day's change, times the regions that a mount speaks to.
KEYS_MAX: Final = 32

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Signable:
    """A request as it is signed.

    ``path`` is encoded as it goes over the wire; ``query`` and ``headers`` are not. Header names
    are in lower case, values as sent; a name that occurs twice is signed with both values.
    """

    method: str
    path: str
    query: Pairs
    headers: Pairs
    payload: str


def encoded(text: str, safe: str = "") -> str:
    """Percent-encoded as signatures want it; text with surrogates stands for raw bytes."""
    return quote(text.encode("utf-8", "surrogateescape"), safe=f"{safe}-_.~")


def encoded_query(query: Iterable[tuple[str, str]]) -> str:
    """The query in its canonical order, which is the order it is sent in."""
    pairs = sorted((encoded(name), encoded(value)) for name, value in query)
    return "&".join(f"{name}={value}" for name, value in pairs)


def canonical(request: Signable) -> tuple[str, str]:
    """The canonical request, and the names of the signed headers."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        trimmed = value.strip() if "  " not in value else " ".join(value.split())
        headers.setdefault(name, []).append(trimmed)
    names = sorted(headers)
    signed = ";".join(names)
    lines = [request.method, request.path, encoded_query(request.query)]
    lines += [f"{name}:{','.join(headers[name])}" for name in names]
    lines += ["", signed, request.payload]
    return "\n".join(lines), signed


class Signer:
    """Signs for one service; ``service`` is "s3" everywhere but in the published vectors."""

    def __init__(self, service: str = "s3") -> None:
        self._service = service
        self._keys: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()

    def authorization(
        self, request: Signable, credentials: Credentials, region: str, moment: str
    ) -> str:
        """The Authorization header; ``moment`` is that of ``x-amz-date``."""
        text, signed = canonical(request)
        scope = f"{moment[:8]}/{region}/{self._service}/aws4_request"
        signature = self._signature(text, scope, credentials, moment)
        return (
            f"{ALGORITHM} Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )

    def presigned(
        self, request: Signable, credentials: Credentials, region: str, when: tuple[str, int]
    ) -> str:
        """The encoded query of a URL that anybody may use; ``when`` is moment and expiry in s."""
        moment, expiry_s = when
        scope = f"{moment[:8]}/{region}/{self._service}/aws4_request"
        names = ";".join(sorted({name for name, _ in request.headers}))
        query = [
            *request.query,
            ("X-Amz-Algorithm", ALGORITHM),
            ("X-Amz-Credential", f"{credentials.access_key}/{scope}"),
            ("X-Amz-Date", moment),
            ("X-Amz-Expires", str(expiry_s)),
            ("X-Amz-SignedHeaders", names),
        ]
        if credentials.session_token:
            query.append(("X-Amz-Security-Token", credentials.session_token))
        whole = Signable(
            request.method, request.path, tuple(query), request.headers, request.payload
        )
        signature = self._signature(canonical(whole)[0], scope, credentials, moment)
        return f"{encoded_query(query)}&X-Amz-Signature={signature}"

    def _signature(self, text: str, scope: str, credentials: Credentials, moment: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        to_sign = f"{ALGORITHM}\n{moment}\n{scope}\n{digest}"
        key = self._key(credentials.secret_key, scope)
        return hmac.digest(key, to_sign.encode(), "sha256").hex()

    def _key(self, secret: str, scope: str) -> bytes:
        day, region, service, end = scope.split("/")
        name = (secret, day, region)
        key = self._keys.get(name)
        if key is None:
            key = f"AWS4{secret}".encode()
            for part in (day, region, service, end):
                key = hmac.digest(key, part.encode(), "sha256")
            self._keys[name] = key
            if len(self._keys) > KEYS_MAX:
                self._keys.popitem(last=False)
        return key


def moment_of(now_s: float) -> str:
    """The time as signatures write it."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
