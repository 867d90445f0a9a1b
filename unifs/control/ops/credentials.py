"""Secrets of backends, kept in the state directory and shown to nobody."""

from typing import Annotated

from unifs.control.daemon_protocol import Answer, CredentialInfo, CredentialTest, Daemon, Secret
from unifs.control.registry import Emit, Param, operation

Name = Annotated[str, Param("the entry's name, as in the setting `credentials`")]


class Forgotten(Answer):
    """The entry is no longer in the store."""

    name: str


@operation("credentials.ls")
async def ls(daemon: Daemon, emit: Emit[CredentialInfo]) -> None:
    """List the entries, without what is secret in them."""
    for each in await daemon.credentials.list():
        await emit(each)


@operation("credentials.add", mutates=True, scope="admin")
async def add(
    daemon: Daemon,
    name: Name,
    secret_key: Annotated[
        str, Param("the secret key, or an encryption key in base64", secret=True)
    ],
    access_key: Annotated[str, Param("the access key; without one it is an encryption key")] = "",
    session_token: Annotated[str, Param("the session token of temporary keys", secret=True)] = "",
    replace: Annotated[bool, Param("take the place of an entry of that name")] = False,
) -> CredentialInfo:
    """Keep an identity, or an encryption key, under a name.

    The secret is asked for at the terminal, read from the first line of standard input, or taken
    from an environment variable; it never stands on a command line. It is kept in the state
    directory in a file that only you can read.
    """
    secret = Secret(access_key=access_key, secret_key=secret_key, session_token=session_token)
    return await daemon.credentials.add(name, secret, replace)


@operation("credentials.rm", mutates=True, scope="admin")
async def rm(daemon: Daemon, name: Name) -> Forgotten:
    """Forget an entry that no mount uses."""
    await daemon.credentials.remove(name)
    return Forgotten(name=name)


@operation("credentials.test")
async def check(
    daemon: Daemon,
    name: Name,
    endpoint: Annotated[
        str, Param("http(s)://host[:port]; else that of the backend that uses them, or Amazon's")
    ] = "",
    region: Annotated[str, Param("the region; else the backend's, or AWS's own rules")] = "",
    ca_file: Annotated[
        str,
        Param("PEM file of the authorities to trust; else the backend's", place="host"),
    ] = "",
) -> CredentialTest:
    """Ask a service whether it takes an entry.

    Where a backend uses the entry, it is asked as that backend asks: with its region, its
    authorities and, where it shows one bucket only, for that bucket. Changes nothing.
    """
    return await daemon.credentials.test(name, endpoint, region, ca_file)
