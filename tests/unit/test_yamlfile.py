# SPDX-License-Identifier: GPL-2.0-only
"""Strict YAML names the file, the line and the nearest right key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import yamlfile
from harness.errors import UsageError

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "topology.yaml"
        path.write_text(text)
        return path

    return to_file


def test_unknown_key_names_line_and_nearest(write: Write) -> None:
    """A misspelt key is refused where it stands, with the right spelling."""
    top = yamlfile.load(write("name: edu\nmemry: 4\n"))
    top.text("name")
    top.number("memory", 0)
    with pytest.raises(UsageError, match=r"topology.yaml:2: the file has no key 'memry'") as caught:
        top.done()
    assert caught.value.hint == "did you mean 'memory'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [1]\n", r":1: 'name' in the file must be text"),
        ("a: 1\na: 2\n", r":2: 'a' is given twice"),
        ("- 1\n", r":1: the top level must be a mapping"),
        ("a: [1\nb: 2\n", r":2: not valid YAML"),
        ("", r":1: the top level must be a mapping"),
        ("other: x\n", r":1: the file lacks the key 'name'"),
    ],
)
def test_bad_files_are_one_sentence(write: Write, text: str, message: str) -> None:
    """Wrong types, duplicates and syntax errors name the place."""
    with pytest.raises(UsageError, match=message):
        yamlfile.load(write(text)).text("name")


def test_a_true_is_no_number(write: Write) -> None:
    """YAML's booleans are integers to Python, not to us."""
    with pytest.raises(UsageError, match="must be a whole number, not True"):
        yamlfile.load(write("cpus: true\n")).number("cpus")


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is said to be so."""
    with pytest.raises(UsageError, match=r"absent.yaml: No such file"):
        yamlfile.load(tmp_path / "absent.yaml")
