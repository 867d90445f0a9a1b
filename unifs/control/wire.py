"""How answers, events, errors and names look in JSON, the same for both ends of the socket.

Server and client call it. An answer is ``{"status":"success", …}``; an error is
``{"status":"error","error":…,"error_code":…,"context":…,"hint":…}``; a stream is one object a line,
whose last line has the status.

A name that is not UTF-8 (a ``str`` with surrogates inside unifs) is percent-encoded, all of it, and
the object that holds it says ``"name_encoding": "percent"`` of all its strings.
"""

from __future__ import annotations

from typing import Any, Final, cast
from urllib.parse import quote, unquote_to_bytes

import msgspec

from unifs.errorcodes import error_classes
from unifs.errors import UnifsError

NAME_ENCODING: Final = "name_encoding"
PERCENT: Final = "percent"

#: The trailer that says why a stream of bytes ends early.
ERROR_TRAILER: Final = "unifs-error"
#: How many bytes a stream will have, where that is known.
SIZE: Final = "unifs-size"


def success(result: Any) -> dict[str, Any]:
    """The JSON object of one answer."""
    return {"status": "success"} | plain(result)


def failure(error: UnifsError) -> dict[str, Any]:
    """The JSON object of an error."""
    table = {
        "status": "error",
        "error": str(error),
        "error_code": error.code,
        "context": {key: _plain_context(value) for key, value in error.context.items()},
        "hint": error.hint,
    }
    encoded: dict[str, Any] = _encode_names(table)
    return encoded


def _plain_context(value: object) -> object:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def plain(result: Any) -> dict[str, Any]:
    """A struct as builtins, names encoded."""
    table: dict[str, Any] = msgspec.to_builtins(result)
    try:
        msgspec.json.encode(table)
    except UnicodeEncodeError:
        return cast("dict[str, Any]", _encode_names(table))
    return table


def event_line(event: Any) -> bytes:
    """A struct as one line of ndjson: at C speed unless it has a strange name."""
    try:
        return msgspec.json.encode(event) + b"\n"
    except UnicodeEncodeError:
        return line(plain(event))


def line(table: dict[str, Any]) -> bytes:
    """One line of ndjson."""
    return msgspec.json.encode(table) + b"\n"


def _encode_names(value: Any) -> Any:
    """Percent-encode the strings of each object in which one needs it."""
    if isinstance(value, list):
        return [_encode_names(each) for each in value]
    if not isinstance(value, dict):
        return value
    if not any(_has_surrogates(each) for each in _strings(value)):
        return {key: _encode_names(each) for key, each in value.items()}
    return {_percent(key): _map_strings(each, _percent) for key, each in value.items()} | {
        NAME_ENCODING: PERCENT
    }


def decode_names(value: Any) -> Any:
    """The opposite: objects that say ``name_encoding`` get their strings back, with surrogates."""
    if isinstance(value, list):
        return [decode_names(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.get(NAME_ENCODING) != PERCENT:
        return {key: decode_names(each) for key, each in value.items()}
    return {
        _unpercent(key): _map_strings(each, _unpercent)
        for key, each in value.items()
        if key != NAME_ENCODING
    }


def encode_request(table: dict[str, Any]) -> dict[str, Any]:
    """A request's parameters, names encoded where they need it."""
    encoded: dict[str, Any] = _encode_names(table)
    return encoded


def _strings(value: dict[str, Any]) -> list[str]:
    found = [key for key in value if isinstance(key, str)]
    for each in value.values():
        if isinstance(each, str):
            found.append(each)
        elif isinstance(each, list):
            found.extend(item for item in each if isinstance(item, str))
    return found


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(each, change) for each in value]
    if isinstance(value, dict):
        return {change(key): _map_strings(each, change) for key, each in value.items()}
    return value


def _percent(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe="/ ")


def _unpercent(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


def raise_failure(table: dict[str, Any]) -> None:
    """Raise the error that ``failure`` described; does nothing with a success."""
    if table.get("status") != "error":
        return
    cls = error_classes().get(str(table.get("error_code")), UnifsError)
    context = table.get("context")
    error = cls(str(table.get("error", "")))
    error.context = dict(context) if isinstance(context, dict) else {}
    raise error
