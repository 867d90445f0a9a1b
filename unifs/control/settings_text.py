"""The settings in force as a settings file: what ``unifs config show`` prints.

Every setting is there with what it means; one that has its default stands as a comment, so that the
output is a file that can be edited and says the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from unifs import config
from unifs.config_mounts import RemoteBase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.config import Settings


def as_toml(settings: Settings) -> str:
    """All settings as TOML, with comments."""
    lines = [f"# {settings.config_file or 'no settings file: everything has its default'}", ""]
    tables: list[tuple[str, Any]] = []
    defaults = config.FileSettings()
    for name, sentence, value in _fields(settings, config.FileSettings):
        if name == "mounts":
            tables += [(f"mounts.{_key(key)}", each) for key, each in value.items()]
        elif isinstance(value, msgspec.Struct):
            tables.append((name, value))
        else:
            lines += _setting(name, sentence, value, getattr(defaults, name))
    for name, table in tables:
        lines += ["", f"[{name}]"]
        default = type(table)()
        if isinstance(table, RemoteBase):
            lines.append(f"kind = {_toml(type(table).__struct_config__.tag)}")
        for key, sentence, value in _fields(table, type(table)):
            lines += _setting(key, sentence, value, getattr(default, key))
    return "\n".join(lines) + "\n"


def _fields(struct: msgspec.Struct, kind: type[msgspec.Struct]) -> Iterator[tuple[str, str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    for name in kind.__struct_fields__:
        yield name, _sentence(hints[name]), getattr(struct, name)


def _sentence(hint: Any) -> str:
    if get_origin(hint) is not Annotated:
        return ""
    metas = [each for each in get_args(hint) if isinstance(each, msgspec.Meta)]
    return next((each.description for each in metas if each.description), "")


def _setting(name: str, sentence: str, value: Any, default: Any) -> list[str]:
    mark = "# " if value == default else ""
    return [f"# {sentence}", f"{mark}{name} = {_toml(value)}"]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        inner = ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (int, float)):
        return repr(value)
    return msgspec.json.encode(value).decode()
