"""The walls of the house: who may import whom, read from the sources, and what an import may load, seen in a process.

The table is that of ARCHITECTURE.md. A new module gets its place in ROOMS, or the first test below fails.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import omega_edge

PROJECT = Path(__file__).resolve().parent.parent

ROOMS = {
    "protocol": "errors validation terms patterns protocol randomised sync_identity sync_address",
    "wire": "frame columns halfbytes paging wire wire_*",
    "kernels": "_simd _simd._kernels",
    "quantiser": "quantiser",
    "codes": "codes",
    "signing": "signing",
    "catalog": "bundle bundle_delta catalog_checks catalog manifest",
    "datasets": "datasets",
    "inference": "tokenizer inference",
    "vectors": (
        "vector_ids vector_halffloats vector_rows vector_calibration vector_file vector_saving vector_arguments vectors "
        "compression"
    ),
    "memory": (
        "journal salvage store changes entries episodes skills reasoning viewers sharing_state keeper forgetting "
        "exporting importing memory tier_policy tiered_vectors codebook_record "
        "centroids skill_records vector_report"
    ),
    "ranking": "cohorts ranking sequence left_out second_stage ranker policy reasons",
    "brain": (
        "config exploration onboarding home_states maintenance knowledge profile_view sharing sharing_identity sharing_log sharing_patterns "
        "collective recommender title_vectors brain"
    ),
    "sync": "sync sync_* updates",
    "doors": "configuration cli cli_* demo demo_* doctor __main__",
    "public names": "",
}
"""Modules of omega_edge by room, * standing for any ending unless a room names the module in full; the package itself is
the room of the public names."""

MAY_IMPORT = {
    "protocol": "",
    "wire": "protocol",
    "kernels": "",
    "quantiser": "protocol",
    "codes": "protocol quantiser catalog",
    "signing": "protocol",
    "catalog": "protocol wire quantiser",
    "datasets": "protocol",
    "inference": "protocol",
    "vectors": "protocol kernels quantiser",
    "memory": "protocol quantiser vectors",
    "ranking": "protocol catalog kernels",
    "brain": "protocol kernels quantiser codes catalog inference vectors memory ranking",
    "sync": "protocol wire signing catalog",
    "doors": "protocol kernels catalog datasets inference memory brain signing sync public_names",
    "public names": "protocol catalog inference vectors memory brain sync",
    "cloud": "protocol wire kernels quantiser codes signing catalog datasets ranking",
}
"""Rooms that a room may import, besides itself."""

THIRD_PARTY = {
    "protocol": "",
    "wire": "cbor2 zstandard",
    "kernels": "numpy",
    "quantiser": "numpy",
    "codes": "numpy",
    "signing": "nacl cbor2",
    "catalog": "numpy zstandard",
    "datasets": "numpy",
    "inference": "numpy onnxruntime",
    "vectors": "numpy",
    "memory": "numpy lmdb cbor2",
    "ranking": "numpy",
    "brain": "numpy",
    "sync": "aiohttp cbor2",
    "doors": "numpy",
    "public names": "",
    "cloud": "numpy jax lightgbm scipy aiohttp uvloop lmdb cbor2 zstandard usearch nacl prometheus_client",
}
"""Packages of others that a room may import."""

OURS = ("omega_edge", "cloud", "toolchain", "bench", "tests")


def module_name(path: Path) -> str:
    """The dotted name of a source file: omega_edge._simd for its __init__.py."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: str) -> list[Path]:
    return sorted((PROJECT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a source file imports anywhere in it: `from package import name` counts as package.name
    where that is a module.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno}: expected absolute imports, got a relative one"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if is_module(inner) else node.module


def is_module(name: str) -> bool:
    path = PROJECT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.with_suffix(".pyx").exists() or (path / "__init__.py").exists()


def room_of(module: str) -> str:
    """The room of one of our modules, by its dotted name."""
    package, _, inner = module.partition(".")
    if package != "omega_edge":
        return package
    rooms = [room for room, modules in ROOMS.items() if inner in modules.split()] or [
        room for room, modules in ROOMS.items() if any(fnmatchcase(inner, name) for name in modules.split())
    ]
    assert len(rooms) == 1 or not inner, f"{module}: expected one room for it in ROOMS, found {rooms}"
    return rooms[0] if inner else "public names"


PRODUCT = [(path, module_name(path)) for package in ("omega_edge", "cloud") for path in sources(package)]
IDS = [module for _, module in PRODUCT]


def test_every_module_has_its_room():
    assert {room_of(module_name(path)) for path in sources("omega_edge")} == ROOMS.keys()
    assert ROOMS.keys() | {"cloud"} == MAY_IMPORT.keys() == THIRD_PARTY.keys()


def test_the_table_has_no_circle():
    graph = {room: set(allowed.replace("public_names", "").split()) for room, allowed in MAY_IMPORT.items()}
    assert set(TopologicalSorter(graph).static_order()) == MAY_IMPORT.keys()


@pytest.mark.parametrize(("path", "module"), PRODUCT, ids=IDS)
def test_imports_of_our_own_stay_inside_the_table(path, module):
    room = room_of(module)
    allowed = {room, *(name.replace("_", " ") for name in MAY_IMPORT[room].split())}
    for imported in imports(path):
        if imported.split(".")[0] in OURS:
            assert room_of(imported) in allowed, f"{module} ({room}) imports {imported} ({room_of(imported)})"


@pytest.mark.parametrize(("path", "module"), PRODUCT, ids=IDS)
def test_imports_of_others_stay_inside_the_table(path, module):
    allowed = THIRD_PARTY[room_of(module)].split()
    for imported in imports(path):
        package = imported.split(".")[0]
        assert package in OURS or package in sys.stdlib_module_names or package in allowed, f"{module}: {imported}"


@pytest.mark.parametrize(("path", "module"), PRODUCT, ids=IDS)
def test_modules_do_not_import_each_other_in_circles_at_load(path, module):
    loaded, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        file = PROJECT.joinpath(*current.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        found = set(imports_at_load(file)) if file.exists() and current != "omega_edge" else set()
        assert module not in found, f"{module} is imported by {current}, which it loads"
        waiting += found - loaded
        loaded |= found


def imports_at_load(path: Path) -> Iterator[str]:
    """Our modules that are imported as soon as this one is: those outside functions and TYPE_CHECKING."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.split(".")[0] in OURS and is_module(name) and name != "omega_edge")


@pytest.mark.parametrize("package", ["omega_edge", "cloud"])
def test_nothing_of_the_product_imports_tools_or_tests(package):
    for path in sources(package):
        assert not [name for name in imports(path) if name.split(".")[0] in ("toolchain", "bench", "tests")], path


def test_the_toolchain_does_not_import_measurements_or_tests():
    assert not [name for path in sources("toolchain") for name in imports(path) if name.split(".")[0] in ("bench", "tests")]


def loaded_after(statement: str) -> set[str]:
    """The modules that a fresh process has loaded after a statement."""
    script = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


TRAINING = {"jax", "jaxlib", "lightgbm", "scipy", "implicit"}
SYNCING = {"aiohttp", "nacl", "ssl"}
HEAVY = {"numpy", "lmdb", "cbor2", "zstandard", "onnxruntime", "asyncio", "ssl", "importlib.metadata"} | TRAINING


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import omega_edge", HEAVY | {"omega_edge.protocol", "omega_edge.errors", "dataclasses"}),
        ("import omega_edge.protocol", HEAVY | {"omega_edge.wire", "omega_edge.brain"}),
        ("from omega_edge import ViewingEvent, ProtocolError, Profile", HEAVY),
        ("import omega_edge.wire", HEAVY - {"cbor2", "zstandard"} | {"omega_edge.catalog"}),
        ("import omega_edge.cli", HEAVY | {"omega_edge.brain"}),
        ("import omega_edge.inference", TRAINING | {"onnxruntime", "onnx", "omega_edge.memory", "omega_edge.brain"}),
        (
            "import omega_edge.brain",
            TRAINING | SYNCING | {"onnxruntime", "onnx", "omega_edge.wire", "zstandard", "omega_edge.datasets"},
        ),
        ("import omega_edge.cli_verbs", TRAINING | SYNCING | {"onnxruntime"}),
        (
            "import cloud.model",
            {"onnxruntime", "lmdb", "omega_edge.brain", "omega_edge.memory", "omega_edge.store", "omega_edge.inference"},
        ),
        (
            "import cloud.app, cloud.server",
            TRAINING | {"onnxruntime", "usearch", "omega_edge.brain", "omega_edge.memory", "omega_edge.store"},
        ),
    ],
)
def test_what_an_import_loads(statement, forbidden):
    assert loaded_after(statement) & forbidden == set()


class TestPublicNames:
    @pytest.mark.parametrize("name", omega_edge.__all__)
    def test_every_name_is_there(self, name):
        value = getattr(omega_edge, name)
        assert name == "__version__" or value.__name__ == name
        assert name in dir(omega_edge)

    def test_type_checkers_see_the_same_names(self):
        tree = ast.parse((PROJECT / "omega_edge" / "__init__.py").read_text(encoding="utf-8"))
        checked = next(node for node in tree.body if isinstance(node, ast.If))
        names = {alias.name for node in checked.body for alias in node.names}
        assert names | {"__version__"} == set(omega_edge.__all__)

    def test_every_error_is_public(self):
        from omega_edge import errors

        assert {name for name in vars(errors) if isinstance(getattr(errors, name), type)} <= set(omega_edge.__all__)

    def test_other_names_are_attribute_errors(self):
        with pytest.raises(AttributeError, match="module 'omega_edge' has no attribute 'Brain'"):
            omega_edge.Brain  # noqa: B018
        with pytest.raises(ImportError, match="cannot import name 'Nobody'"):
            from omega_edge import Nobody  # noqa: F401

    def test_the_version_is_that_of_the_package(self):
        import tomllib

        project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["version"] == omega_edge.__version__
