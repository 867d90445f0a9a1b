"""Who may do what, by the bits of the directory and of the object.

Each row is tried as the owner, as a member of the group (by a supplementary group) and as somebody
else; the bits named by the column are put into the class that has to count, and their opposite into
the other two, so a wrong class shows. A call is made on the object x, on the name behind @, or with
a bare @ on the directory itself. Root is refused nothing but executing what nobody may.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.posix.conftest import OWNER, Place, make
from tests.posix.differences import expected
from tests.posix.grid import grid, told

if TYPE_CHECKING:
    from tests.posix.caller import Caller

CLASSES = {"owner": 6, "member": 3, "other": 0}

DIRECTORIES = grid(
    "directories",
    """
                       ---     --x     -w-     -wx     r--     r-x     rw-     rwx
stat                   EACCES  -       EACCES  -       EACCES  -       EACCES  -
open O_RDONLY          EACCES  -       EACCES  -       EACCES  -       EACCES  -
open O_WRONLY          EACCES  -       EACCES  -       EACCES  -       EACCES  -
open O_CREAT           EACCES  -       EACCES  -       EACCES  -       EACCES  -
truncate               EACCES  -       EACCES  -       EACCES  -       EACCES  -
getxattr               EACCES  -       EACCES  -       EACCES  -       EACCES  -
chdir                  EACCES  ENOTDIR  EACCES  ENOTDIR  EACCES  ENOTDIR  EACCES  ENOTDIR
execve                 EACCES  -       EACCES  -       EACCES  -       EACCES  -
statfs                 EACCES  -       EACCES  -       EACCES  -       EACCES  -
unlink                 EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
rmdir                  EACCES  EACCES  EACCES  ENOTDIR  EACCES  EACCES  EACCES  ENOTDIR
rename to new          EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
rename noreplace       EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
link to new            EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
mkdir @new             EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
mkfifo @new            EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
mknod file @new        EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
symlink @new           EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
bind @new              EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
open O_CREAT @new      EACCES  EACCES  EACCES  -       EACCES  EACCES  EACCES  -
open O_CREAT|O_EXCL @new  EACCES  EACCES  EACCES  -     EACCES  EACCES  EACCES  -
readdir @              EACCES  EACCES  EACCES  EACCES  -       -       -       -
chdir @                EACCES  -       EACCES  -       EACCES  -       EACCES  -
access R_OK @          EACCES  EACCES  EACCES  EACCES  -       -       -       -
access W_OK @          EACCES  EACCES  -       -       EACCES  EACCES  -       -
access X_OK @          EACCES  -       EACCES  -       EACCES  -       EACCES  -
""",
)

FILES = grid(
    "files",
    """
                       ---     --x     -w-     -wx     r--     r-x     rw-     rwx
stat                   -       -       -       -       -       -       -       -
open O_RDONLY          EACCES  EACCES  EACCES  EACCES  -       -       -       -
open O_WRONLY          EACCES  EACCES  -       -       EACCES  EACCES  -       -
open O_RDWR            EACCES  EACCES  EACCES  EACCES  EACCES  EACCES  -       -
open O_CREAT           EACCES  EACCES  -       -       EACCES  EACCES  -       -
open O_TRUNC           EACCES  EACCES  -       -       EACCES  EACCES  -       -
open O_RDONLY|O_TRUNC  EACCES  EACCES  EACCES  EACCES  EACCES  EACCES  -       -
open O_PATH            -       -       -       -       -       -       -       -
truncate               EACCES  EACCES  -       -       EACCES  EACCES  -       -
execve                 EACCES  -       EACCES  -       EACCES  -       EACCES  -
access F_OK            -       -       -       -       -       -       -       -
access R_OK            EACCES  EACCES  EACCES  EACCES  -       -       -       -
access W_OK            EACCES  EACCES  -       -       EACCES  EACCES  -       -
access X_OK            EACCES  -       EACCES  -       EACCES  -       EACCES  -
getxattr               EACCES  EACCES  EACCES  EACCES  -       -       -       -
setxattr               EACCES  EACCES  -       -       EACCES  EACCES  -       -
setxattr CREATE        EACCES  EACCES  EEXIST  EEXIST  EACCES  EACCES  EEXIST  EEXIST
removexattr            EACCES  EACCES  -       -       EACCES  EACCES  -       -
listxattr              -       -       -       -       -       -       -       -
unlink                 -       -       -       -       -       -       -       -
rename to new          -       -       -       -       -       -       -       -
""",
)

#: What only the owner and root may do, or what needs a right that ownership gives.
OWNERSHIP = grid(
    "ownership",
    """
                       root    owner   member  other
chmod                  -       -       EPERM   EPERM
chown                  -       -       EPERM   EPERM
lchown                 -       -       EPERM   EPERM
utimensat              -       -       EPERM   EPERM
utimensat nofollow     -       -       EPERM   EPERM
utimensat NOW OMIT     -       -       EPERM   EPERM
utimensat NOW          -       -       EACCES  EACCES
mknod device @new      -       EPERM   EPERM   EPERM
mknod file @new        -       -       -       -
""",
)


def target(call: str) -> tuple[str, str]:
    """ "mkdir @new" as the call and what stands behind the directory's name."""
    verb, at, name = call.partition("@")
    return verb.strip(), f"/{name}" * bool(name) if at else "/x"


def bits(column: str) -> int:
    """ "r-x" as a number."""
    return sum(4 >> place for place, letter in enumerate(column) if letter != "-")


def mode_for(user: str, column: str) -> int:
    """These bits for the class that this user is in, their opposite for the others."""
    wanted = bits(column)
    return sum((wanted if name == user else 7 - wanted) << shift for name, shift in CLASSES.items())


@pytest.mark.parametrize("user", ["root", *CLASSES])
@pytest.mark.parametrize("call", DIRECTORIES.rows)
def test_the_bits_of_a_directory(place: Place, user: str, call: str) -> None:
    verb, name = target(call)
    row = expected(place.name, "directories", call, DIRECTORIES.rows[call])
    # Root searches and changes every directory: it gets the answer of the column with all bits.
    wanted = {column: row["rwx"] if user == "root" else cell for column, cell in row.items()}
    found = {}
    for column in DIRECTORIES.columns:
        directory = place.directory()
        make(place.path / directory / "x", "file")
        os.chmod(place.path / directory, mode_for(user, column))
        found[column] = told(_ask(place.users[user], verb, directory + name))
    assert found == wanted


def _ask(caller: Caller, call: str, path: str) -> int:
    return caller.ask(call, path)[0]


@pytest.mark.parametrize("user", ["root", *CLASSES])
@pytest.mark.parametrize("call", FILES.rows)
def test_the_bits_of_a_file(place: Place, user: str, call: str) -> None:
    row = expected(place.name, "files", call, FILES.rows[call])
    wanted = {column: row["rwx"] if user == "root" else cell for column, cell in row.items()}
    found = {}
    for column in FILES.columns:
        directory = place.directory()
        path = place.path / directory / "x"
        make(path, "file")
        # For root the opposite bits would be execute bits somewhere: each class gets the same.
        path.chmod(bits(column) * 0o111 if user == "root" else mode_for(user, column))
        found[column] = told(_ask(place.users[user], call, f"{directory}/x"))
        if user == "root" and call in ("execve", "access X_OK"):
            wanted[column] = row[column]
    assert found == wanted


@pytest.mark.parametrize("call", OWNERSHIP.rows)
@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
def test_what_the_owner_may(place: Place, call: str, kind: str) -> None:
    verb, name = target(call)
    found = {}
    for user in OWNERSHIP.columns:
        directory = place.directory()
        path = place.path / directory / "x"
        make(path, kind)
        path.chmod(0o700)
        found[user] = told(_ask(place.users[user], verb, directory + name))
    assert found == expected(place.name, "ownership", call, OWNERSHIP.rows[call])


#: The same where everybody may write: only the time of now is for all.
OPEN_TO_ALL = grid(
    "open to all",
    """
                       root    owner   member  other
chmod                  -       -       EPERM   EPERM
chown                  -       -       EPERM   EPERM
utimensat              -       -       EPERM   EPERM
utimensat NOW OMIT     -       -       EPERM   EPERM
utimensat NOW          -       -       -       -
""",
)


@pytest.mark.parametrize("call", OPEN_TO_ALL.rows)
@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
def test_what_everybody_may(place: Place, call: str, kind: str) -> None:
    found = {}
    for user in OPEN_TO_ALL.columns:
        directory = place.directory()
        make(place.path / directory / "x", kind)
        found[user] = told(_ask(place.users[user], call, f"{directory}/x"))
    assert found == expected(place.name, "open to all", call, OPEN_TO_ALL.rows[call])


STICKY = grid(
    "sticky",
    """
                       root    owner   member  other
unlink                 -       -       EPERM   EPERM
rmdir                  -       -       EPERM   EPERM
rename to new          -       -       EPERM   EPERM
rename noreplace       -       -       EPERM   EPERM
rename over            -       -       EPERM   EPERM
rename exchange        -       -       EPERM   EPERM
""",
)


@pytest.mark.parametrize("owned", ["object", "directory"])
@pytest.mark.parametrize("call", STICKY.rows)
def test_a_sticky_directory(place: Place, call: str, owned: str) -> None:
    """Only who owns the object or the directory may take the name away."""
    found = {}
    for user in STICKY.columns:
        directory = place.directory(0o1777, OWNER if owned == "directory" else 0)
        path = place.path / directory / "x"
        make(path, "dir" if call == "rmdir" else "file", OWNER if owned == "object" else 0)
        caller = place.users[user]
        if call == "rename over":
            make(path.with_name("own"), "file", caller.uid)
            number = caller.ask("rename", f"{directory}/own", f"{directory}/x")[0]
        elif call == "rename exchange":
            make(path.with_name("x.new"), "file", caller.uid)
            number = _ask(caller, call, f"{directory}/x")
        else:
            number = _ask(caller, call, f"{directory}/x")
        found[user] = told(number)
    assert found == expected(place.name, "sticky", call, STICKY.rows[call])


CHOWN = grid(
    "chown",
    """
                       root    owner   member  other
uid to other           -       EPERM   EPERM   EPERM
uid to itself          -       -       EPERM   EPERM
gid to primary         -       -       EPERM   EPERM
gid to second          -       -       EPERM   EPERM
gid to foreign         -       EPERM   EPERM   EPERM
both to foreign        -       EPERM   EPERM   EPERM
none                   -       -       -       -
""",
)
CHOWN_TO = {
    "uid to other": (70_003, -1),
    "uid to itself": (70_001, -1),
    "gid to primary": (-1, 70_101),
    "gid to second": (-1, 70_102),
    "gid to foreign": (-1, 70_203),
    "both to foreign": (70_003, 70_203),
    "none": (-1, -1),
}


@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
@pytest.mark.parametrize("change", CHOWN.rows)
def test_who_may_give_what_away(place: Place, change: str, kind: str) -> None:
    found = {}
    for user in CHOWN.columns:
        directory = place.directory()
        make(place.path / directory / "x", kind)
        caller = place.users[user]
        found[user] = told(caller.ask("chown to", f"{directory}/x", *CHOWN_TO[change])[0])
        owner, group = (place.path / directory / "x").stat()[4:6]
        uid, gid = CHOWN_TO[change] if found[user] == "-" else (-1, -1)
        assert (owner, group) == (70_001 if uid < 0 else uid, 70_101 if gid < 0 else gid)
    assert found == expected(place.name, "chown", change, CHOWN.rows[change])
