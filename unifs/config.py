"""Typed settings, and where unifs keeps things.

Owns every default, the TOML file and the environment; nobody else reads either. The command line,
the daemon and the tests call ``load``; the command line calls ``state_directory`` and
``socket_path`` alone where it only wants to talk to a daemon. It must never create, lock or open
anything below the state directory.

A settings file may say what ``FileSettings`` has, nothing else: an unknown key is an error that
names the nearest known one, because a misspelt limit that is ignored does not limit.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from unifs.config_mounts import REMOTE_KINDS, MountBase, RemoteBase, S3Settings, Seconds
from unifs.config_table import MistakeError, convert, nearest
from unifs.errors import ConfigInvalid
from unifs.types import NAME_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1 << 20
GIB = 1 << 30

Bytes = Annotated[int, Meta(ge=0, le=1 << 62)]
Profile = Literal["unixfs-v1-2025", "unixfs-v0-2015", "kubo-v1"]
LogLevel = Literal["debug", "info", "warning", "error"]


class IpfsMount(MountBase, frozen=True, kw_only=True, tag="ipfs"):
    """``/ipfs``: immutable content by CID."""

    attribute_timeout_s: Annotated[
        Seconds,
        Meta(description="how long the kernel keeps names and attributes; CIDs never change"),
    ] = 365 * 86_400.0


class MfsMount(MountBase, frozen=True, kw_only=True, tag="mfs"):
    """``/mfs``: the read-write volume of the node."""

    attribute_timeout_s: Annotated[
        Seconds,
        Meta(description="how long the kernel keeps names and attributes; changes invalidate"),
    ] = 3600.0


class LocalMount(MountBase, frozen=True, kw_only=True, tag="local"):
    """``/local``: host directories by name, write-through."""

    attribute_timeout_s: Annotated[
        Seconds, Meta(description="how late a change made outside may be seen")
    ] = 1.0
    directories: Annotated[
        dict[str, str], Meta(description="NAME = absolute path of a host directory")
    ] = msgspec.field(default_factory=dict)


MountSettings = IpfsMount | MfsMount | LocalMount | S3Settings
#: Of these there is one each, under its own name.
FIXED_KINDS: dict[str, type[MountBase]] = {
    "ipfs": IpfsMount,
    "mfs": MfsMount,
    "local": LocalMount,
}
MOUNT_KINDS: dict[str, type[MountBase]] = {**FIXED_KINDS, **REMOTE_KINDS}


def _default_mounts() -> dict[str, MountSettings]:
    return {"ipfs": IpfsMount(), "mfs": MfsMount(), "local": LocalMount()}


class CacheSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes that can be had again."""

    memory_bytes: Annotated[Bytes, Meta(description="blocks and extents kept in memory")] = 64 * MIB
    disk_bytes: Annotated[Bytes, Meta(description="remote extents kept on disk")] = 10 * GIB
    disk_free_bytes_min: Annotated[
        Bytes, Meta(description="evict from the cache when the disk has less free space than this")
    ] = GIB


class StorageSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Own data: what the node stores."""

    limit_bytes: Annotated[
        Bytes, Meta(description="collect garbage automatically towards this size; 0: only by hand")
    ] = 0
    watermark_percent: Annotated[
        int,
        Meta(ge=1, le=100, description="automatic collection starts at this share of the limit"),
    ] = 90


class HistorySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of what /mfs was is kept, besides checkpoints."""

    everything_s: Annotated[
        Seconds, Meta(description="every epoch that was the present within so many seconds")
    ] = 3600.0
    hours: Annotated[
        int, Meta(ge=0, le=10_000, description="of so many full hours, what was the present then")
    ] = 24
    days: Annotated[
        int, Meta(ge=0, le=10_000, description="of so many midnights (UTC), the same")
    ] = 30


class JournalSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes on their way to a backend."""

    dirty_bytes_max: Annotated[
        Bytes,
        Meta(
            description="bytes of one mount not yet sealed, or not yet at its backend, at which its"
            " writers wait, then get ENOSPC"
        ),
    ] = 10 * GIB
    writeback_delay_s: Annotated[
        Seconds, Meta(description="quiet time after the last close before a file is written back")
    ] = 2.0
    writeback_age_max_s: Annotated[
        Seconds, Meta(description="age at which an open, busy file is written back anyway")
    ] = 30.0


class DeadlineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a system call may wait for a backend."""

    lookup_s: Annotated[Seconds, Meta(description="a name or attributes; then ETIMEDOUT")] = 5.0
    read_s: Annotated[Seconds, Meta(description="a read without progress; then ETIMEDOUT")] = 30.0
    suspended_max: Annotated[
        int, Meta(ge=1, le=1024, description="requests that may wait for one mount at a time")
    ] = 256


class ControlSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The control socket."""

    body_bytes_max: Annotated[Bytes, Meta(description="largest JSON request")] = MIB
    requests_max: Annotated[
        int, Meta(ge=1, le=10_000, description="requests answered at the same time")
    ] = 64


class FileSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a settings file can say."""

    node: Annotated[Literal["embedded"], Meta(description="who speaks IPFS")] = "embedded"
    profile: Annotated[
        Profile,
        Meta(description="how files become CIDs; fixed at the first mount of a state directory"),
    ] = "unixfs-v1-2025"
    read_only: Annotated[bool, Meta(description="refuse every change in the whole tree")] = False
    allow_other: Annotated[bool, Meta(description="let other users see the tree")] = False
    noexec: Annotated[bool, Meta(description="run no program that lies in the tree")] = False
    offline: Annotated[
        bool,
        Meta(
            description="the IPFS node fetches nothing from the network; in this version it never"
            " does, so false changes nothing"
        ),
    ] = False
    log_level: Annotated[LogLevel, Meta(description="how much the daemon logs")] = "info"
    cache: CacheSettings = CacheSettings()
    storage: StorageSettings = StorageSettings()
    journal: JournalSettings = JournalSettings()
    history: HistorySettings = HistorySettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    control: ControlSettings = ControlSettings()
    mounts: dict[str, MountSettings] = msgspec.field(default_factory=_default_mounts)


class Settings(FileSettings, frozen=True, kw_only=True):
    """The settings of one unifs: what the file says, and where things are."""

    state_directory: Path
    socket_path: Path
    #: The file that was read; None where there is none and every setting has its default.
    config_file: Path | None = None


# --- places -------------------------------------------------------------------------------------


def state_directory(state: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The state directory: ``state``, else $UNIFS_HOME, else $XDG_STATE_HOME/unifs. Absolute."""
    if state is not None:
        return Path(os.path.abspath(state.expanduser()))
    if home := environment.get("UNIFS_HOME"):
        return Path(os.path.abspath(os.path.expanduser(home)))
    base = environment.get("XDG_STATE_HOME") or ""
    # The XDG base directory specification: a relative path is invalid and is ignored.
    root = Path(base) if os.path.isabs(base) else _home(environment) / ".local" / "state"
    return root / "unifs"


def socket_path(state: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The control socket of the daemon that owns ``state``.

    In $XDG_RUNTIME_DIR, named by a hash of the state directory, since a state directory may lie on
    a file system without sockets; else in the state directory. It may be longer than the 107 bytes
    that a unix socket's address holds: ``control.address`` binds and connects it all the same.
    """
    runtime = environment.get("XDG_RUNTIME_DIR") or ""
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK):
        name = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
        return Path(runtime) / "unifs" / f"{name}.sock"
    return state_socket_path(state)


def state_socket_path(state: Path) -> Path:
    """The socket, or a link to it, in the state directory: found without $XDG_RUNTIME_DIR too."""
    return state / "control.sock"


def log_path(state: Path) -> Path:
    """The log of a daemon that runs in the background."""
    return state / "unifs.log"


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """The settings file: $UNIFS_CONFIG, else $XDG_CONFIG_HOME/unifs/config.toml."""
    if path := environment.get("UNIFS_CONFIG"):
        return Path(os.path.abspath(os.path.expanduser(path)))
    base = environment.get("XDG_CONFIG_HOME") or ""
    root = Path(base) if os.path.isabs(base) else _home(environment) / ".config"
    return root / "unifs" / "config.toml"


def units_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a user's own systemd units are (systemd.unit(5)): $XDG_CONFIG_HOME/systemd/user."""
    base = environment.get("XDG_CONFIG_HOME") or ""
    root = Path(base) if os.path.isabs(base) else _home(environment) / ".config"
    return root / "systemd" / "user"


def supervisor_says(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """A variable that a service manager sets for what it starts (systemd.exec(5)); else empty."""
    return environment.get(name, "")


def leave_supervisor() -> None:
    """Forget the service manager: a daemon in the background is not the service it started."""
    os.environ.pop("NOTIFY_SOCKET", None)


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or os.path.expanduser("~"))


def variable(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """The environment variable in which somebody keeps a secret. ConfigInvalid if there is none."""
    value = environment.get(name)
    if not value:
        raise ConfigInvalid(f"the environment variable {name} is not set, or empty")
    return value


# --- reading ------------------------------------------------------------------------------------


def load(
    state: Path | None = None,
    file: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings in force. Raises ConfigInvalid with one sentence about the first mistake.

    ``file`` must exist when it is given, by argument or by $UNIFS_CONFIG; the default need not.
    ``overrides`` are the options of a command line: top-level keys, None meaning "not given".
    """
    path = config_file(environment) if file is None else Path(os.path.abspath(file.expanduser()))
    is_required = file is not None or bool(environment.get("UNIFS_CONFIG"))
    text = _read_text(path, is_required)
    source = str(path) if text is not None else "the command line"
    table = _parse_toml(text, source) if text is not None else {}
    table.update({key: value for key, value in (overrides or {}).items() if value is not None})
    checked = parse(table, source)
    home = state_directory(state, environment)
    return Settings(
        **{name: getattr(checked, name) for name in FileSettings.__struct_fields__},
        state_directory=home,
        socket_path=socket_path(home, environment),
        config_file=None if text is None else path,
    )


def parse(table: Mapping[str, object], source: str = "the settings") -> FileSettings:
    """Check a parsed TOML table. Raises ConfigInvalid naming the key and ``source``."""
    try:
        mounts = _checked_mounts(table.get("mounts", {}))
        rest = {key: value for key, value in table.items() if key != "mounts"}
        checked = convert(FileSettings, rest, "")
    except MistakeError as mistake:
        raise ConfigInvalid(f"{mistake} (in {source})") from mistake.__cause__
    return msgspec.structs.replace(checked, mounts=_default_mounts() | mounts)


def parse_remote(name: str, table: Mapping[str, object]) -> RemoteBase:
    """Check what one remote mount is told at run time: the keys of ``[mounts.NAME]``.

    Raises ConfigInvalid naming the key.
    """
    try:
        checked = _checked_mount(name, dict(table))
    except MistakeError as mistake:
        raise ConfigInvalid(str(mistake)) from mistake.__cause__
    if not isinstance(checked, RemoteBase):
        raise ConfigInvalid(f"mounts.{name}: {table.get('kind')} is no kind of backend")
    return checked


def _read_text(path: Path, is_required: bool) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if is_required:
            raise ConfigInvalid(f"there is no settings file {path}") from None
        return None
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path} is not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}") from error


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    import tomllib  # 16 ms, and `unifs ctl` needs none of it

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"{source} is not TOML: {error}") from error


def _checked_mounts(mounts: object) -> dict[str, MountSettings]:
    if not isinstance(mounts, dict):
        raise MistakeError("mounts has to be tables like [mounts.mfs]")
    return {name: _checked_mount(name, mount) for name, mount in mounts.items()}


def _checked_mount(name: str, mount: object) -> MountSettings:
    where = f"mounts.{name}"
    _check_name(name, where)
    if not isinstance(mount, dict):
        raise MistakeError(f"{where} has to be a table [{where}]")
    kind = mount.get("kind", name if name in MOUNT_KINDS else None)
    if kind is None:
        raise MistakeError(f"{where} needs a kind: one of {', '.join(MOUNT_KINDS)}")
    if not isinstance(kind, str) or kind not in MOUNT_KINDS:
        raise MistakeError(
            f"{where}.kind: {kind!r} is no kind of mount{nearest(kind, MOUNT_KINDS)}"
        )
    if kind in FIXED_KINDS and kind != name:
        raise MistakeError(f"{where}: a mount of kind {kind} is always called {kind}")
    if name in FIXED_KINDS and kind != name:
        raise MistakeError(f"{where}: {name} is the name of the mount of kind {name}")
    rest = {key: value for key, value in mount.items() if key != "kind"}
    directories = rest.get("directories")
    if isinstance(directories, dict):
        rest["directories"] = {
            entry: _host_directory(f"{where}.directories.{entry}", entry, path)
            for entry, path in directories.items()
        }
    checked = convert(MOUNT_KINDS[kind], rest, where)
    if isinstance(checked, RemoteBase):
        checked.check(where)
    assert isinstance(checked, MountSettings)
    return checked


def _host_directory(where: str, name: str, path: object) -> object:
    _check_name(name, where)
    if not isinstance(path, str):
        return path
    absolute = os.path.expanduser(path)
    if not os.path.isabs(absolute):
        raise MistakeError(f"{where}: {path!r} has to be an absolute path")
    return absolute


def _check_name(name: str, where: str) -> None:
    """Refuse what cannot be a directory's name at the root, or is reserved there."""
    size = len(os.fsencode(name))
    if not 0 < size <= NAME_MAX_BYTES or "/" in name or "\0" in name or name.startswith("."):
        raise MistakeError(
            f"{where}: {name!r} cannot be a directory's name here"
            " (1 to 255 bytes, no slash, no leading dot)"
        )
