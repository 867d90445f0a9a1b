"""The rules of style that a linter does not know, checked over every file of the repository."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LINES_MAX = 400
#: A test file mirrors one module, and says more about it than the module says itself.
TEST_LINES_MAX = 600
FUNCTION_LINES_MAX = 50
PARAMETERS_MAX = 5

#: How the docstring of a file that must be longer begins to say why.
OVERLONG = "Longer than most because"

#: Operations of a file system take what the system call takes; that is not ours to bundle.
SYSTEM_CALLS = {"mknod", "create", "rename"}

#: The parameters of a declared operation are the options of its command.
OPERATIONS = "unifs/control/ops/"

#: Other functions with more parameters than PARAMETERS_MAX, and why they need them.
MANY_PARAMETERS = {
    "unifs/answers/journal.py:JournalAnswer.__init__": "the parts that the daemon wires together",
    "unifs/ipfs/embedded/node.py:EmbeddedNode.__init__": "the parts that the daemon wires together",
    "unifs/vfs/host.py:HostVolume.__init__": "the parts that the daemon wires together",
    "unifs/vfs/mfsvolume.py:MfsVolume._link": "the arguments of link(), looked up once",
}


def tracked(*patterns: str) -> list[str]:
    """The repository's files that match, as git knows them (new ones too, ignored ones not)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(
        name for name in set(listed.stdout.split("\0")) if name and (ROOT / name).exists()
    )


MODULES = tracked("unifs/*.py", "unifs/**/*.py")
PYTHON = tracked("*.py", "**/*.py")
TEXTS = [name for name in tracked("*") if not name.startswith("LICENSE")]


def text_of(name: str) -> str | None:
    """A file's text, None where it is not text."""
    try:
        return (ROOT / name).read_text()
    except UnicodeDecodeError:
        return None


def lines_with(pattern: str, names: list[str]) -> list[str]:
    """``file:line: text`` of each line in which the pattern occurs."""
    return [
        f"{name}:{number}: {line.strip()}"
        for name in names
        for number, line in enumerate((text_of(name) or "").splitlines(), 1)
        if re.search(pattern, line)
    ]


def functions(name: str) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a module with its qualified name."""
    found: list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]] = []

    def visit(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((f"{name}:{inside}{child.name}", child))
                visit(child, f"{inside}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                visit(child, f"{inside}{child.name}.")
            else:
                visit(child, inside)

    visit(ast.parse((ROOT / name).read_text()), "")
    return found


def parameter_count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([a for a in named if a not in ("self", "cls")])


def line_count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 10
    assert "README.md" in TEXTS


@pytest.mark.parametrize("name", PYTHON)
def test_file_has_one_job(name: str) -> None:
    text = (ROOT / name).read_text()
    lines = len(text.splitlines())
    docstring = ast.get_docstring(ast.parse(text)) or ""
    limit = TEST_LINES_MAX if name.startswith("tests/") else LINES_MAX
    assert lines <= limit or OVERLONG in docstring, (
        f"{name} has {lines} lines; split it by what it owns, or say at its top why it must be one"
    )


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / name).read_text())), f"{name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_short(name: str) -> None:
    long = [
        f"{where} has {lines} lines"
        for where, function in functions(name)
        if (lines := line_count(function)) > FUNCTION_LINES_MAX
    ]
    assert not long, long


def test_functions_have_few_parameters() -> None:
    many = {
        where
        for name in MODULES
        for where, function in functions(name)
        if parameter_count(function) > PARAMETERS_MAX
        and function.name not in SYSTEM_CALLS
        and not name.startswith(OPERATIONS)
    }
    assert sorted(many - set(MANY_PARAMETERS)) == [], "take a value type, or give the reason above"


def test_nothing_is_left_to_do() -> None:
    # The words are put together here, so that this file does not contain them.
    words = "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"])
    assert not lines_with(rf"\b({words})\b", PYTHON)


def test_no_path_of_a_builder_machine() -> None:
    paths = r"(?<![\w.$}~])/(" + "|".join(["work", "root", "opt", "Users"]) + r")/[\w.-]"
    assert not lines_with(paths, TEXTS)


def test_no_registry_host() -> None:
    hosts = "|".join(
        [r"pypi\." + "org", "python" + "hosted", r"crates\." + "io", r"npmjs\." + "com"]
    )
    assert not lines_with(hosts, TEXTS)


def test_locks_name_no_place() -> None:
    locks = tracked("*.lock")
    assert len(locks) == 4
    assert not lines_with(r"://|^--|^/| @ ", locks)


def test_only_config_reads_the_environment() -> None:
    others = [name for name in MODULES if name != "unifs/config.py"]
    assert not lines_with(r"\bos\.(environb?|getenvb?)\b", others)


def test_errors_are_not_caught_in_silence() -> None:
    silent = [
        f"{name}:{node.lineno}"
        for name in MODULES
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))
        and all(isinstance(statement, ast.Pass) for statement in node.body)
    ]
    assert not silent, silent


def test_broad_handlers_raise_again_or_say_why_not() -> None:
    """Catching everything is for cleaning up and for guards; a guard says whom it guards."""
    unexplained = []
    for name in MODULES:
        text = (ROOT / name).read_text()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[-1], ast.Raise):
                continue
            caught = "BaseException" if node.type is None else ast.unparse(node.type)
            between = text.splitlines()[node.lineno : node.body[0].lineno - 1]
            is_explained = any(line.strip().startswith("#") for line in between)
            if caught in ("Exception", "BaseException") and not is_explained:
                unexplained.append(f"{name}:{node.lineno}")
    assert not unexplained, "say beside it why everything is caught there"
