"""Every call on every kind of object, by root and by an ordinary user who owns it: which errno.

Nobody lacks a permission here (``test_permissions`` is about those), except where the call is
root's alone. From POSIX.1-2017 and the man pages of section 2.
"""

from __future__ import annotations

import pytest

from tests.posix.conftest import Place, make
from tests.posix.differences import expected
from tests.posix.grid import grid, told

OBJECTS = grid(
    "objects",
    """
                          file     dir      full     link     dirlink  dangling  loop    fifo     socket   null     absent
open O_RDONLY             -        -        -        -        -        ENOENT    ELOOP   -        ENXIO    -        ENOENT
open O_WRONLY             -        EISDIR   EISDIR   -        EISDIR   ENOENT    ELOOP   ENXIO    ENXIO    -        ENOENT
open O_RDWR               -        EISDIR   EISDIR   -        EISDIR   ENOENT    ELOOP   -        ENXIO    -        ENOENT
open O_CREAT              -        EISDIR   EISDIR   -        EISDIR   -         ELOOP   ENXIO    ENXIO    -        -
open O_CREAT|O_EXCL       EEXIST   EEXIST   EEXIST   EEXIST   EEXIST   EEXIST    EEXIST  EEXIST   EEXIST   EEXIST   -
open O_CREAT|O_DIRECTORY  EINVAL   EINVAL   EINVAL   EINVAL   EINVAL   EINVAL    EINVAL  EINVAL   EINVAL   EINVAL   EINVAL
open O_TRUNC              -        EISDIR   EISDIR   -        EISDIR   ENOENT    ELOOP   ENXIO    ENXIO    -        ENOENT
open O_RDONLY|O_TRUNC     -        EISDIR   EISDIR   -        EISDIR   ENOENT    ELOOP   -        ENXIO    -        ENOENT
open O_APPEND             -        EISDIR   EISDIR   -        EISDIR   ENOENT    ELOOP   ENXIO    ENXIO    -        ENOENT
open O_SYNC               -        EISDIR   EISDIR   -        EISDIR   ENOENT    ELOOP   ENXIO    ENXIO    -        ENOENT
open O_DSYNC              -        EISDIR   EISDIR   -        EISDIR   ENOENT    ELOOP   ENXIO    ENXIO    -        ENOENT
open O_DIRECTORY          ENOTDIR  -        -        ENOTDIR  -        ENOENT    ELOOP   ENOTDIR  ENOTDIR  ENOTDIR  ENOENT
open O_NOFOLLOW           -        -        -        ELOOP    ELOOP    ELOOP     ELOOP   -        ENXIO    -        ENOENT
open O_PATH               -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
open O_PATH|O_NOFOLLOW    -        -        -        -        -        -         -       -        -        -        ENOENT
open O_DIRECT             -        EINVAL   EINVAL   -        EINVAL   ENOENT    ELOOP   EINVAL   ENXIO    EINVAL   ENOENT
open O_TMPFILE            ENOTDIR  -        -        ENOTDIR  -        ENOENT    ELOOP   ENOTDIR  ENOTDIR  ENOTDIR  ENOENT
stat                      -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
lstat                     -        -        -        -        -        -         -       -        -        -        ENOENT
access F_OK               -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
access W_OK               -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
access X_OK               -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
readlink                  EINVAL   EINVAL   EINVAL   -        -        -         -       EINVAL   EINVAL   EINVAL   ENOENT
statfs                    -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
chdir                     ENOTDIR  -        -        ENOTDIR  -        ENOENT    ELOOP   ENOTDIR  ENOTDIR  ENOTDIR  ENOENT
readdir                   ENOTDIR  -        -        ENOTDIR  -        ENOENT    ELOOP   ENOTDIR  ENOTDIR  ENOTDIR  ENOENT
execve                    -        EACCES   EACCES   -        EACCES   ENOENT    ELOOP   EACCES   EACCES   EACCES   ENOENT
connect                   ECONNREFUSED  ECONNREFUSED  ECONNREFUSED  ECONNREFUSED  ECONNREFUSED  ENOENT  ELOOP  ECONNREFUSED  ECONNREFUSED  ECONNREFUSED  ENOENT
bind                      EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE  -
truncate                  -        EISDIR   EISDIR   -        EISDIR   ENOENT    ELOOP   EINVAL   EINVAL   EINVAL   ENOENT
truncate longer           -        EISDIR   EISDIR   -        EISDIR   ENOENT    ELOOP   EINVAL   EINVAL   EINVAL   ENOENT
truncate -1               EINVAL   EINVAL   EINVAL   EINVAL   EINVAL   EINVAL    EINVAL  EINVAL   EINVAL   EINVAL   EINVAL
unlink                    -        EISDIR   EISDIR   -        -        -         -       -        -        -        ENOENT
rmdir                     ENOTDIR  -        ENOTEMPTY  ENOTDIR  ENOTDIR  ENOTDIR  ENOTDIR  ENOTDIR  ENOTDIR  ENOTDIR  ENOENT
mkdir                     EEXIST   EEXIST   EEXIST   EEXIST   EEXIST   EEXIST    EEXIST  EEXIST   EEXIST   EEXIST   -
mkfifo                    EEXIST   EEXIST   EEXIST   EEXIST   EEXIST   EEXIST    EEXIST  EEXIST   EEXIST   EEXIST   -
mknod file                EEXIST   EEXIST   EEXIST   EEXIST   EEXIST   EEXIST    EEXIST  EEXIST   EEXIST   EEXIST   -
symlink                   EEXIST   EEXIST   EEXIST   EEXIST   EEXIST   EEXIST    EEXIST  EEXIST   EEXIST   EEXIST   -
link to new               -        EPERM    EPERM    -        -        -         -       -        -        -        ENOENT
link following            -        EPERM    EPERM    -        EPERM    ENOENT    ELOOP   -        -        -        ENOENT
rename to new             -        -        -        -        -        -         -       -        -        -        ENOENT
rename noreplace          -        -        -        -        -        -         -       -        -        -        ENOENT
rename exchange           ENOENT   ENOENT   ENOENT   ENOENT   ENOENT   ENOENT    ENOENT  ENOENT   ENOENT   ENOENT   ENOENT
rename onto itself        -        -        -        -        -        -         -       -        -        -        ENOENT
chmod                     -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
chown                     -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
chown -1 -1               -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
lchown                    -        -        -        -        -        -         -       -        -        -        ENOENT
utimensat                 -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
utimensat NOW             -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
utimensat OMIT            -        -        -        -        -        -         -       -        -        -        -
utimensat nofollow        -        -        -        -        -        -         -       -        -        -        ENOENT
getxattr                  -        -        -        -        -        ENOENT    ELOOP   ENODATA  ENODATA  ENODATA  ENOENT
lgetxattr                 -        -        -        ENODATA  ENODATA  ENODATA   ENODATA  ENODATA  ENODATA  ENODATA  ENOENT
setxattr                  -        -        -        -        -        ENOENT    ELOOP   EPERM    EPERM    EPERM    ENOENT
lsetxattr                 -        -        -        EPERM    EPERM    EPERM     EPERM   EPERM    EPERM    EPERM    ENOENT
setxattr CREATE           EEXIST   EEXIST   EEXIST   EEXIST   EEXIST   ENOENT    ELOOP   EPERM    EPERM    EPERM    ENOENT
setxattr REPLACE          ENODATA  ENODATA  ENODATA  ENODATA  ENODATA  ENOENT    ELOOP   EPERM    EPERM    EPERM    ENOENT
listxattr                 -        -        -        -        -        ENOENT    ELOOP   -        -        -        ENOENT
removexattr               -        -        -        -        -        ENOENT    ELOOP   EPERM    EPERM    EPERM    ENOENT
removexattr absent        ENODATA  ENODATA  ENODATA  ENODATA  ENODATA  ENOENT    ELOOP   EPERM    EPERM    EPERM    ENOENT
""",  # noqa: E501 – a table
)


@pytest.mark.parametrize("user", ["root", "owner"])
@pytest.mark.parametrize("call", OBJECTS.rows)
def test_errno(place: Place, user: str, call: str) -> None:
    caller = place.users[user]
    found = {}
    for kind in OBJECTS.columns:
        directory = place.directory()
        make(place.path / directory / "x", kind)
        found[kind] = told(caller.ask(call, f"{directory}/x")[0])
    assert found == expected(place.name, "objects", call, OBJECTS.rows[call])
