"""Planted faults stay plantable, and their tests exist; ``scripts/campaign mutations`` runs all."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.campaigns.mutations import MUTATIONS, ROOT, Mutation, is_caught, planted

if TYPE_CHECKING:
    from pathlib import Path

#: Each runs in two seconds.
CHEAP = ("recover without asking for the boot", "go on after the WAL's sync failed")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_it_can_be_planted_and_its_tests_exist(mutation: Mutation) -> None:
    compile(planted(mutation), mutation.path, "exec")
    for test in mutation.tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        functions = {held.name for held in tree.body if isinstance(held, ast.AsyncFunctionDef)}
        assert name in functions if name else functions


@pytest.mark.parametrize("name", CHEAP)
def test_a_cheap_one_is_caught(tmp_path: Path, name: str) -> None:
    (mutation,) = [held for held in MUTATIONS if held.name == name]
    assert is_caught(mutation, tmp_path)


def test_a_fault_whose_text_is_gone_is_told() -> None:
    with pytest.raises(ValueError, match="0 times"):
        planted(Mutation("none", "unifs/errors.py", "this stands nowhere", "", ()))
