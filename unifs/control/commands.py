"""``unifs ctl NOUN VERB``: commands made from the operations.

``cli.py`` hangs the group into the command line. A command renders what its operation declares:
its help, its parameters, its answer. What it adds is rendering only: ``--json``, ``--field``,
``--output``, and which daemon is meant.
"""

from __future__ import annotations

import math
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from unifs import config
from unifs.control import render, syncing
from unifs.control.given import GivenPath
from unifs.control.locate import Target
from unifs.control.ops import MODULES, operations_of
from unifs.errors import InvalidArgument, NotFound, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from unifs.control.client import Reply
    from unifs.control.registry import Operation, Parameter


#: Nouns whose module tells of more than theirs.
_NOUN_HELPS: Final = {
    "checkpoints": "Names of the past that are kept: list and remove them.",
    "log": "Follow what the daemon does.",
}


class ControlGroup(click.Group):
    """The nouns and verbs below ``unifs ctl``; a module is imported when its word is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every first word."""
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name, or the group of a noun's verbs."""
        found = [each for each in operations_of(cmd_name) if each.words[0] == cmd_name]
        if not found:
            return None
        if found[0].words == [cmd_name]:
            return command(found[0])
        module = sys.modules[found[0].function.__module__]
        summary = (module.__doc__ or "").partition("\n")[0]
        text = _noun_help(cmd_name, summary)
        group = click.Group(cmd_name, help=text, short_help=text)
        helps: Mapping[str, str] = getattr(module, "GROUPS", {})
        for each in found:
            _group_of(group, each.words[:-1], helps).add_command(command(each))
        return group


def _group_of(top: click.Group, words: list[str], helps: Mapping[str, str]) -> click.Group:
    """The group for the nouns of an operation; those below the first say what they are about."""
    group = top
    for depth in range(1, len(words)):
        below = group.commands.get(words[depth])
        if not isinstance(below, click.Group):
            text = helps[".".join(words[: depth + 1])]
            below = click.Group(words[depth], help=text, short_help=text)
            group.add_command(below)
        group = below
    return group


def _noun_help(noun: str, summary: str) -> str:
    return _NOUN_HELPS.get(noun, summary)


def target_options(prefix: str = "", is_hidden: bool = False) -> list[click.Parameter]:
    """``--state`` and ``--mount``: which daemon."""
    directory = GivenPath()
    helps = {
        "state": "The daemon of this state directory.",
        "mount": "The daemon mounted at this directory.",
    }
    return [
        click.Option([f"--{name}", prefix + name], type=directory, hidden=is_hidden, help=text)
        for name, text in helps.items()
    ]


def command(operation: Operation) -> click.Command:
    """The command of one operation."""

    def run(**values: Any) -> None:
        _Call(operation, values).run()

    parameters = [_click_parameter(each) for each in operation.parameters if not each.param.hidden]
    directory = GivenPath()
    parameters += [
        click.Option(["--json", "is_json"], is_flag=True, help="JSON, for programs."),
        *target_options("target_", is_hidden=True),
    ]
    if operation.kind == "bytes":
        declared = ["--output", "output_to"]
        if not any(each.param.short == "-o" for each in operation.parameters):
            declared.append("-o")
        text = "Write it to this path; - for stdout."
        parameters.append(click.Option(declared, type=directory, help=text))
    else:
        names = dict.fromkeys(
            name for struct in operation.result_structs for name in render.fields(struct)
        )
        only = click.Choice(list(names))
        text = "Only this field, as it is."
        parameters.append(
            click.Option(["--field", "only_field"], type=only, metavar="NAME", help=text)
        )
    return click.Command(
        operation.words[-1],
        params=parameters,
        callback=run,
        help=f"{operation.summary}\n\n{_click_text(operation.description)}",
        short_help=operation.summary,
    )


def _is_path(text: str) -> bool:
    """Whether it is meant as a path, where a CID is one too."""
    return text.startswith("/") or text.partition("/")[0] in (".", "..")


def _click_text(description: str) -> str:
    return description.replace("`", "'")


def _click_parameter(parameter: Parameter) -> click.Parameter:
    kind = _click_type(parameter)
    name = parameter.name.replace("_", "-")
    if parameter.is_argument:
        metavar = "FILE" if name == "document" else name.upper()
        if parameter.is_list:
            metavar = f"{metavar}..."
        is_required = parameter.is_required or parameter.param.place == "upload"
        return click.Argument(
            [parameter.name],
            type=kind,
            required=is_required,
            nargs=-1 if parameter.is_list else 1,
            metavar=metavar if is_required else f"[{metavar}]",
            help=_sentence(parameter.param.help) + _default(parameter),
        )
    if parameter.param.secret:
        text = f"The environment variable that holds {parameter.param.help}."
        return click.Option([f"--{name}-env", parameter.name], metavar="VARIABLE", help=text)
    declarations = [f"--{name}", parameter.name]
    is_switch = parameter.type is bool
    if is_switch and parameter.default:
        declarations[0] = f"--{name}/--no-{name}"
    if parameter.param.short:
        declarations.append(parameter.param.short)
    return click.Option(
        declarations,
        type=None if is_switch else kind,
        is_flag=is_switch,
        default=parameter.default if is_switch else None,
        multiple=parameter.is_list,
        help=_sentence(parameter.param.help) + _default(parameter),
    )


def _click_type(parameter: Parameter) -> Any:
    if parameter.choices:
        return click.Choice(parameter.choices)
    if parameter.param.place:
        # Whatever it is a path of, a shell completes it as one.
        return GivenPath(str, allow_dash=parameter.param.place == "upload")
    kind = parameter.type.__args__[0] if parameter.is_list else parameter.type
    return {int: click.INT, float: _FiniteFloat()}.get(kind, click.STRING)


class _FiniteFloat(click.types.FloatParamType):
    """A number. JSON has no others: ``nan`` and ``inf`` would arrive as if nothing was said."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """The number; UsageError where it is none."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def _sentence(text: str) -> str:
    """A help as a sentence. What is typed as it stands (``ours:``, ``http://…``) keeps its case."""
    is_word = text.partition(" ")[0].rstrip(",;").isalpha()
    return f"{text[:1].upper() if is_word else text[:1]}{text[1:]}."


def _default(parameter: Parameter) -> str:
    default = parameter.default
    if parameter.type is bool or default is None or default == "" or default == []:
        return ""
    return f" [{default}]"


def _secret(parameter: Parameter, variable: str | None) -> str | None:
    """A secret from where it can be given unseen: a variable, the terminal, or a line of stdin."""
    if variable is not None:
        return config.variable(variable)
    if not parameter.is_required:
        return None
    if sys.stdin.isatty():
        found: str = click.prompt(_sentence(parameter.param.help).rstrip("."), hide_input=True)
        return found
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise click.UsageError(f"standard input is empty: its first line is {parameter.param.help}")
    return line


class _Call:
    """One operation called from the command line, and its answer shown."""

    def __init__(self, operation: Operation, values: dict[str, Any]) -> None:
        self._operation = operation
        self._is_json: bool = values.pop("is_json")
        self._field: str | None = values.pop("only_field", None)
        self._output: Path | None = values.pop("output_to", None)
        state, mount = values.pop("target_state"), values.pop("target_mount")
        chosen = click.get_current_context().find_object(dict) or {}
        self._target = Target(state or chosen.get("state"), mount or chosen.get("mount"))
        self._parameters = self._given(values)

    def _given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What was said: the operation's own defaults fill in the rest."""
        given: dict[str, Any] = {}
        for parameter in self._operation.parameters:
            found = values.get(parameter.name)
            if parameter.param.secret:
                found = _secret(parameter, found)
            if found is None or (parameter.is_list and not found):
                continue
            if parameter.param.place == "host":
                found = os.path.abspath(os.path.expanduser(found))
            elif parameter.param.place == "tree":
                found = self._target.tree_path(found)
            elif parameter.param.place == "node" and _is_path(found):
                found = self._target.tree_path(found)
                if not found.startswith("/"):
                    raise InvalidArgument(f"{found} lies in no tree that is mounted here")
            given[parameter.name] = list(found) if parameter.is_list else found
        return given

    def run(self) -> None:
        name = self._operation.name
        if self._operation.takes_upload:
            self._upload()
        elif self._operation.kind == "bytes":
            with self._target.client().download(name, self._parameters) as reply:
                self._receive(reply)
        elif self._operation.kind == "events":
            self._show_events(self._target.client().events(name, self._parameters))
        elif name in syncing.OPERATIONS and not self._is_json and not self._field:
            self._show_answer(syncing.call(self._target, name, self._parameters))
        else:
            self._show_answer(self._target.client().call(name, self._parameters))

    # --- answers and events -----------------------------------------------------------------------

    def _show_answer(self, table: dict[str, Any]) -> None:
        if self._field is not None:
            render.field(self._field, [table], sys.stdout)
        elif self._is_json:
            render.json_line({"status": "success"} | table, sys.stdout)
        else:
            render.answer(self._operation.result_structs[0], table, sys.stdout)

    def _show_events(self, events: Iterator[dict[str, Any]]) -> None:
        if self._field is not None:
            render.field(self._field, events, sys.stdout)
            return
        if self._is_json:
            for event in events:
                render.json_line(event, sys.stdout)
                sys.stdout.flush()
            return
        structs = self._operation.result_structs
        if self._operation.is_live:
            render.follow(render.fields(structs[0]), events, sys.stdout)
        elif len(structs) == 1:
            render.rows(render.fields(structs[0]), events, sys.stdout)
        else:
            self._show_tagged(events)

    def _show_tagged(self, events: Iterator[dict[str, Any]]) -> None:
        """Events of several kinds: progress moves the bar, the others are answers."""
        from unifs.control.transfer import bar

        kinds = {each.__struct_config__.tag: each for each in self._operation.result_structs}
        shown: list[dict[str, Any]] = []
        try:
            with bar(self._operation.words[-1]) as told:
                for event in events:
                    if event.get("event") != "progress":
                        shown.append(event)
                    elif told is not None:
                        done = event.get("bytes_done", event.get("blocks", 0))
                        told(done, event.get("bytes_total"))
        finally:
            # What came before a failure says what has failed.
            for event in shown:
                render.answer(kinds[event["event"]], event, sys.stdout)

    # --- bytes ------------------------------------------------------------------------------------

    def _receive(self, reply: Reply) -> None:
        from unifs.control import transfer

        # A file that stdout goes to is written on, not replaced.
        is_stdout = str(self._output) in ("-", "/dev/stdout")
        if reply.content_type == "application/x-tar" and not is_stdout:
            made = {"path": str(transfer.unpack(reply.chunks(), self._output))}
            if self._is_json:
                render.json_line(made, sys.stdout)
            else:
                render.field("path", [made], sys.stdout)
            return
        output = None if is_stdout else self._output
        is_text = reply.content_type.startswith("application/octet-stream")
        if output is None and sys.stdout.isatty() and not is_text:
            raise click.UsageError("that is binary; give --output FILE, or --output - for stdout")
        transfer.write_out(reply.chunks(), output)

    def _upload(self) -> None:
        from unifs.control import transfer

        source = next(
            each.name for each in self._operation.parameters if each.param.place == "upload"
        )
        path = self._parameters.pop(source)
        is_telling = any(each.name == "progress" for each in self._operation.parameters)
        if is_telling and not self._is_json and not self._field and sys.stderr.isatty():
            self._parameters["progress"] = True
        if path == "-":
            with transfer.bar("stdin") as told:
                self._send(transfer.pieces(sys.stdin.buffer, told))
            return
        found = os.stat(path)
        if stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode):
            # Also what a shell's <(command) names: nobody else can read it.
            with open(path, "rb") as file, transfer.bar(path) as told:
                self._send(transfer.pieces(file, told))
            return
        identity = f"{found.st_dev}:{found.st_ino}"
        named = {source: os.path.abspath(path), "identity": identity}
        try:
            self._send((), named)
        except (NotFound, PermissionDenied) as error:
            if "daemon_path" not in error.context or not stat.S_ISREG(found.st_mode):
                raise
            with open(path, "rb") as file, transfer.bar(path) as told:
                self._send(transfer.pieces(file, told, found.st_size or None))

    def _send(self, pieces: Any, named: dict[str, str] | None = None) -> None:
        """Send bytes, or name the file that has them. Their number is not said: files grow."""
        parameters = self._parameters | (named or {})
        size_bytes = None if named is None else 0
        client = self._target.client()
        with client.upload(self._operation.name, parameters, pieces, size_bytes) as reply:
            if self._operation.kind == "events":
                self._show_events(reply.events())
            else:
                self._show_answer(reply.table())
