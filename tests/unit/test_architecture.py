# SPDX-License-Identifier: GPL-2.0-only
"""The house: which package may import which, and which one owns each outside library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = {
    "errors": 0,
    "deadline": 0,
    "host": 0,
    "itself": 0,
    "paths": 0,
    "retries": 0,
    "words": 0,
    "locks": 1,
    "output": 1,
    "process": 1,
    "yamlfile": 1,
    "admission": 2,
    "kernel": 3,
    "machine": 3,
    "remote": 3,
    "ktap": 3,
    "results": 3,
    "plan": 3,
    "boot": 4,
    "builder": 4,
    "doctor": 4,
    "suites": 5,
    "report": 5,
    "bench": 6,
    "bisect": 6,
    "matrix": 6,
    "plugin": 6,
    "session": 7,
    "cli": 8,
    "__main__": 9,
}
"""A module imports from its own package and from lower layers; siblings of one layer stay apart, except at
the bottom."""

OWNERS = {"subprocess": "process", "paramiko": "remote", "yaml": "yamlfile", "sqlite3": "results"}


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
    return LAYERS[lower] < LAYERS[upper] or LAYERS[lower] == LAYERS[upper] == 0


def test_the_bottom_imports_nothing_above_it() -> None:
    assert not _is_below("cli", "errors")
    assert _is_below("errors", "paths")


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_have_one_owner(path: Path) -> None:
    """subprocess, paramiko, yaml and sqlite3 are each imported by one part of the harness."""
    for name in _imports(path):
        owner = OWNERS.get(name.split(".")[0])
        assert owner is None or owner == _part(path), f"{path.name} imports {name}, which {owner} owns"


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
