"""The command line: ``unifs mount``, ``umount``, ``ctl``, ``status``, ``explain``, ``doctor``, …

The entry point is ``main``. Every failure ends here as one line with a hint and the exit code of
its class (``unifs.errors`` lists them); nobody sees a traceback. Whatever a command needs is
imported in its body: ``unifs ctl version`` has 0.3 s as a whole process.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

import unifs
from unifs.control.given import GivenPath
from unifs.errors import InvalidArgument, MountFailed, NoDaemon, UnifsError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: The order of the help: what everybody uses, then what looks after it, then what sets it up.
_ORDER = ("mount", "umount", "status", "explain", "ctl", "doctor", "fsck", "config", "completion")
_DIRECTORY = GivenPath()
_FILE = GivenPath()
#: Commands of ``unifs.machine.commands``; mount(8) calls the helper.
_MACHINE = (
    "install-service",
    "uninstall-service",
    "install-mount-helper",
    "mount-helper",
)


class LazyGroup(click.Group):
    """The commands of this file, and those that are made when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command."""
        return [*_ORDER, *_MACHINE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        found = self._command(ctx, cmd_name)
        if found is not None and found.help:
            # Listed by its whole first sentence, which click would cut off.
            found.short_help = found.help.partition("\n\n")[0].replace("\n", " ")
        return found

    def _command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in ("status", "explain"):
            from unifs.control.commands import ControlGroup

            found = ControlGroup().get_command(ctx, cmd_name)
            assert found is not None
            for each in found.params:
                if isinstance(each, click.Option):
                    each.hidden = False  # Above them no `unifs ctl` says which daemon is meant.
            return found
        if cmd_name == "ctl":
            return _control_group()
        if cmd_name in _MACHINE:
            from unifs.machine.commands import COMMANDS

            return COMMANDS[cmd_name]
        return super().get_command(ctx, cmd_name)


_EXIT_CODES = (
    "Exit codes: 0 success, 1 a bug, 2 wrong usage, 3 unreachable or timed out, "
    "4 not found, 5 refused, 6 damaged data, 7 not supported, 8 no space, 9 no daemon, "
    "130 interrupted."
)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)
@click.version_option(unifs.__version__, prog_name="unifs", message="%(prog)s %(version)s")
def cli() -> None:
    """One mounted tree for everything addressed by content or kept in an object store."""


def _control_group() -> click.Group:
    from unifs.control.commands import ControlGroup, target_options

    @click.pass_context
    def choose(ctx: click.Context, state: Path | None, mount: Path | None) -> None:
        ctx.obj = {"state": state, "mount": mount}

    help_text = "Operations of the mounted daemon.\n\n--json shows what its control socket says."
    options = target_options()
    return ControlGroup("ctl", callback=choose, params=options, help=help_text, epilog=_EXIT_CODES)


# --- mounting -------------------------------------------------------------------------------------


@cli.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--foreground", "-f", is_flag=True, help="Stay here and log to stderr.")
@click.option(
    "--state",
    type=_DIRECTORY,
    help="Keep everything in this directory, instead of ~/.local/state/unifs.",
)
@click.option("--config", "file", type=_FILE, help="Read the settings from this file.")
@click.option("--node", help="Who speaks IPFS: embedded.")
@click.option("--read-only", is_flag=True, default=None, help="Refuse every change.")
@click.option("--allow-other", is_flag=True, default=None, help="Let other users see the tree.")
@click.option(
    "--offline", is_flag=True, default=None, help="No network for the IPFS node; it uses none yet."
)
def mount(
    directory: Path, foreground: bool, state: Path | None, file: Path | None, **overrides: Any
) -> int:
    """Mount the tree at DIRECTORY.

    Returns when the tree answers, and leaves a daemon behind; `unifs umount` ends it.
    """
    from unifs import config, daemon
    from unifs.driver.mounting import mount_command

    settings = config.load(state, file, overrides)
    return mount_command(settings, directory, foreground, daemon.run)


@cli.command()
@click.argument("directory", type=_DIRECTORY)
@click.option(
    "--wait", is_flag=True, help="First wait until all changes have reached their backend."
)
def umount(directory: Path, wait: bool) -> int:
    """Unmount the tree at DIRECTORY and end its daemon.

    What is not on its backend yet stays in the journal and continues at the next mount. With --wait
    and a backend that does not answer: what waits is said, and Ctrl-C leaves the tree mounted.
    """
    from unifs.control import syncing
    from unifs.control.locate import Target
    from unifs.driver.unmounting import umount_command

    if wait:
        # Where no daemon is left to wait for, unmounting says what is at that place.
        with suppress(NoDaemon):
            syncing.before_unmounting(Target(None, directory))
    return umount_command(directory, wait)


# --- this machine ---------------------------------------------------------------------------------


@cli.command()
@click.option("--state", type=_DIRECTORY, help="Look at this state directory.")
@click.option("--config", "file", type=_FILE, help="Read the settings from this file.")
@click.option("--json", "is_json", is_flag=True, help="JSON, for programs.")
@click.argument("directory", type=_DIRECTORY, required=False)
def doctor(state: Path | None, file: Path | None, is_json: bool, directory: Path | None) -> int:
    """Say what this machine lacks for a mounted tree, and how to mend it.

    With DIRECTORY, look at that mount point. The exit code is 5 where nothing could be mounted.
    """
    from unifs import config
    from unifs.control import render
    from unifs.driver.doctor import examine
    from unifs.machine.findings import examine as examine_machine

    findings = [*examine(config.load(state, file), directory), *examine_machine()]
    width = max(len(each.name) for each in findings)
    for each in findings:
        if is_json:
            names = ("name", "is_ok", "is_needed", "message", "remedy")
            render.json_line({name: getattr(each, name) for name in names}, sys.stdout)
            continue
        mark = "ok" if each.is_ok else "no" if each.is_needed else "--"
        click.echo(f"{mark}  {each.name:<{width}}  {each.message}")
        if not each.is_ok and each.remedy:
            click.echo(f"    {'':<{width}}  {each.remedy}")
    is_mountable = all(each.is_ok for each in findings if each.is_needed)
    return 0 if is_mountable else MountFailed.exit_code


@cli.command()
@click.option("--state", type=_DIRECTORY, help="Check this state directory.")
@click.option("--repair", is_flag=True, help="Mend what is found; without it nothing changes.")
@click.option("--verify", is_flag=True, help="Hash every stored content too.")
@click.option("--json", "is_json", is_flag=True, help="JSON, for programs.")
def fsck(state: Path | None, repair: bool, verify: bool, is_json: bool) -> int:
    """Check a state directory that is not mounted, and repair it.

    Whatever a repair cannot place is kept: objects in lost+found at the top of /mfs, bytes in
    lost+found in the state directory, rows in the receipt there.

    Exit codes: 0 nothing is wrong, 1 all that was wrong is mended, 4 something is wrong still,
    8 the check could not be made (the directory is in use, the disk fails). `unifs ctl fsck`
    checks while it is mounted.
    """
    from unifs import config
    from unifs.control.render import printable
    from unifs.fsck.offline import FAILED, examine
    from unifs.fsck.telling import tell

    try:
        outcome = examine(config.state_directory(state), repair, verify)
    except (UnifsError, OSError) as error:
        _failed(error, is_json)
        return FAILED
    for line in tell(outcome, is_json):
        click.echo(printable(line))
    return outcome.exit_code


@cli.group("config")
def config_group() -> None:
    """Show, find and check the settings."""


@config_group.command("show")
@click.option("--config", "file", type=_FILE, help="Read this file instead.")
@click.option("--state", type=_DIRECTORY, help="For this state directory.")
def config_show(file: Path | None, state: Path | None) -> None:
    """Show every setting that is in force, as a settings file.

    What differs from the default says so.
    """
    from unifs import config
    from unifs.control.settings_text import as_toml

    click.echo(as_toml(config.load(state, file)), nl=False)


@config_group.command("path")
@click.option("--state", type=_DIRECTORY, help="For this state directory.")
def config_path(state: Path | None) -> None:
    """Say where the settings file, the state, the socket and the log are."""
    from unifs import config

    directory = config.state_directory(state)
    click.echo(f"settings  {config.config_file()}")
    click.echo(f"state     {directory}")
    click.echo(f"socket    {config.socket_path(directory)}")
    click.echo(f"log       {config.log_path(directory)}")


@config_group.command("check")
@click.argument("file", type=_FILE, required=False)
def config_check(file: Path | None) -> None:
    """Check a settings file without mounting anything."""
    from unifs import config

    settings = config.load(file=file)
    click.echo(f"{settings.config_file or 'no settings file'}: ok")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    unifs completion bash > ~/.local/share/bash-completion/completions/unifs
    unifs completion zsh > "${fpath[1]}/_unifs"
    unifs completion fish > ~/.config/fish/completions/unifs.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    source = found(cli, {}, "unifs", "_UNIFS_COMPLETE").source()
    # click's script for fish would end a sentence, or a path, at its first comma.
    click.echo(source.replace('string split ","', 'string split --max 1 ","'))


# --- the process ----------------------------------------------------------------------------------


def main() -> None:
    """The entry point of the installed command."""
    _hold_standard_streams()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        # Told already; the interpreter must not complain of it once more at its end.
        _nobody_reads()
    sys.exit(code)


def _hold_standard_streams() -> None:
    """Let nothing else get the numbers of streams that the caller has closed.

    What is read from a closed one, or written to it, fails as it should: EBADF. Only what would be
    told on stderr is dropped.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        flags = os.O_WRONLY if name in ("stdin", "stderr") else os.O_RDONLY
        opened = os.open(os.devnull, flags)
        assert opened == number, "the lowest free number"
        setattr(sys, name, open(opened, mode, closefd=False))  # noqa: SIM115 (it stays open)


def _nobody_reads() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code.

    Failures are told on stderr, and with ``--json`` also as one object on stdout.
    """
    is_json, out = "--json" in arguments, sys.stdout
    try:
        result = cli.main(list(arguments), prog_name="unifs", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as help_asked:
        click.echo(help_asked.format_message(), err=True)
        return InvalidArgument.exit_code
    except click.ClickException as error:
        return _wrong_usage(error, is_json)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (BrokenPipeError, SystemExit) as ended:
        # Whoever read our output has seen enough; click wraps the stream then, to exit with 1.
        if isinstance(ended, SystemExit) and sys.stdout is out:
            raise
        _nobody_reads()
        return 0
    except (UnifsError, OSError) as error:
        return _failed(error, is_json)
    return result if isinstance(result, int) else 0


def _wrong_usage(error: click.ClickException, is_json: bool) -> int:
    """Tell what the command line cannot mean; for a program with the code INVALID_ARGUMENT."""
    message = error.format_message().replace("\n", " ").rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "unifs"
    hint = f"`{path} --help` shows how"
    if is_json:
        _print_failure(InvalidArgument(message), hint)
    _say(message, hint)
    return InvalidArgument.exit_code


def _print_failure(error: UnifsError, hint: str) -> None:
    """One JSON object on stdout, of the shape that every surface gives an error."""
    import json

    from unifs.control.wire import failure

    # Where stdout itself is what fails, stderr says so.
    with suppress(OSError):
        print(json.dumps(failure(error) | {"hint": hint}, separators=(",", ":")), flush=True)


def _failed(error: UnifsError | OSError, is_json: bool) -> int:
    """Tell a failure on stderr; for a program also as one JSON object on stdout."""
    if isinstance(error, OSError):
        # Of this process, not of the tree: a file that it was told to read or to write.
        named = from_os_error(error)
        cls = type(named) if isinstance(named, UnifsError) else UnifsError
        message, hint = error.strerror or str(error), ""
        if error.filename is not None:
            message = f"{error.filename}: {message}"
        error = cls(message, errno=error.errno)
    else:
        message, hint = str(error), error.hint
    if is_json:
        _print_failure(error, hint)
    if error.code == UnifsError.code and hint:
        from unifs import config

        log = config.log_path(config.state_directory())
        hint = f"this is a bug in unifs; the traceback is in {log}"
    _say(message, hint)
    return error.exit_code


def _say(message: str, hint: str) -> None:
    from unifs.control.render import printable

    print(f"unifs: {printable(message.rstrip('.'))}", file=sys.stderr)
    if hint:
        print(f"  {hint}", file=sys.stderr)


if __name__ == "__main__":
    main()
