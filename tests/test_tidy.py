"""Rules of the house that a program can check: sizes, names, words, exceptions, prints, docstrings, documents."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
LONG_FUNCTIONS: dict[str, int] = {}
"""Functions that may be longer, as "file:name", with the length that each may have and a reason beside it."""

SOURCES = sorted(
    path
    for folder in ("omega_edge", "cloud", "toolchain", "bench", "tests", "cross")
    for path in (PROJECT / folder).rglob("*")
    if path.suffix in {".py", ".pyi", ".pyx", ".pxd", ".c", ".h", ".cddl", ".cmake", ".sh", ".md"} and path.name != "_kernels.c"
)
PYTHON = [path for path in SOURCES if path.suffix == ".py"]
PRODUCT = [path for path in PYTHON if path.relative_to(PROJECT).parts[0] in ("omega_edge", "cloud", "toolchain", "bench")]
SCRIPTS = [PROJECT / name for name in ("run", "check", ".ci/run", "setup.py", "pyproject.toml")]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")

BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
# Spelt in two parts, so that this file does not contain them.
BANNED_WORDS = [left + right for left, right in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("HA", "CK"))]
BANNED_PATHS = [left + right for left, right in (("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/Us", "ers/"))]
MAY_PRINT = re.compile(r"omega_edge/(cli|demo|doctor)\w*\.py|cloud/(__main__|\w+_command)\.py|(toolchain|bench)/.*")


def shown(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """All functions and methods with their dotted names."""
    for node in ast.iter_child_nodes(tree):
        inner = f"{name}.{node.name}".lstrip(".") if hasattr(node, "name") and node.name else name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner, node
        yield from functions(node, inner)


def test_the_tree_is_found():
    assert len(PRODUCT) > 20 and PROJECT / "omega_edge" / "protocol.py" in PRODUCT


@pytest.mark.parametrize("path", [path for path in SOURCES if path.suffix != ".md"], ids=shown)
def test_file_length(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{shown(path)}: split it by what its parts do"


@pytest.mark.parametrize("path", PYTHON, ids=shown)
def test_function_length(path):
    for name, node in functions(tree_of(path)):
        allowed = LONG_FUNCTIONS.get(f"{shown(path)}:{name}", MAX_FUNCTION_LINES)
        length = node.end_lineno - node.lineno + 1
        assert length <= allowed, f"{shown(path)}:{node.lineno}: {name} has {length} lines"


def test_the_list_of_long_functions_is_up_to_date():
    lengths = {
        f"{shown(path)}:{name}": node.end_lineno - node.lineno + 1 for path in PYTHON for name, node in functions(tree_of(path))
    }
    assert {name for name in LONG_FUNCTIONS if lengths.get(name, 0) <= MAX_FUNCTION_LINES} == set()


def test_file_names_say_what_is_inside():
    assert [shown(path) for path in SOURCES if path.stem.lower() in BANNED_NAMES] == []


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS, *(PROJECT / name for name in DOCUMENTS)], ids=shown)
def test_words_and_paths(path):
    text = path.read_text(encoding="utf-8")
    words = re.findall(rf"\b(?:{'|'.join(BANNED_WORDS)})\b", text)
    paths = [banned for banned in BANNED_PATHS if re.search(rf"(?<![\w.]){re.escape(banned)}", text)]
    assert words + paths == []


@pytest.mark.parametrize("path", PYTHON, ids=shown)
def test_exceptions_are_caught_by_name(path):
    """A broad except may only clean up: it ends with a bare raise."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {name.id if isinstance(name, ast.Name) else "" for name in caught if name is not None}
            broad = node.type is None or names & {"Exception", "BaseException"}
            passed_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            assert passed_on or not broad, f"{shown(path)}:{node.lineno}: expected exceptions by name, got a broad except"


@pytest.mark.parametrize("path", PRODUCT, ids=shown)
def test_nothing_is_left_unbuilt(path):
    names = [(node.lineno, node.id) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)]
    assert [line for line, name in names if name == "NotImplementedError"] == []


@pytest.mark.parametrize("path", [path for path in PRODUCT if not MAY_PRINT.fullmatch(shown(path))], ids=shown)
def test_only_doors_print(path):
    printed = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printed == []


@pytest.mark.parametrize("path", [path for path in PRODUCT if not path.name.startswith("test_")], ids=shown)
def test_public_names_have_docstrings(path):
    tree = tree_of(path)
    empty = not tree.body
    missing = [] if empty or ast.get_docstring(tree) else ["the module"]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for owner in (tree, *classes):
        for node in owner.body:
            public = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_"
            if public and not ast.get_docstring(node):
                missing.append(f"{getattr(owner, 'name', '')}.{node.name}".lstrip("."))
    assert missing == []


@pytest.mark.parametrize("path", [path for path in PYTHON if path.parent.name == "tests"], ids=shown)
def test_tests_run_the_real_parts(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not [name for name in names if name.split(".")[-1] == "mock"], f"{shown(path)}:{node.lineno}"


def test_four_documents():
    assert sorted(path.name for path in PROJECT.glob("*.md")) == sorted(DOCUMENTS)
