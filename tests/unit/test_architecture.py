# SPDX-License-Identifier: GPL-2.0-only
"""The house: which package may import which, and which one owns each outside library."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = {
    "base": 0,
    "ktap": 1,
    "kernel": 1,
    "remote": 1,
    "machine": 2,
    "results": 3,
    "plan": 4,
    "suites": 5,
    "lab": 6,
    "report": 6,
    "plugin": 7,
    "fleet": 7,
    "session": 8,
    "matrix": 9,
    "bisect": 9,
    "mutate": 10,
    "cli": 11,
    "__main__": 12,
}
"""A module imports from its own package and from packages with a lower number."""

OWNERS = {
    "subprocess": "base/process.py",
    "fcntl": "base/locks.py",
    "yaml": "base/yamlfile.py",
    "paramiko": "remote/",
    "sqlite3": "results/",
    "cattrs": "base/values.py",
    "pytest": "plugin/",
    "xdist": "plugin/",
    "distributed": "fleet/",
    "tree_sitter": "base/csource.py",
    "drgn": "machine/questions.py",
}
"""The one file or package that may import each of these."""


MOST_ROOMS = 18
MOST_ARROWS = 70


def _part(path: Path) -> str:
    relative = path.relative_to(ROOT / "harness")
    return relative.parts[0].removesuffix(".py")


def _modules() -> list[Path]:
    return [p for p in sorted((ROOT / "harness").rglob("*.py")) if _part(p) != "__init__"]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "harness")


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downhill(path: Path) -> None:
    """A module imports only its own package and lower layers."""
    part = _part(path)
    for name in _imports(path):
        words = name.split(".")
        if words[0] != "harness" or len(words) < 2 or words[1] == part or words[1].startswith("__"):
            continue
        assert _is_below(words[1], part), f"{path.name} imports {name}"


def _is_below(lower: str, upper: str) -> bool:
    return LAYERS[lower] < LAYERS[upper]


def test_the_house_is_small() -> None:
    """Rooms are packages and lone modules; an arrow is that one imports another, or guest/."""
    arrows = {
        (_part(path), words[1] if words[0] == "harness" else words[0])
        for path in _modules()
        for words in (name.split(".") for name in _imports(path))
        if words[0] == "guest" or (words[0] == "harness" and len(words) > 1 and words[1] in LAYERS)
    }
    rooms = {_part(path) for path in _modules()}
    assert rooms == set(LAYERS)
    assert len(rooms) <= MOST_ROOMS
    assert len({(room, other) for room, other in arrows if room != other}) <= MOST_ARROWS


def test_the_bottom_imports_nothing_above_it() -> None:
    assert not _is_below("cli", "base")
    assert _is_below("base", "ktap")


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_have_one_owner(path: Path) -> None:
    """Every library of OWNERS is imported by one part of the harness."""
    for name in _imports(path):
        owner = OWNERS.get(name.split(".")[0])
        place = path.relative_to(ROOT / "harness").as_posix()
        assert owner is None or place.startswith(owner), f"{place} imports {name}, which {owner} owns"


def test_lab_knows_neither_pytest_nor_a_database() -> None:
    """The engine takes only values from results/."""
    values = ("harness.results.model", "harness.results.codec")
    for path in (ROOT / "harness" / "lab").glob("*.py"):
        for name in _imports(path):
            assert name.split(".")[0] not in ("pytest", "xdist", "click"), f"{path.name} imports {name}"
            if name.startswith("harness.results"):
                assert name in values, f"{path.name} imports {name}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """No module imports itself by way of others, inside a package either."""
    names = {_module_name(path): path for path in (ROOT / "harness").rglob("*.py")}
    imports = {name: set(_imported(path, names)) - {name} for name, path in names.items()}
    # What imports nothing that is left is in no circle.
    while free := {name for name, found in imports.items() if not found & set(imports)}:
        imports = {name: found for name, found in imports.items() if name not in free}
    assert not {name: sorted(found & set(imports)) for name, found in imports.items()}


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported(path: Path, names: Collection[str]) -> Iterator[str]:
    """Yield those of the modules *names* that *path* imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module in names:
            found = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from found & set(names) or {node.module}


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_classes_and_functions_are_short(path: Path) -> None:
    """A module has at most 500 lines, a class 15 methods (or a reason for more), a function 60 lines."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(one, ast.FunctionDef) for one in node.body)
            assert methods <= 15 or "methods" in (ast.get_docstring(node) or ""), node.name
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize(
    "path", sorted((ROOT / "guest").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_guest_stands_alone(path: Path) -> None:
    """Nothing in guest/ imports the harness."""
    assert not [name for name in _imports(path) if name.split(".")[0] == "harness"]


def test_licence_lines() -> None:
    """Every source file says its licence in SPDX form near the top."""
    files = [
        *(ROOT / "harness").rglob("*.py"),
        *(ROOT / "harness").rglob("*.yaml"),
        *(ROOT / "guest").rglob("*.py"),
        *(ROOT / "guest").rglob("*.sh"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "kconfigs").iterdir(),
    ]
    bare = [
        str(path.relative_to(ROOT))
        for path in files
        if "SPDX-License-Identifier: GPL-2.0-only" not in path.read_text(encoding="utf-8")[:200]
    ]
    assert not bare
