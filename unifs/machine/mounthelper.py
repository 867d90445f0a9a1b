"""``mount -t fuse.unifs SOURCE DIR -o …`` and lines of /etc/fstab, as mount(8) hands them over.

mount(8) runs /sbin/mount.fuse.unifs, which ``install`` writes and which comes back here through the
command line. An option is honoured, or passed over because it belongs to mount(8) or systemd, or
refused by name: never ignored. Exit codes are mount(8)'s. umount(8) needs nothing from us: it asks
the kernel, and the daemon notices.

SOURCE is a state directory, absolute; ``unifs:`` may stand before it, which is how the mount table
shows it, so that `mount -a` sees that it is mounted. ``unifs`` and ``none`` mean the one that
`unifs mount` takes without --state.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unifs import config
from unifs.config_table import nearest
from unifs.errors import InvalidArgument, NotFound, UnifsError, Unsupported, from_os_error
from unifs.machine.program import check_ours

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH: Final = Path("/sbin/mount.fuse.unifs")
#: How the program begins; what does not is somebody else's and is left alone.
HEAD: Final = "#!/bin/sh\n# Written by `unifs install-mount-helper`; with --remove it removes it.\n"
SCRIPT: Final = HEAD + 'exec {program} mount-helper -- "$@"\n'

#: mount(8), "EXIT STATUS".
USAGE: Final = 1
FAILED: Final = 32

#: What mount(8), systemd or the kernel's FUSE make of themselves, or what always holds here.
PASSED_OVER: Final = frozenset(
    (
        *("defaults", "auto", "noauto", "nofail", "_netdev", "silent", "loud"),
        *("user", "users", "nouser", "nousers", "owner", "noowner", "group", "nogroup"),
        *("rw", "async", "nodev", "nosuid", "exec", "default_permissions"),
        *("atime", "relatime", "nodiratime", "diratime", "norelatime", "nostrictatime"),
        "nolazytime",
    )
)
PASSED_OVER_PREFIXES: Final = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")
FLAGS: Final = {"ro": "read_only", "allow_other": "allow_other", "noexec": "noexec"}
VALUES: Final = ("state", "config")
REFUSED: Final = {
    "dev": "device nodes of the tree are never opened",
    "suid": "set-uid programs of the tree never gain rights",
    "sync": "a program asks for it by fsync or O_SYNC",
    "dirsync": "a program asks for it by fsync of the directory",
    "mand": "mandatory locks do not exist any more",
    "noatime": "reading moves the times as with relatime",
    "strictatime": "reading moves the times as with relatime",
    "lazytime": "reading moves the times as with relatime",
    "remount": "unmount it and mount it with the other options",
    "bind": "mount --bind needs no type",
    "allow_root": "allow_other lets root in too",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What one call of mount(8) asks for."""

    place: str
    overrides: dict[str, bool] = field(default_factory=dict)
    state: Path | None = None
    config: Path | None = None
    is_fake: bool = False


def mount(words: Sequence[str]) -> int:
    """Mount as mount(8) asks; its exit code. What is wrong stands on standard error."""
    try:
        asked = parse(words)
        if asked.is_fake:
            return 0
        from unifs import daemon
        from unifs.driver.mounting import mount_command

        settings = config.load(asked.state, asked.config, asked.overrides)
        return mount_command(settings, Path(asked.place), False, daemon.run)
    except (UnifsError, OSError) as error:
        print(f"mount.fuse.unifs: {error}", file=sys.stderr)
        return USAGE if isinstance(error, InvalidArgument) else FAILED


# --- arguments ----------------------------------------------------------------------------------


def parse(words: Sequence[str]) -> Asked:
    """What is asked for. Raises InvalidArgument, or Unsupported for what is never done here."""
    plain, flags, options = _sorted_words(words)
    if len(plain) != 2:
        raise InvalidArgument("a state directory and a mount point are needed: SOURCE DIR [-o …]")
    overrides: dict[str, bool] = {}
    places: dict[str, Path] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if option in FLAGS:
            overrides[FLAGS[option]] = True
        elif equals and name in VALUES:
            places[name] = _absolute(name, value)
        else:
            _pass_over(option, is_sloppy="s" in flags)
    source = _state_of(plain[0])
    if source is not None and places.setdefault("state", source) != source:
        raise InvalidArgument(f"the source says {source}, state= says {places['state']}")
    is_fake = "f" in flags
    return Asked(plain[1], overrides, places.get("state"), places.get("config"), is_fake)


def _sorted_words(words: Sequence[str]) -> tuple[list[str], set[str], list[str]]:
    """The plain words, the letters of flags, the options after ``-o``."""
    plain: list[str] = []
    flags: set[str] = set()
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            plain.append(word)
        elif word[1] in "otN":
            value = word[2:] or next(rest, "")
            if word[1] == "N":
                raise Unsupported("another mount namespace: enter it with nsenter(1)")
            if word[1] == "o":
                options += _split(value)
        elif set(word[1:]) <= set("fnsvlrc"):
            flags |= set(word[1:])
        elif word != "--":
            raise InvalidArgument(f"{word} is no option of mount(8)'s helpers")
    return plain, flags, options


def _split(text: str) -> list[str]:
    """Options between commas; a comma after a backslash belongs to a value."""
    parts = re.findall(r"(?:\\.|[^,\\])+", text)
    return [re.sub(r"\\(.)", r"\1", part) for part in parts]


def _pass_over(option: str, is_sloppy: bool) -> None:
    if option in PASSED_OVER or option.startswith(PASSED_OVER_PREFIXES):
        return
    if option in REFUSED:
        raise Unsupported(f"the option {option} is not offered: {REFUSED[option]}")
    if not is_sloppy:
        known = dict.fromkeys((*FLAGS, *(f"{name}=" for name in VALUES)))
        raise InvalidArgument(f"unknown mount option {option!r}{nearest(option, known)}")


def _absolute(name: str, value: str) -> Path:
    if not os.path.isabs(value):
        raise InvalidArgument(f"{name}={value} has to be an absolute path")
    return Path(value)


def _state_of(source: str) -> Path | None:
    path = source.removeprefix("unifs:")
    if path in ("unifs", "none", "") or _is_word(source):
        return None
    if not os.path.isabs(path):
        raise InvalidArgument(
            f"{source!r} is no source: give a state directory (an absolute path), or `unifs`"
        )
    return Path(path)


def _is_word(source: str) -> bool:
    """Whether mount(8) made a path of the word ``unifs``: it does where there is such a file.

    In a checkout that is the source code, which a state directory must not be made of.
    """
    is_here = os.path.basename(source) == "unifs" and source == os.path.realpath("unifs")
    return is_here and os.path.exists(source) and not os.path.exists(f"{source}/tree.db")


# --- the program in /sbin -----------------------------------------------------------------------


def install(program: str, path: Path) -> list[str]:
    """Write the program that runs ``program``; what was done. Raises Exists if it is not ours."""
    check_ours(path, HEAD)
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_bytes(os.fsencode(SCRIPT.format(program=_quoted(program))))
        draft.chmod(0o755)
        draft.rename(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise from_os_error(error) from error
    return [f"wrote {path}"]


def remove(path: Path) -> list[str]:
    """Remove it. Raises NotFound where there is none, Exists where it is not ours."""
    check_ours(path, HEAD)
    try:
        path.unlink()
    except FileNotFoundError:
        raise NotFound(f"there is no {path}") from None
    except OSError as error:
        raise from_os_error(error) from error
    return [f"removed {path}"]


def _quoted(word: str) -> str:
    """For sh(1)."""
    return "'" + word.replace("'", "'\\''") + "'"
