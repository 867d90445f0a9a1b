"""Refusals of a service, and what each is to whoever asked."""

from __future__ import annotations

import pytest
import trio

from unifs.errors import (
    Conflict,
    Corrupt,
    NameTooLong,
    NotFound,
    PermissionDenied,
    RateLimited,
    UnifsError,
    Unreachable,
    Unsupported,
)
from unifs.mounts.s3.errors import CODES, RETRY_AFTER_MAX_S, Refusal, retry_after_s
from unifs.mounts.s3.limiter import PAUSE_MAX_S, Limiter

BODY = b"""<?xml version="1.0"?><Error><Code>%s</Code><Message>It &lt;failed&gt;.</Message>
<StringToSign>secret things</StringToSign></Error>"""


def error_of(status: int, code: str = "", **headers: str) -> UnifsError:
    body = BODY % code.encode() if code else b""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Refusal.of(status, named, body).error("GET 'bucket/key'")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "", NotFound),
        (403, "AccessDenied", PermissionDenied),
        (403, "SignatureDoesNotMatch", PermissionDenied),
        (412, "PreconditionFailed", Conflict),
        (409, "ConditionalRequestConflict", Conflict),
        (503, "SlowDown", RateLimited),
        (503, "", RateLimited),
        (429, "", RateLimited),
        (500, "InternalError", Unreachable),
        (502, "", Unreachable),
        (400, "BadDigest", Corrupt),
        (400, "KeyTooLongError", NameTooLong),
        (501, "NotImplemented", Unsupported),
        (418, "Teapot", UnifsError),
    ],
)
def test_the_table(status: int, code: str, kind: type[UnifsError]) -> None:
    error = error_of(status, code)
    assert type(error) is kind
    assert error.context["s3_code"] == code or str(status)
    assert "GET 'bucket/key'" in str(error)


def test_only_what_may_pass_is_transient() -> None:
    transient = {code for code, kind in CODES.items() if kind.is_transient}
    assert {"SlowDown", "InternalError", "RequestTimeout"} <= transient
    assert not transient & {"AccessDenied", "NoSuchKey", "PreconditionFailed", "BadDigest"}


def test_the_message_says_what_the_service_said_and_no_more() -> None:
    text = str(error_of(403, "SignatureDoesNotMatch"))
    assert "It <failed>." in text
    assert "secret" not in text.replace("secret key", "")


def test_an_answer_without_a_body_is_said_in_words() -> None:
    assert str(Refusal(403, "", "", {}).error("HEAD 'b'")).endswith("answers 403 (Forbidden)")
    assert str(Refusal(499, "", "", {}).error("HEAD 'b'")).endswith("answers 499")


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert error_of(503, "SlowDown", retry_after="7").context["retry_after_s"] == 7.0
    date = "Sat, 21 Nov 2026 15:00:00 GMT"
    later = "Sat, 21 Nov 2026 15:00:05 GMT"
    assert retry_after_s({"retry-after": later, "date": date}) == 5.0
    assert retry_after_s({"retry-after": "999999"}) == RETRY_AFTER_MAX_S
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None


# --- the limiter ----------------------------------------------------------------------------------


async def test_an_overloaded_service_gets_half_and_slowly_more(autojump_clock) -> None:
    limiter = Limiter(16)
    limiter.refused(None)
    limiter.refused(None)
    assert limiter.statistics()["requests_allowed"] == 8
    await trio.sleep(2)
    limiter.refused(None)
    assert limiter.statistics()["requests_allowed"] == 4
    for _ in range(300):
        limiter.served()
    assert limiter.statistics()["requests_allowed"] == 16
    assert limiter.statistics()["refusals"] == 3


async def test_no_request_is_made_before_the_time_that_was_asked_for(autojump_clock) -> None:
    limiter = Limiter(2)
    limiter.refused(5.0)
    async with limiter.place():
        assert trio.current_time() == pytest.approx(5.0)
    limiter.refused(3600.0)
    async with limiter.place():
        assert trio.current_time() == pytest.approx(5.0 + PAUSE_MAX_S)


async def test_places_are_bounded_and_given_back_when_cancelled(autojump_clock) -> None:
    limiter = Limiter(1)
    async with limiter.place():
        with trio.move_on_after(1) as scope:
            async with limiter.place():
                raise AssertionError("there was one place")
        assert scope.cancelled_caught
    async with limiter.place():
        assert limiter.statistics()["requests"] == 1
    assert limiter.statistics()["requests"] == 0
