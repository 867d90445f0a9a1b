"""Every sentence of docs/promises.md names a test, and the test exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/promises.md").read_text()
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+(?:::\w+)*)`")


def promises() -> list[str]:
    """The bullets of the document, each as one line."""
    joined = re.sub(r"\n +", " ", TEXT)
    return [line[2:] for line in joined.splitlines() if line.startswith("- ")]


def names_in(nodes: list[ast.stmt], inside: str = "") -> set[str]:
    """The functions, classes and assigned names of a module, nested ones as ``Class::name``."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(inside + node.name)
        if isinstance(node, ast.ClassDef):
            found |= names_in(node.body, f"{inside}{node.name}::")
        if isinstance(node, ast.Assign):
            found |= {inside + name.id for name in node.targets if isinstance(name, ast.Name)}
    return found


def test_there_are_promises() -> None:
    assert promises()


@pytest.mark.parametrize("promise", promises(), ids=lambda text: text[:50])
def test_promise_is_proved(promise: str) -> None:
    references = REFERENCE.findall(promise)
    assert references, "this promise names no test"
    for file, name in references:
        assert (ROOT / file).is_file(), f"no file {file}"
        assert name in names_in(ast.parse((ROOT / file).read_text()).body), f"no {name} in {file}"
