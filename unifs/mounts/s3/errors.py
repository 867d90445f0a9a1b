"""What a service's refusal means: one table from S3's error codes to the errors of unifs.

``service`` turns every answer that is no success into one of these; nobody else reads error XML.
The message says what was asked, what the service said, and nothing of the request's headers.
"""

from __future__ import annotations

import email.utils
import re
from dataclasses import dataclass
from html import unescape
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from unifs.errors import (
    Conflict,
    Corrupt,
    Exists,
    InvalidArgument,
    NameTooLong,
    NoSpace,
    NotEmpty,
    NotFound,
    PermissionDenied,
    RateLimited,
    TooLarge,
    UnifsError,
    Unreachable,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The codes of S3 and of services that speak its dialect.
CODES: Final[dict[str, type[UnifsError]]] = {
    "NoSuchKey": NotFound,
    "NoSuchBucket": NotFound,
    "NoSuchUpload": NotFound,
    "NoSuchVersion": NotFound,
    "NoSuchBucketPolicy": NotFound,
    "NoSuchLifecycleConfiguration": NotFound,
    "NoSuchTagSet": NotFound,
    "NotFound": NotFound,
    "AccessDenied": PermissionDenied,
    "AccountProblem": PermissionDenied,
    "AllAccessDisabled": PermissionDenied,
    "AuthorizationHeaderMalformed": PermissionDenied,
    "ExpiredToken": PermissionDenied,
    "InvalidAccessKeyId": PermissionDenied,
    "InvalidObjectState": PermissionDenied,
    "InvalidSecurity": PermissionDenied,
    "InvalidToken": PermissionDenied,
    "MissingSecurityHeader": PermissionDenied,
    "RequestTimeTooSkewed": Unreachable,
    "SignatureDoesNotMatch": PermissionDenied,
    "TokenRefreshRequired": PermissionDenied,
    "PreconditionFailed": Conflict,
    "ConditionalRequestConflict": Conflict,
    "BucketAlreadyExists": Exists,
    "BucketAlreadyOwnedByYou": Exists,
    "BucketNotEmpty": NotEmpty,
    "BadDigest": Corrupt,
    "InvalidDigest": Corrupt,
    "XAmzContentSHA256Mismatch": Corrupt,
    "XAmzContentChecksumMismatch": Corrupt,
    "IncompleteBody": Unreachable,
    "InternalError": Unreachable,
    # A part that an answer gone wrong told us wrongly of: the next try lists what is there.
    "InvalidPart": Unreachable,
    "OperationAborted": Unreachable,
    "RequestTimeout": Unreachable,
    "ServiceUnavailable": RateLimited,
    "SlowDown": RateLimited,
    "TooManyRequests": RateLimited,
    "Throttling": RateLimited,
    "RequestLimitExceeded": RateLimited,
    "BandwidthLimitExceeded": RateLimited,
    "EntityTooLarge": TooLarge,
    "KeyTooLongError": NameTooLong,
    "QuotaExceeded": NoSpace,
    "InsufficientStorage": NoSpace,
    "XMinioStorageFull": NoSpace,
    "NotImplemented": Unsupported,
    "MethodNotAllowed": Unsupported,
    "InvalidBucketName": InvalidArgument,
    "InvalidRange": InvalidArgument,
}

#: Where there is no code, as in every answer to HEAD.
STATUSES: Final[dict[int, type[UnifsError]]] = {
    400: InvalidArgument,
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    405: Unsupported,
    408: Unreachable,
    409: Conflict,
    412: Conflict,
    413: TooLarge,
    416: InvalidArgument,
    429: RateLimited,
    501: Unsupported,
    503: RateLimited,
    507: NoSpace,
}

#: What a person does about it.
HINTS: Final[dict[str, str]] = {
    "SignatureDoesNotMatch": "the secret key is wrong, or the region or the endpoint is",
    "InvalidAccessKeyId": "the service does not know this access key",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "ExpiredToken": "the session is over; sign in again",
    "InvalidObjectState": "the object is archived; restore it first",
}
RETRY_AFTER_MAX_S: Final = 300.0

_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{0,500})</Message>")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no success."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
        """Read the XML of an error; empty strings where there is none."""
        text = body[:65536].decode("utf-8", "replace")
        code, message = _CODE.search(text), _MESSAGE.search(text)
        return cls(
            status,
            unescape(code[1]) if code else "",
            unescape(message[1]).strip() if message else "",
            headers,
        )

    def error(self, what: str) -> UnifsError:
        """The named failure; ``what`` is what was asked for, "GET bucket/key"."""
        cls = CODES.get(self.code) or STATUSES.get(self.status)
        if cls is None:
            cls = Unreachable if self.status >= 500 else UnifsError
        said = ": ".join(part for part in (self.code, self.message) if part) or self._phrase()
        hint = HINTS.get(self.code)
        sentence = f"{what}: the service answers {self.status}"
        if said:
            sentence += f" ({said})"
        if hint:
            sentence += f"; {hint}"
        context: dict[str, object] = {"s3_code": self.code or str(self.status)}
        pause = retry_after_s(self.headers)
        if pause is not None:
            context["retry_after_s"] = pause
        return cls(sentence, **context)

    def _phrase(self) -> str:
        """What the status says by itself: answers to HEAD have no more; "" where it is none."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return ""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the service asks to be left alone, bounded."""
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdecimal():
        return min(float(text), RETRY_AFTER_MAX_S)
    moment, now = date_s(text), date_s(headers.get("date", ""))
    if moment is None or now is None:
        return None
    return min(max(moment - now, 0.0), RETRY_AFTER_MAX_S)


def date_s(text: str) -> float | None:
    """An HTTP date in seconds since the epoch, None if it is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
