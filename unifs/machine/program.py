"""How this unifs is started from outside: by a service manager, by mount(8), after a reboot.

``units.py`` and ``mounthelper.py`` write it into files that outlive the shell it was asked from, so
nothing in it may depend on a working directory, a PATH or an activated environment. A file of that
name which somebody else wrote is left alone.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import unifs
from unifs.errors import Exists, NotFound, from_os_error


def program() -> str:
    """The absolute path of a program that is ``unifs``. Raises NotFound.

    In a checkout its script, which also brings the environment up to date after a new version is
    pulled; else the command that was installed beside this interpreter, in a virtual environment or
    not.
    """
    script = Path(unifs.__file__).resolve().parents[1] / "scripts" / "unifs"
    # Not resolved: where the command is a link, its place is what survives the next version.
    installed = Path(sysconfig.get_path("scripts")) / "unifs"
    for path in (script, installed):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    raise NotFound(f"there is no command unifs beside {sys.executable}: install unifs there")


def check_ours(path: Path, head: str) -> None:
    """Raises Exists if a file is there that does not begin with ``head``, as each of ours does."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os_error(error) from error
    if not text.startswith(head):
        raise Exists(f"{path} was not written by unifs")
