"""What is made from the registry: the OpenAPI document, the agent tools, the words on the wire."""

import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pytest

from tests.control import sample_operations
from tests.control.conftest import Served
from tests.control.world import World
from unifs import errors
from unifs.control import openapi, tools, wire
from unifs.control.ops import operations
from unifs.control.registry import Operation, Param, Registry, operation
from unifs.errorcodes import error_classes
from unifs.errors import InvalidArgument, UnknownOperation, Unsupported

METHODS = {"get", "post"}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "$ref":
                yield each
            else:
                yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def rules_broken(document: dict[str, Any]) -> list[str]:
    """An independent look at an OpenAPI 3.1 document: what a client generator trips over."""
    broken = []
    for reference in references(document):
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target.get(part) if isinstance(target, dict) else None
        if target is None:
            broken.append(f"{reference} leads nowhere")
    identifiers = []
    for path, item in document["paths"].items():
        if not path.startswith("/") or set(item) - METHODS:
            broken.append(f"{path}: path or method")
        for method, described in item.items():
            where = f"{method} {path}"
            identifiers.append(described.get("operationId"))
            if not str(described.get("summary", "")).endswith("."):
                broken.append(f"{where}: no summary")
            if not described.get("responses"):
                broken.append(f"{where}: no responses")
            for code, response in described.get("responses", {}).items():
                if not re.fullmatch(r"default|[1-5]\d\d", code) or "description" not in response:
                    broken.append(f"{where}: response {code}")
            parameters = described.get("parameters", [])
            if not all({"name", "in", "schema"} <= set(each) for each in parameters):
                broken.append(f"{where}: parameters")
    if len(set(identifiers)) != len(identifiers) or None in identifiers:
        broken.append("operationIds are missing or not unique")
    if not {"openapi", "info", "paths"} <= set(document) or document["openapi"][:3] != "3.1":
        broken.append("the head")
    return broken


def test_the_document_follows_the_rules_and_has_every_operation() -> None:
    registry = operations()
    document = msgspec.json.decode(msgspec.json.encode(openapi.document(registry)))
    assert rules_broken(document) == []
    for each in registry:
        described = document["paths"]["/api/v1/" + each.name.replace(".", "/")]["post"]
        assert described["summary"] == each.summary
        if each.takes_upload:
            given = {parameter["name"] for parameter in described["parameters"]}
        else:
            schema = described["requestBody"]["content"]["application/json"]["schema"]
            name = schema["$ref"].rpartition("/")[2]
            properties = document["components"]["schemas"][name]["properties"]
            assert all(value.get("description") for value in properties.values())
            given = set(properties)
        assert given == {parameter.name for parameter in each.parameters}


def test_the_check_sees_what_is_broken() -> None:
    document = openapi.document(operations())
    document["paths"]["/api/v1/version"]["post"]["operationId"] = "id"
    document["paths"]["/api/v1/cat"]["post"]["responses"] = {"2xx": {}}
    document["components"]["schemas"].pop("Error")
    found = "; ".join(rules_broken(document))
    assert "leads nowhere" in found
    assert "not unique" in found
    assert "response 2xx" in found


async def test_the_documents_are_served(sample: Served) -> None:
    def documents() -> tuple[Any, Any, Any]:
        found = []
        for path in ("/openapi.json", "/tools.json", "/health"):
            with sample.client.get(path) as reply:
                found.append(msgspec.json.decode(b"".join(reply.chunks())))
        return tuple(found)

    document, described, health = await sample.run(documents)
    assert rules_broken(document) == []
    assert {each["name"] for each in described} >= {"sample_echo", "sample_lines"}
    assert health == {"status": "success"}


def test_a_tool_is_described_by_its_parameters(registry: Registry) -> None:
    described = {each["name"]: each for each in tools.descriptions(registry)}
    assert "sample_send" not in described
    echo = described["sample_echo"]
    assert echo["description"] == "Say it again.\n\nFor a test."
    schema = echo["input_schema"]
    assert schema["required"] == ["text"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["number"]["minimum"] == 0
    assert schema["properties"]["color"]["enum"] == ["blue", "red"]
    assert described["sample_change"]["mutates"]


async def test_tools_are_called_by_name_and_bounded(registry: Registry) -> None:
    answer = await tools.call(registry, None, "sample_echo", {"text": "a"})
    assert (answer["status"], answer["text"]) == ("success", "a")
    answer = await tools.call(registry, None, "sample_lines", {"count": 3})
    assert (len(answer["events"]), answer["is_truncated"]) == (3, False)
    answer = await tools.call(registry, None, "sample_lines", {"count": 2000})
    assert (len(answer["events"]), answer["is_truncated"]) == (tools.EVENTS_MAX, True)
    answer = await tools.call(registry, None, "sample_fetch", {"size": 10})
    assert (answer["text"], answer["is_truncated"]) == ("\0" * 10, False)
    answer = await tools.call(registry, None, "sample_fetch", {"size": 10**9})
    assert (len(answer["text"]), answer["is_truncated"]) == (tools.BYTES_MAX, True)
    with pytest.raises(InvalidArgument, match="expected text"):
        await tools.call(registry, None, "sample_echo", {"text": 1})
    with pytest.raises(UnknownOperation):
        await tools.call(registry, None, "sample_nothing", {})
    with pytest.raises(Unsupported):
        await tools.call(registry, None, "sample_send", {})


async def test_every_real_operation_that_needs_nothing_is_a_tool(world: World) -> None:
    registry = operations()
    for each in registry:
        is_simple = not any(parameter.is_required for parameter in each.parameters)
        if is_simple and not each.takes_upload and not each.is_live:
            answer = await tools.call(registry, world, each.name.replace(".", "_"), {})
            assert answer["status"] == "success"


async def test_a_rollback_is_told_which_epoch_by_name(world: World) -> None:
    """The epoch is no second path: it stands behind a word of its own."""
    registry = operations()
    with pytest.raises(InvalidArgument, match="--to EPOCH"):
        await tools.call(registry, world, "rollback", {"path": "/mfs/a"})
    told = await tools.call(registry, world, "rollback", {"path": "/mfs/a", "to": "first"})
    assert (told["status"], told["before"], told["skipped"]) == ("success", 2, ["/cache"])
    assert world.history.asked == [("/mfs/a", "first")]


def test_errors_keep_their_class_and_context_across_the_wire() -> None:
    for code, cls in error_classes().items():
        error = cls("a sentence", path="/mfs/\udcff", count=3)
        table = msgspec.json.decode(msgspec.json.encode(wire.failure(error)))
        assert table["error_code"] == code
        with pytest.raises(cls, match="a sentence") as caught:
            wire.raise_failure(wire.decode_names(table))
        assert type(caught.value) is cls
        assert caught.value.context == {"path": "/mfs/\udcff", "count": 3}
    wire.raise_failure({"status": "success"})


def test_every_error_has_a_code_of_its_own_and_a_status() -> None:
    classes = [
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.UnifsError)
    ]
    assert len({cls.code for cls in classes}) == len(classes)
    for cls in classes:
        assert 400 <= cls.http_status < 600
        assert 1 <= cls.exit_code <= 9


@pytest.mark.parametrize(
    "table",
    [
        {"name": "plain"},
        {"name": "caf\udce9", "other": "50%"},
        {"rows": [{"name": "\udcff\udcfe"}, {"name": "fine"}], "names": ["a", "\udc80"]},
        {"outer": {"inner": {"name": "\udcff"}}, "number": 3, "nothing": None},
    ],
)
def test_names_survive_encoding(table: dict[str, Any]) -> None:
    encoded = msgspec.json.encode(wire.encode_request(table))
    assert wire.decode_names(msgspec.json.decode(encoded)) == table


def test_only_the_object_with_a_strange_name_is_encoded() -> None:
    encoded = wire.encode_request({"rows": [{"name": "50%"}, {"name": "\udcff%"}]})
    assert encoded == {"rows": [{"name": "50%"}, {"name": "%FF%25", "name_encoding": "percent"}]}


def test_a_declaration_that_surfaces_cannot_render_is_refused() -> None:
    @operation("bad.one")
    async def undescribed(daemon: object, path: str) -> sample_operations.Nothing:
        """Do it."""
        return sample_operations.Nothing()

    with pytest.raises(AssertionError, match="needs a Param"):
        Operation(undescribed, undescribed.declaration)  # type: ignore[attr-defined]

    with pytest.raises(AssertionError, match=r"bad\.two"):
        Registry([Operation(clashing, clashing.declaration)])  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="state"):
        Registry([Operation(reserved, reserved.declaration)])  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="first sentence"):
        Registry([Operation(silent, silent.declaration)])  # type: ignore[attr-defined]


class Clash(msgspec.Struct):
    """Has a field that every answer has already."""

    status: str


@operation("bad.two")
async def clashing(daemon: object) -> Clash:
    """Do it."""
    return Clash("")


@operation("bad.three")
async def reserved(
    daemon: object, state: Annotated[str, Param("the name of an option of all commands")]
) -> sample_operations.Nothing:
    """Do it."""
    return sample_operations.Nothing()


@operation("bad.four")
async def silent(daemon: object) -> sample_operations.Nothing:
    return sample_operations.Nothing()
