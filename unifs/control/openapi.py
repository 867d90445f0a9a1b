"""The OpenAPI document of the control plane, made from the registry.

The server shows it at ``/openapi.json``. It describes what stands in the registry and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

import unifs

if TYPE_CHECKING:
    from unifs.control.registry import Operation, Registry

_REF = "#/components/schemas/{name}"


def document(registry: Registry) -> dict[str, Any]:
    """The whole document, as OpenAPI 3.1."""
    operations = list(registry)
    requests = [each.request_type for each in operations]
    results = [struct for each in operations for struct in each.result_structs]
    types = [*requests, *results]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    request_schemas = dict(zip((each.name for each in operations), schemas, strict=False))
    result_schemas = dict(zip(results, schemas[len(requests) :], strict=True))
    paths = {
        "/api/v1/" + "/".join(each.words): {
            "post": _described(each, request_schemas[each.name], components, result_schemas)
        }
        for each in operations
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "unifs control", "version": unifs.__version__},
        "paths": paths | _documents(),
        "components": {"schemas": components | {"Error": _ERROR}},
    }


def _described(
    operation: Operation,
    request: dict[str, Any],
    components: dict[str, Any],
    results: dict[type[Any], dict[str, Any]],
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": operation.description or operation.summary,
        "tags": [operation.words[0]],
        "x-mutates": operation.mutates,
        "x-scope": operation.scope,
        "responses": {
            "200": {"description": "success", "content": _answer(operation, results)},
            "default": {
                "description": "an error; its code and status are those of unifs/errors.py",
                "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
            },
        },
    }
    if operation.takes_upload:
        described["parameters"] = _query_parameters(request, components)
        binary = {"schema": {"type": "string", "format": "binary"}}
        described["requestBody"] = {"content": {"application/octet-stream": binary}}
    else:
        described["requestBody"] = {
            "required": any(each.is_required for each in operation.parameters),
            "content": {"application/json": {"schema": request}},
        }
    return described


def _query_parameters(request: dict[str, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    schema = components[request["$ref"].rpartition("/")[2]]
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "description": value.get("description", ""),
            "schema": value,
        }
        for name, value in schema["properties"].items()
    ]


def _answer(operation: Operation, results: dict[type[Any], dict[str, Any]]) -> dict[str, Any]:
    if operation.kind == "bytes":
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    schemas = [results[struct] for struct in operation.result_structs]
    one = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if operation.kind == "events":
        ended = {"type": "object", "properties": {"status": {"type": "string"}}}
        line = {"anyOf": [*schemas, ended, {"$ref": _REF.format(name="Error")}]}
        return {"application/x-ndjson": {"schema": line}}
    status = {"type": "object", "properties": {"status": {"const": "success"}}}
    return {"application/json": {"schema": {"allOf": [status, one]}}}


def _documents() -> dict[str, Any]:
    texts = {
        "/health": ("Whether the daemon answers.", "application/json"),
        "/metrics": ("Counters and histograms for Prometheus.", "text/plain"),
        "/openapi.json": ("This document.", "application/json"),
        "/tools.json": ("The operations as tools for an agent.", "application/json"),
    }
    return {
        path: {
            "get": {
                "operationId": path.strip("/").partition(".")[0],
                "summary": summary,
                "responses": {"200": {"description": summary, "content": {content_type: {}}}},
            }
        }
        for path, (summary, content_type) in texts.items()
    }


_ERROR = {
    "type": "object",
    "required": ["status", "error", "error_code", "context", "hint"],
    "properties": {
        "status": {"const": "error"},
        "error": {"type": "string", "description": "one sentence for a person"},
        "error_code": {"type": "string", "description": "stable; see the list of codes"},
        "context": {"type": "object", "description": "what the sentence is about"},
        "hint": {"type": "string", "description": "what may help"},
    },
}
