"""The credentials store and the sources of identities: kept, found, renewed, and never shown."""

from __future__ import annotations

import base64
import json
import os
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from unifs.backends import credentials_of, s3_options
from unifs.config_mounts import S3Settings
from unifs.control import tools
from unifs.control.daemon_protocol import Secret
from unifs.control.ops import operations
from unifs.errors import (
    Busy,
    ConfigInvalid,
    Exists,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unsupported,
)
from unifs.mounts.blocking import Blocking
from unifs.mounts.s3.credentials import AGAIN_S, AwsCredentials, region_of
from unifs.mounts.s3.mount import S3Mount
from unifs.mounts.s3.options import S3Options
from unifs.state.credentials import CredentialStore, Entry

if TYPE_CHECKING:
    from pathlib import Path

    from tests.control.conftest import Shell
    from tests.remotes.system import DaemonSystem

SECRET = "hunter2/hunter2+secret"
TOKEN = "tokentokentoken=="
KEY = base64.b64encode(b"k" * 32).decode()
#: Nobody listens there.
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of whoever runs the tests, and no instance metadata."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws_config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws_credentials"))


# --- the store ------------------------------------------------------------------------------------


async def test_an_entry_is_kept_in_a_file_of_its_owner_alone(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path)
    old = os.umask(0)
    try:
        await store.add("work", Entry("AK", SECRET, TOKEN, 5.0), replace=False)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "credentials.json").stat().st_mode) == 0o600
    again = CredentialStore(tmp_path)
    assert again.get("work") == Entry("AK", SECRET, TOKEN, 5.0)
    with pytest.raises(Exists):
        await again.add("work", Entry("AK2", SECRET), replace=False)
    await again.add("work", Entry("AK2", SECRET), replace=True)
    await again.remove("work")
    assert again.names() == []
    with pytest.raises(NotFound, match="unifs ctl credentials add work"):
        again.get("work")


async def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    await CredentialStore(tmp_path).add("work", Entry("AK", SECRET), replace=False)
    (tmp_path / "credentials.json").chmod(0o640)
    store = CredentialStore(tmp_path)
    with pytest.raises(PermissionDenied, match=r"others can read .* \(mode 0640\)") as caught:
        store.get("work")
    assert SECRET not in str(caught.value)
    with pytest.raises(PermissionDenied):
        await store.add("other", Entry("AK", SECRET), replace=False)
    assert "work" in json.loads((tmp_path / "credentials.json").read_text())["entries"]


@pytest.mark.parametrize("text", [f"{{{SECRET}", '{"version": 9}', "[]"])
def test_a_damaged_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(PermissionDenied) as caught:
        CredentialStore(tmp_path).get("work")
    assert "credentials.json" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "entry",
    [
        Entry("AK", ""),
        Entry("AK", f"{SECRET}\n"),
        Entry("AK", f" {SECRET}"),
        Entry("ä", SECRET),
        Entry("A K", SECRET),
        Entry("A/K", SECRET),
    ],
)
async def test_what_cannot_be_a_secret_is_refused_without_saying_it(
    tmp_path: Path, entry: Entry
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await CredentialStore(tmp_path).add("work", entry, replace=False)
    assert SECRET not in str(caught.value)
    assert not (tmp_path / "credentials.json").exists()


# --- sources --------------------------------------------------------------------------------------


async def test_where_an_identity_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CredentialStore(tmp_path)
    await store.add("work", Entry("AKSTORE", SECRET, TOKEN), replace=False)
    await store.add("key", Entry("", KEY), replace=False)
    assert await credentials_of(S3Settings(anonymous=True), store).current() is None
    stored = await credentials_of(S3Settings(credentials="work"), store).current()
    assert stored is not None
    assert (stored.access_key, stored.secret_key, stored.session_token) == (
        "AKSTORE",
        SECRET,
        TOKEN,
    )
    assert SECRET not in repr(stored)
    for name, sentence in (("nobody", "credentials called 'nobody'"), ("key", "no identity")):
        with pytest.raises(PermissionDenied, match=sentence):
            await credentials_of(S3Settings(credentials=name), store).current()
    (tmp_path / "aws_credentials").write_text(
        f"[play]\naws_access_key_id=AKPLAY\naws_secret_access_key={SECRET}\n"
    )
    (tmp_path / "aws_config").write_text("[profile play]\nregion=eu-central-1\n")
    shared = await credentials_of(S3Settings(profile="play"), store).current()
    assert shared is not None
    assert shared.access_key == "AKPLAY"
    assert s3_options(S3Settings(profile="play"), store).region == "eu-central-1"
    assert s3_options(S3Settings(), store).region == "us-east-1"
    assert region_of("missing") == ""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    around = await credentials_of(S3Settings(), store).current()
    assert around is not None
    assert around.access_key == "AKENV"


async def test_no_identity_is_said_with_what_to_do() -> None:
    with pytest.raises(PermissionDenied, match="no AWS credentials in the environment") as caught:
        await AwsCredentials("", Blocking(1)).current()
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    with pytest.raises(PermissionDenied, match=r"from profile 'missing': AWS's files have no such"):
        await AwsCredentials("missing", Blocking(1)).current()


async def test_an_encryption_key_comes_from_the_store(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path)
    await store.add("key", Entry("", KEY), replace=False)
    await store.add("work", Entry("AK", SECRET), replace=False)
    options = s3_options(S3Settings(encryption="c", encryption_key="key"), store)
    assert options.encryption_key == KEY
    assert KEY not in repr(options)
    with pytest.raises(ConfigInvalid, match="'work' in the credentials store is no encryption key"):
        s3_options(S3Settings(encryption="c", encryption_key="work"), store)
    assert s3_options(S3Settings(encryption="kms", encryption_key="arn"), store).encryption_key


class Chain:
    """What botocore gives for a chain of roles: refreshes itself, or fails to."""

    def __init__(self) -> None:
        self.left_s = 3600.0
        self.asked = 0
        self.failure: Exception | None = None
        self.found = trio.Event()

    def find(self, _profile: str) -> Chain:
        trio.from_thread.run_sync(self.found.set)
        return self

    def refresh_needed(self, refresh_in: float) -> bool:
        return self.left_s < max(refresh_in, 1)

    def get_frozen_credentials(self) -> Any:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        self.left_s = 3600.0
        return SimpleNamespace(
            access_key=f"AK{self.asked}", secret_key=SECRET, token=f"{TOKEN}{self.asked}"
        )


async def test_temporary_credentials_are_renewed_before_they_end(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    from botocore.exceptions import CredentialRetrievalError

    chain = Chain()
    source = AwsCredentials("", Blocking(1), lambda _: chain)
    for _ in range(3):
        assert (await source.current()).access_key == "AK1"  # type: ignore[union-attr]
    chain.left_s = 600.0
    await trio.sleep(AGAIN_S)
    assert (await source.current()).access_key == "AK2"  # type: ignore[union-attr]
    # The service that gives them fails: what there is, is used to its end, without asking at
    # each request.
    chain.left_s = 600.0
    chain.failure = CredentialRetrievalError(provider="sso", error_msg=SECRET)
    await trio.sleep(AGAIN_S)
    for _ in range(3):
        assert (await source.current()).access_key == "AK2"  # type: ignore[union-attr]
    assert chain.asked == 3
    chain.left_s = 0.0
    await trio.sleep(AGAIN_S)
    with pytest.raises(PermissionDenied, match="CredentialRetrievalError"):
        await source.current()
    asked = chain.asked
    with pytest.raises(PermissionDenied):
        await source.current()
    assert chain.asked == asked
    chain.failure = None
    await trio.sleep(AGAIN_S)
    assert (await source.current()).access_key == f"AK{asked + 1}"  # type: ignore[union-attr]
    assert SECRET not in caplog.text


async def test_they_are_there_before_the_first_request() -> None:
    chain = Chain()
    mount = S3Mount("s3", S3Options(endpoint=NOWHERE), AwsCredentials("", Blocking(1), chain.find))
    async with mount.serve():
        with trio.fail_after(10):
            await chain.found.wait()
        assert mount.statistics()["made"] == 0


async def test_a_mount_without_credentials_serves_and_its_first_use_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = trio.Event()
    monkeypatch.setattr("unifs.mounts.s3.mount.log.info", lambda *_: said.set())
    mount = S3Mount("s3", S3Options(endpoint=NOWHERE), AwsCredentials("", Blocking(1)))
    async with mount.serve():
        with trio.fail_after(10):
            await said.wait()
        with pytest.raises(PermissionDenied, match="no AWS credentials in the environment"):
            await mount.stat("bucket/file")


async def test_many_requests_at_once_ask_once() -> None:
    chain = Chain()
    source = AwsCredentials("", Blocking(2), lambda _: chain)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(source.current)
    assert chain.asked == 1


# --- the command line -----------------------------------------------------------------------------


async def test_secrets_come_from_a_variable_or_standard_input(
    system: DaemonSystem, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    added = await shell.text(
        "ctl", "credentials", "add", "work", "--access-key", "AKWORK",
        "--secret-key-env", "MY_SECRET", "--session-token-env", "MY_TOKEN",
    )  # fmt: skip
    assert SECRET not in added
    stored = system.daemon.credential_store.get("work")
    assert (stored.secret_key, stored.session_token) == (SECRET, TOKEN)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, readline=str))
    code, _, err = await shell.run("ctl", "credentials", "add", "key")
    assert (code, "standard input is empty" in err) == (2, True)
    lines = SimpleNamespace(isatty=lambda: False, readline=lambda: f"{KEY}\n")
    monkeypatch.setattr("sys.stdin", lines)
    await shell.text("ctl", "credentials", "add", "key")
    assert system.daemon.credential_store.get("key").is_key
    code, _, err = await shell.run("ctl", "credentials", "add", "x", "--secret-key-env", "NOPE")
    assert "the environment variable NOPE is not set" in err
    listed = await shell.json("ctl", "credentials", "ls")
    assert [(each["name"], each["kind"], each["access_key"]) for each in listed] == [
        ("key", "key", ""),
        ("work", "s3", "AKWORK"),
    ]
    await shell.text("ctl", "credentials", "rm", "key")
    assert system.daemon.credential_store.names() == ["work"]


async def test_a_secret_is_asked_for_unseen_at_a_terminal(
    system: DaemonSystem, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def prompt(text: str, hide_input: bool) -> str:
        asked.append((text, hide_input))
        return SECRET

    monkeypatch.setattr("click.prompt", prompt)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    await shell.text("ctl", "credentials", "add", "work", "--access-key", "AK")
    assert asked == [("The secret key, or an encryption key in base64", True)]
    assert system.daemon.credential_store.get("work").secret_key == SECRET


async def test_an_operation_with_a_secret_is_no_tool_for_an_agent(system: DaemonSystem) -> None:
    registry = operations()
    assert "credentials_add" not in {each["name"] for each in tools.descriptions(registry)}
    arguments = {"name": "x", "secret_key": SECRET}
    with pytest.raises(Unsupported, match="takes a secret"):
        await tools.call(registry, system.daemon, "credentials_add", arguments)


async def test_credentials_in_use_stay(system: DaemonSystem) -> None:
    await system.daemon.credential_store.add("work", Entry("AK", SECRET), replace=False)
    await system.daemon.remotes.add("x", {"kind": "s3", "credentials": "work"})
    with pytest.raises(Busy, match="work is used by x"):
        await system.daemon.credentials.remove("work")


async def test_a_backend_is_added_with_credentials_that_are_there(
    system: DaemonSystem, shell: Shell
) -> None:
    add = ("ctl", "backends", "add", "x", "--credentials")
    code, _, err = await shell.run(*add, "wrok")
    assert (code, "there are no credentials called 'wrok'" in err) == (4, True)
    await system.daemon.credential_store.add("key", Entry("", KEY), replace=False)
    code, _, err = await shell.run(*add, "key")
    assert (code, "'key' is an encryption key and no identity" in err) == (2, True)
    await system.daemon.credential_store.add("work", Entry("AK", SECRET), replace=False)
    await shell.text(*add, "work")


async def test_a_new_key_tries_again_what_the_old_one_was_refused(system: DaemonSystem) -> None:
    store, credentials = system.daemon.credential_store, system.daemon.credentials
    await store.add("work", Entry("AK", SECRET), replace=False)
    await system.daemon.remotes.add("x", {"kind": "s3", "credentials": "work"})
    system.choose("x")
    system.remote("x").fail("put", PermissionDenied("not with this key"))
    await system.write("a", b"1")
    await system.until_given_up(1)
    await credentials.add("work", Secret(access_key="AK2", secret_key=SECRET), replace=True)
    await system.sync("/x")
    assert system.remote("x").content("a") == b"1"


async def test_no_secret_is_ever_seen(
    system: DaemonSystem,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Everything that can be asked and provoked is asked and provoked, and looked through."""
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MY_SECRET", SECRET)
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    secrets = ["--secret-key-env", "MY_SECRET", "--session-token-env", "MY_TOKEN"]
    told: list[str] = []

    async def run(*arguments: str) -> None:
        for more in ((), ("--json",)):
            code, out, err = await shell.run("ctl", *arguments, *more)
            told.extend((str(code), out.decode("utf-8", "replace"), err))

    await run("credentials", "add", "work", "--access-key", "AK", *secrets)
    await run("credentials", "add", "a/b", "--access-key", "AK", *secrets)
    await run("credentials", "add", "key", *secrets)
    await run("backends", "add", "x", "--credentials", "work", "--endpoint", "http://127.0.0.1:9")
    await run("credentials", "test", "work", "--endpoint", "http://127.0.0.1:9")
    await run("backends", "test", "x")
    await run("credentials", "ls")
    await run("credentials", "rm", "work")
    for path in ("/x", "/"):
        await run("explain", path)
    await run("status")
    await run("mounts", "list")
    await run("backends", "ls")
    told.append(repr(system.daemon.credential_store.get("work")))
    told.append(repr(system.daemon.remotes.get("x")))
    told.append(system.daemon.metrics.export()[0].decode())
    monkeypatch.setattr(
        system.daemon.credentials, "add", _bug, raising=True
    )  # a bug's traceback goes to the log
    await run("credentials", "add", "work", "--access-key", "AK", *secrets)
    seen = "\n".join(told) + caplog.text
    assert "a bug" in caplog.text
    assert "AK" in seen
    for secret in (SECRET, TOKEN):
        assert secret not in seen
        assert base64.b64encode(secret.encode()).decode() not in seen
        assert repr(secret.encode())[2:-1] not in seen
    holders = [
        each.name
        for each in system.path.rglob("*")
        if each.is_file() and SECRET.encode() in each.read_bytes()
    ]
    assert holders == ["credentials.json"]


async def _bug(name: str, secret: object, replace: bool) -> None:
    raise RuntimeError(f"a bug with {secret!r} in {name}")
