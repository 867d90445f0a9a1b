"""Where an S3 mount's identity comes from: AWS's own rules, the credentials store, or nobody.

``AwsCredentials`` is botocore's chain: environment, shared files and profiles, SSO, assumed roles,
web identity, processes, instance metadata. botocore blocks and may use the network, so it works in
a thread; what it found is kept and answered from memory until shortly before it expires. Nothing
here logs or stores a secret, and no error carries one.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import trio

from unifs.errors import NotFound, PermissionDenied, Unreachable
from unifs.mounts.s3.options import Credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.mounts.blocking import Blocking
    from unifs.state.credentials import CredentialStore

log = logging.getLogger(__name__)

#: Asking again after nothing was found: instance metadata alone can take seconds.
AGAIN_S: Final = 30.0
#: Seconds before the end of temporary credentials at which new ones are asked for.
EARLY_S: Final = 15 * 60


class Anonymous:
    """Signs nothing."""

    async def current(self) -> Credentials | None:
        return None


class StoredCredentials:
    """An entry of the credentials store; a change of the entry holds at the next request."""

    def __init__(self, store: CredentialStore, name: str) -> None:
        self._store = store
        self._name = name

    async def current(self) -> Credentials | None:
        """PermissionDenied where the entry is missing or is no identity."""
        try:
            entry = self._store.get(self._name)
        except NotFound as error:
            raise PermissionDenied(str(error)) from error
        if entry.is_key:
            raise PermissionDenied(f"{self._name!r} is an encryption key and no identity")
        return Credentials(entry.access_key, entry.secret_key, entry.session_token)


class AwsCredentials:
    """What botocore finds for a profile ("": its default rules)."""

    def __init__(
        self, profile: str, blocking: Blocking, find: Callable[[str], Any] | None = None
    ) -> None:
        self._profile = profile
        self._blocking = blocking
        self._find = find or _find
        self._lock = trio.Lock()
        #: botocore's object, which refreshes itself where it can.
        self._found: Any = None
        self._current: Credentials | None = None
        self._failure: PermissionDenied | Unreachable | None = None
        self._asked_at = float("-inf")

    async def current(self) -> Credentials | None:
        """From memory unless it is about to expire. PermissionDenied where there is none."""
        if self._current is not None and not self._is_old():
            return self._current
        async with self._lock:
            if self._current is not None and not self._is_old():
                return self._current
            if self._failure is not None and trio.current_time() - self._asked_at < AGAIN_S:
                raise type(self._failure)(str(self._failure))
            await self._ask()
            assert self._current is not None
            return self._current

    def _is_old(self) -> bool:
        """Whether to ask now; in its last minutes what is known is used between two attempts."""
        if not hasattr(self._found, "refresh_needed"):
            return False
        if not self._found.refresh_needed(EARLY_S):
            return False
        is_early = not self._found.refresh_needed(0)
        return not (is_early and trio.current_time() - self._asked_at < AGAIN_S)

    async def _ask(self) -> None:
        self._asked_at = trio.current_time()
        try:
            self._found, self._current = await self._blocking.read(self._look)
            self._failure = None
        except (PermissionDenied, Unreachable) as error:
            self._failure = error
            if self._current is None or self._found.refresh_needed(0):
                self._current = None
                raise
            log.warning("credentials are not renewed yet: error=%s", error)

    def _look(self) -> tuple[Any, Credentials]:
        """Blocks."""
        failures = _failures()
        where = f"profile {self._profile!r}" if self._profile else "the environment, AWS's files"
        try:
            found = self._found or self._find(self._profile)
            if found is None:
                raise PermissionDenied(f"no AWS credentials in {where}: {HOW}")
            frozen = found.get_frozen_credentials()
        except failures as error:
            # An error of the SDK may quote what it sent or read: its kind and the profile are said.
            kind = type(error).__name__
            said = f": {SAID[kind]}" if kind in SAID else ""
            raise PermissionDenied(
                f"AWS credentials cannot be had ({kind}) from {where}{said}"
            ) from None
        except OSError as error:
            raise Unreachable(f"AWS credentials cannot be had: {error.strerror or error}") from None
        if not frozen.access_key or not frozen.secret_key:
            raise PermissionDenied(f"no AWS credentials in {where}: {HOW}")
        return found, Credentials(frozen.access_key, frozen.secret_key, frozen.token or "")


#: What to do about errors of botocore; their own words may hold a secret.
SAID: Final = {
    "ProfileNotFound": "AWS's files have no such profile",
    "PartialCredentialsError": "one of key and secret is missing there",
    "SSOTokenLoadError": "sign in with `aws sso login`",
    "UnauthorizedSSOTokenError": "sign in again with `aws sso login`",
    "TokenRetrievalError": "sign in again with `aws sso login`",
}
HOW: Final = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, `profile`, `credentials`, or `anonymous`"
)


def _find(profile: str) -> Any:
    """botocore's credentials for a profile, or None. Blocks."""
    return _session(profile).get_credentials()


def region_of(profile: str) -> str:
    """The region that AWS's own rules give a profile, "" if none. Blocks for files only."""
    try:
        found = _session(profile).get_config_variable("region")
    except _failures():
        # A profile that does not exist: its first use says so.
        return ""
    return str(found or "")


def _session(profile: str) -> Any:
    # At its debug level it logs headers, and with them session tokens.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    return import_module("botocore.session").Session(profile=profile or None)


def _failures() -> tuple[type[Exception], ...]:
    exceptions = import_module("botocore.exceptions")
    return exceptions.BotoCoreError, exceptions.ClientError
