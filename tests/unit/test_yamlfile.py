# SPDX-License-Identifier: GPL-2.0-only
"""Strict YAML names the file, the line and the nearest right key."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base import yamlfile
from harness.base.errors import UsageError

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


def test_patterns_of_a_list_are_one_pattern(write: Write) -> None:
    """One of them matches as a whole; a mistake in any is refused where it stands."""
    top = yamlfile.load(write("one: a+\nmany: [a|b, c]\nbad: [a, '(']\n"))
    assert top.pattern("one").fullmatch("aa")
    assert [word for word in ("a", "b", "c", "bc") if top.pattern("many").fullmatch(word)] == ["a", "b", "c"]
    with pytest.raises(UsageError, match=r"topology\.yaml:3: not a regular expression: "):
        top.pattern("bad")


@pytest.mark.parametrize(
    "value",
    [
        "2026-13-45",
        "!x foo",
        '!!int "zz"',
        '!!int ""',
        "!!float zz",
        "!!bool zz",
        "!!timestamp zz",
        "!!binary é",
        "!!python/object:os.system x",
        "0x",
        "[2026-13-45]",
        "{a: !x foo}",
        "{? [a]: b}",
        "&a [*a]",
        "!!set [a]",
        "!!omap zz",
        "-0b",
    ],
)
def test_values_that_are_none(write: Write, value: str) -> None:
    """What YAML cannot make a value of is refused with file, line and key, whatever was wanted."""
    for ask in (
        yamlfile.Section.text,
        yamlfile.Section.number,
        yamlfile.Section.flag,
        yamlfile.Section.texts,
    ):
        section = yamlfile.load(write(f"other: 1\nname: {value}\n"))
        try:
            ask(section, "name")
        except UsageError as error:
            assert ":2: 'name' in the file " in str(error)  # noqa: PT017 (some take it for a text)


@pytest.mark.parametrize(
    "text", ["name: a\x01b\n", "a: 1\nname: \x1b[0m\n", "name: \ufffe\n", "a: &b\nc: *d\n"]
)
def test_what_no_yaml_may_hold(write: Write, text: str) -> None:
    """Control characters among them."""
    with pytest.raises(UsageError, match=r"topology\.yaml:[12]: not valid YAML: "):
        yamlfile.load(write(text))


def test_a_true_is_no_number(write: Write) -> None:
    """YAML's booleans are integers to Python, not to us."""
    with pytest.raises(UsageError, match="must be a whole number, not True"):
        yamlfile.load(write("cpus: true\n")).number("cpus")


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is said to be so."""
    with pytest.raises(UsageError, match=r"absent.yaml: No such file"):
        yamlfile.load(tmp_path / "absent.yaml")


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    name: str
    size: int
    parts: tuple[str, ...] = ()
    colour: Colour | None = None
    big: bool = False


def test_a_section_becomes_a_dataclass(tmp_path: Path) -> None:
    """Fields are keys by type; absent keys take the default, enums their value."""
    path = tmp_path / "x.yaml"
    path.write_text("size: 3\nparts: [a, b]\ncolour: red\n", encoding="utf-8")
    assert yamlfile.load(path).read(Thing, name="x") == Thing(
        name="x", size=3, parts=("a", "b"), colour=Colour.RED
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts: []", "lacks the key 'size'"),
        ("size: x", r"x\.yaml:1: 'size' in the file must be a whole number, not 'x'"),
        ("size: 1\ncolour: rad", r"x\.yaml:2: 'colour' cannot be 'rad'"),
        ("size: 1\nbig: yes please", r"x\.yaml:2: 'big' in the file must be true or false"),
        ("size: 1\nname: y", r"x\.yaml:2: the file has no key 'name'"),
    ],
)
def test_a_section_that_is_no_such_dataclass(tmp_path: Path, text: str, message: str) -> None:
    """Wrong types, unknown values, missing and unknown keys are refused with file and line."""
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        yamlfile.load(path).read(Thing, name="x")
