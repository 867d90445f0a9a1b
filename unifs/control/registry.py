"""Operations: typed functions declared once, from which every surface is made.

``@operation`` attaches a declaration to an async function and nothing else; a ``Registry`` collects
the declared functions of modules. The HTTP server, the OpenAPI document, the command line and the
agent tools render what stands here; none of them adds an option, a default or a check.

An operation's first parameter is the daemon. The others are builtins, Literals, lists of them or
None-unions, described by ``Annotated[type, Param("…")]``; ``upload: Upload`` are bytes from the
caller. It returns a msgspec Struct (one answer) or a ``Download`` (bytes), or it has a parameter
``emit: Emit[T]`` and hands over Structs one by one (events, as ndjson). Failures are
``unifs.errors``.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec
from msgspec import Meta, Struct

from unifs.config_table import nearest, sentence
from unifs.errors import InvalidArgument, UnknownOperation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from types import ModuleType

#: Numbers are SQLite's and the kernel's: 64 bits.
NUMBER_END = 1 << 63

F = TypeVar("F", bound="Callable[..., Any]")
E = TypeVar("E", contravariant=True)

#: Parameter names that mean something to a surface already.
RESERVED: Final = frozenset({"json", "field", "state", "mount", "output", "name_encoding"})

#: What a parameter holds, for surfaces that stand in a directory of their own: a path of the
#: caller's file system, a path of the mounted tree, a CID or such a path, or the path behind an
#: ``Upload``.
Place = Literal["", "host", "tree", "node", "upload"]


@dataclass(frozen=True, slots=True)
class Param:
    """How a parameter is shown. ``argument`` makes an optional one positional. A ``secret`` is
    never given on a command line, and an operation with one is no tool for an agent.
    """

    help: str
    short: str = ""
    argument: bool = False
    place: Place = ""
    hidden: bool = False
    secret: bool = False


@dataclass(slots=True)
class Upload:
    """Bytes that the caller sends. ``chunks`` may be read once, as fast as they are wanted."""

    chunks: AsyncIterator[bytes]
    size_bytes: int | None = None


@dataclass(slots=True)
class Download:
    """Bytes for the caller, with what is known of them beforehand."""

    chunks: AsyncIterator[bytes]
    size_bytes: int | None = None
    content_type: str = "application/octet-stream"


class Emit(Protocol[E]):
    """Takes one event; returns when the caller has room for more. Not while cancelled."""

    async def __call__(self, event: E, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Declaration:
    """What ``@operation`` says of a function."""

    name: str
    mutates: bool
    scope: str
    is_live: bool


def operation(
    name: str, *, mutates: bool = False, scope: str = "", live: bool = False
) -> Callable[[F], F]:
    """Declare an operation: one verb, or nouns and a verb (``noun.verb``).

    ``scope`` is who may call it over TCP; ``live`` events come until the caller has enough.
    """

    def declare(function: F) -> F:
        needed = scope or ("write" if mutates else "read")
        declaration = Declaration(name, mutates, needed, live)
        function.declaration = declaration  # type: ignore[attr-defined]
        return function

    return declare


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an operation. ``type`` is without None where ``is_optional``."""

    name: str
    annotation: Any
    type: Any
    param: Param
    default: Any
    is_required: bool
    is_optional: bool

    @property
    def is_argument(self) -> bool:
        """Whether the command line takes it by position."""
        return (self.is_required or self.param.argument) and not self.param.secret

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal, else nothing."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def is_list(self) -> bool:
        """Whether it may be given several times."""
        return get_origin(self.type) is list


class Operation:
    """One declared function and everything that surfaces ask about it."""

    def __init__(self, function: Callable[..., Any], declaration: Declaration) -> None:
        self.function = function
        self.name = declaration.name
        self.mutates = declaration.mutates
        self.scope = declaration.scope
        self.is_live = declaration.is_live
        text = inspect.cleandoc(function.__doc__ or "")
        self.summary, _, rest = text.partition("\n")
        self.description = rest.strip()
        self.parameters: tuple[Parameter, ...] = ()
        self.takes_upload = False
        self._read_signature()

    def _read_signature(self) -> None:
        signature = inspect.signature(self.function)
        self.kind: Literal["answer", "events", "bytes"] = "answer"
        self.result_type: Any = signature.return_annotation
        if self.result_type is Download:
            self.kind = "bytes"
        parameters = []
        for each in list(signature.parameters.values())[1:]:
            if each.annotation is Upload:
                self.takes_upload = True
            elif get_origin(each.annotation) is Emit:
                self.kind, self.result_type = "events", get_args(each.annotation)[0]
            else:
                parameters.append(_parameter(each))
        self.parameters = tuple(parameters)

    @property
    def has_secret(self) -> bool:
        """Whether it takes what nobody may see."""
        return any(each.param.secret for each in self.parameters)

    @property
    def words(self) -> list[str]:
        """The name as a command: one verb, or nouns and a verb."""
        return self.name.split(".")

    @property
    def result_structs(self) -> tuple[type[Struct], ...]:
        """The structs that an answer or an event may be; none for bytes."""
        if self.kind == "bytes":
            return ()
        return get_args(self.result_type) or (self.result_type,)

    @cached_property
    def request_type(self) -> type[Struct]:
        """The parameters as one struct: what a request's body is checked against."""
        fields: list[Any] = []
        for each in self.parameters:
            meta = Meta(description=each.param.help)
            described: Any = Annotated.__class_getitem__((each.annotation, meta))  # type: ignore[attr-defined]
            fields.append(
                (each.name, described) if each.is_required else (each.name, described, each.default)
            )
        words = (part for word in self.words for part in word.split("-"))
        name = "".join(word.capitalize() for word in words) + "Request"
        return msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)

    def check(self, table: Mapping[str, object], is_text: bool = False) -> dict[str, Any]:
        """The arguments from an untrusted table. ``is_text``: values are text, as in a query.

        Raises InvalidArgument naming the field.
        """
        known = {each.name: each for each in self.parameters}
        for key in table:
            if key not in known:
                raise InvalidArgument(
                    f"{self.name} has no parameter {key!r}{nearest(key, known)}"
                    if known
                    else f"{self.name} takes no parameters",
                    field=key,
                )
        try:
            request = msgspec.convert(dict(table), self.request_type, strict=not is_text)
        except msgspec.ValidationError as error:
            message = sentence(str(error), "").removeprefix("the file: ")
            raise InvalidArgument(message, field=message.partition(":")[0]) from error
        arguments = {name: getattr(request, name) for name in known}
        for name, value in arguments.items():
            if isinstance(value, int) and not -NUMBER_END <= value < NUMBER_END:
                raise InvalidArgument(f"{name}: a number has 64 bits at most", field=name)
        return arguments

    def call(
        self,
        daemon: object,
        arguments: Mapping[str, Any],
        upload: Upload | None = None,
        emit: Emit[Any] | None = None,
    ) -> Awaitable[Any]:
        """Run it: the answer, the Download, or None when all events are emitted."""
        given = dict(arguments)
        if self.takes_upload:
            given["upload"] = upload
        if self.kind == "events":
            given["emit"] = emit
        result: Awaitable[Any] = self.function(daemon, **given)
        return result


class Registry:
    """The operations of one daemon, by name."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        self._operations: dict[str, Operation] = {}
        for each in operations:
            self.add(each)

    def add(self, each: Operation) -> None:
        """Add one operation; its name must be free and its answers must not use our fields."""
        assert each.name not in self._operations, each.name
        assert each.summary.endswith("."), f"{each.name} needs a first sentence"
        names = {parameter.name for parameter in each.parameters}
        assert not names & RESERVED, f"{each.name}: {names & RESERVED}"
        for struct in each.result_structs:
            assert "status" not in struct.__struct_fields__, each.name
        self._operations[each.name] = each

    def collect(self, module: ModuleType) -> None:
        """Add every function that ``module`` itself declares."""
        for function in vars(module).values():
            declaration = getattr(function, "declaration", None)
            if isinstance(declaration, Declaration) and function.__module__ == module.__name__:
                self.add(Operation(function, declaration))

    def get(self, name: str) -> Operation:
        """The operation of that name; UnknownOperation names the nearest."""
        found = self._operations.get(name)
        if found is None:
            raise UnknownOperation(
                f"there is no operation {name!r}{nearest(name, self._operations)}", name=name
            )
        return found

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations.values())


def _parameter(each: inspect.Parameter) -> Parameter:
    bare, param = _bare(each.annotation)
    assert param is not None, f"{each.name} needs a Param"
    kind, is_optional = bare, False
    if get_origin(bare) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(bare) if kind is not types.NoneType]
        assert len(kinds) == 1, f"{each.name}: one type, or one and None"
        kind, is_optional = kinds[0], True
    is_required = each.default is inspect.Parameter.empty
    return Parameter(
        name=each.name,
        annotation=each.annotation,
        type=_bare(kind)[0],
        param=param,
        default=None if is_required else each.default,
        is_required=is_required,
        is_optional=is_optional,
    )


def _bare(annotation: Any) -> tuple[Any, Param | None]:
    """The type without Annotated, and its Param."""
    if get_origin(annotation) is not Annotated:
        return annotation, None
    found = [each for each in annotation.__metadata__ if isinstance(each, Param)]
    return annotation.__origin__, found[0] if found else None
