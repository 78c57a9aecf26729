# SPDX-License-Identifier: GPL-2.0-only
"""Values as JSON files: what is saved is loaded again, and what is wrong is named with file and key."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.base import values
from harness.base.errors import UsageError


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    count: int = 1
    path: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    parts: tuple[Part, ...]
    colour: Colour
    ratio: float | None = None
    sizes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    flag: bool = False


WHOLE = Whole(
    parts=(Part(name="a"), Part(name="b", count=2, path=Path("/tmp/b"))),
    colour=Colour.BLUE,
    ratio=1.5,
    sizes={"x": 2.0},
    flag=True,
)


def _load(path: Path) -> Whole:
    return values.load(path, Whole, version=3, hint="make one")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Nested tuples, enums, paths, optional values and mappings survive; nothing else is left behind."""
    path = tmp_path / "whole.json"
    values.save(path, WHOLE, version=3)
    assert _load(path) == WHOLE
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text())["format"] == 3


def _edited(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "whole.json"
    values.save(path, WHOLE, version=3)
    plain = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in plain.items() if value != "gone"}))
    return path


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 2}, "format 2, expected 3"),
        ({"format": "gone"}, "format None, expected 3"),
        ({"colour": "gone"}, "colour: missing"),
        ({"colour": "green"}, "colour: 'green' is not a valid Colour"),
        ({"hue": 1}, "unknown key 'hue'"),
        ({"flag": 1}, "flag: expected bool, got 1"),
        ({"ratio": "1"}, "ratio: expected float, got '1'"),
        ({"parts": [{"name": "a", "size": 1}]}, "parts[0]: unknown key 'size'"),
        ({"parts": [{"name": 5}]}, "parts[0].name: expected str, got 5"),
        ({"parts": [{"name": "a", "count": True}]}, "parts[0].count: expected int, got True"),
        ({"parts": 7}, "parts: not a "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    """One sentence with the file, the key and what is wrong there."""
    path = _edited(tmp_path, **changes)
    with pytest.raises(UsageError) as told:
        _load(path)
    assert told.value.message.startswith(f"{path}: {problem}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and one that is not JSON are refused with the caller's hint."""
    path = tmp_path / "whole.json"
    with pytest.raises(UsageError, match="No such file") as told:
        _load(path)
    assert told.value.hint == "make one"
    path.write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        _load(path)
    path.write_text("[]")
    with pytest.raises(UsageError, match="format None"):
        _load(path)
