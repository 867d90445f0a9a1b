"""The operations as tools for an agent: descriptions with JSON schemas, and a call by name.

An agent's front end calls it with the registry and the daemon; the server shows the descriptions at
``/tools.json``. Answers are JSON, bounded: an agent's context is small.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from unifs.control import wire
from unifs.control.registry import Download
from unifs.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msgspec import Struct

    from unifs.control.registry import Operation, Registry

EVENTS_MAX: Final = 1000
BYTES_MAX: Final = 256 * 1024


def descriptions(registry: Registry) -> list[dict[str, Any]]:
    """One tool per operation that needs no upload and no secret."""
    return [_description(each) for each in registry if not (each.takes_upload or each.has_secret)]


def tool_name(operation: Operation) -> str:
    """What agents call an operation: letters, digits, ``_`` and ``-`` only."""
    return operation.name.replace(".", "_")


def _description(operation: Operation) -> dict[str, Any]:
    schema = msgspec.json.schema(operation.request_type)
    definitions = schema.get("$defs", {})
    body = definitions.pop(operation.request_type.__name__)
    if definitions:
        body["$defs"] = definitions
    text = f"{operation.summary}\n\n{operation.description}".strip()
    return {
        "name": tool_name(operation),
        "description": text,
        "input_schema": body,
        "mutates": operation.mutates,
    }


async def call(
    registry: Registry, daemon: object, name: str, arguments: Mapping[str, object]
) -> dict[str, Any]:
    """What the tool answers, as a JSON object. Raises ``unifs.errors``.

    Events come as a list of at most ``EVENTS_MAX``, bytes as text or base64 of at most
    ``BYTES_MAX``; ``is_truncated`` tells that there was more.
    """
    known = (each for each in registry if tool_name(each) == name)
    operation = next(known, None) or registry.get(name)
    if operation.takes_upload:
        raise Unsupported(f"{operation.name} needs bytes from its caller and is no tool")
    if operation.has_secret:
        raise Unsupported(f"{operation.name} takes a secret and is no tool")
    checked = operation.check(arguments)
    if operation.kind == "events":
        return await _events(operation, daemon, checked)
    result = await operation.call(daemon, checked)
    return await _bytes(result) if isinstance(result, Download) else wire.success(result)


class _EnoughError(Exception):
    """The list is full."""


async def _events(
    operation: Operation, daemon: object, arguments: Mapping[str, object]
) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    async def emit(event: Struct, /) -> None:
        if len(found) == EVENTS_MAX:
            raise _EnoughError
        found.append(wire.plain(event))
        await trio.lowlevel.checkpoint()

    try:
        await operation.call(daemon, arguments, None, emit)
    except* _EnoughError:
        is_truncated = True
    else:
        is_truncated = False
    return {"status": "success", "events": found, "is_truncated": is_truncated}


async def _bytes(download: Download) -> dict[str, Any]:
    data = bytearray()
    chunks: Any = download.chunks
    try:
        async for chunk in chunks:
            data += chunk
            if len(data) > BYTES_MAX:
                break
    finally:
        await chunks.aclose()
    answer: dict[str, Any] = {"status": "success", "is_truncated": len(data) > BYTES_MAX}
    kept = bytes(data[:BYTES_MAX])
    try:
        return answer | {"text": kept.decode()}
    except UnicodeDecodeError:
        return answer | {"base64": base64.b64encode(kept).decode()}
