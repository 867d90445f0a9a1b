"""Turns a parsed table into a struct, with one sentence about the first mistake.

``config.py`` calls ``convert``; the control plane says its mistakes in the same words. It knows no
setting by name and reads nothing. Sizes (keys that say ``_bytes``) may be text such as "64 MiB".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

S = TypeVar("S", bound=Struct)


class MistakeError(Exception):
    """One sentence about a key, without the file's name."""


def convert(struct: type[S], table: Mapping[str, object], where: str) -> S:
    """``table`` as ``struct``; ``where`` is the table's own name, "" at the top."""
    try:
        return msgspec.convert(_checked(struct, table, where), struct)
    except msgspec.ValidationError as error:
        raise MistakeError(sentence(str(error), where)) from error


def _checked(struct: type[Struct], table: Mapping[str, object], where: str) -> dict[str, object]:
    """``table`` with sizes as numbers; refuses unknown keys and values outside a choice."""
    hints = get_type_hints(struct, include_extras=True)
    known = {name: hints[name] for name in struct.__struct_fields__}
    checked: dict[str, object] = {}
    for key, value in table.items():
        place = f"{where}.{key}" if where else key
        if key not in known:
            raise MistakeError(f"{place} is not a setting{nearest(key, known)}")
        checked[key] = _checked_value(known[key], value, place)
    return checked


def _checked_value(hint: object, value: object, place: str) -> object:
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(kind, type) and issubclass(kind, Struct):
        if not isinstance(value, dict):
            raise MistakeError(f"{place} has to be a table [{place}]")
        return _checked(kind, value, place)
    if get_origin(kind) is Literal and value not in get_args(kind):
        choices = ", ".join(map(str, get_args(kind)))
        raise MistakeError(f"{place}: {value!r} is not one of {choices}")
    is_size = "_bytes" in place.rpartition(".")[2]
    return _parse_size(value, place) if is_size and isinstance(value, str) else value


_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("b", 1000), ("ib", 1024))
    for power, prefix in enumerate("kmgt", start=1)
}


def _parse_size(text: str, place: str = "size") -> int:
    """Bytes from "64 MiB", "10GB" or "4096"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise MistakeError(f"{place}: {text!r} is not a size such as 64 MiB or 10 GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def nearest(key: object, known: Mapping[str, object]) -> str:
    """The end of the sentence: "; did you mean …?", or all there are."""
    import difflib  # only ever needed for a mistake

    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))}"


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "a table",
    "array": "a list",
    "null": "nothing",
}


def _words(match: re.Match[str]) -> str:
    return " or ".join(_WORDS.get(kind, kind) for kind in match[1].split(" | "))


def sentence(error: str, where: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.cache.disk_bytes`" for people."""
    text, _, path = error.partition(" - at `")
    below = path.rstrip("`").removeprefix("$").lstrip(".").removesuffix("[...]")
    place = ".".join(part for part in (where, below) if part) or "the file"
    text = re.sub(r"`(\w+(?: \| \w+)*)`", _words, text)
    return f"{place}: {text[:1].lower()}{text[1:]}"
