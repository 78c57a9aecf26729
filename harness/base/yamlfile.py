# SPDX-License-Identifier: GPL-2.0-only
"""Strict YAML: errors have file and line, every type is checked, unknown keys are refused.

The only importer of yaml.  A reader takes the keys that it knows from a Section and then calls `done()`,
which refuses all others and names the closest known key.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from harness.base.errors import UsageError, nearest

T = TypeVar("T")

_TYPE_NAMES: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    list: "a list",
    dict: "a mapping",
    datetime.date: "a date like 2030-01-31",
}


_NOT: dict[type, type] = {int: bool, datetime.date: datetime.datetime}

_LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader if PyYAML was built with it: ten times as fast."""


class Section:
    """One YAML mapping, with its file and line.  Many methods: one for each type of value."""

    def __init__(self, path: Path | str, node: yaml.MappingNode, name: str) -> None:
        self._path = path
        self._name = name
        self._keys: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        self._asked: set[str] = set()
        self.line = node.start_mark.line + 1
        for key, value in node.value:
            word = str(key.value)
            if word in self._keys:
                raise UsageError(f"{path}:{key.start_mark.line + 1}: {word!r} is given twice in {name}")
            self._keys[word] = (key, value)

    def where(self, key: str | None = None) -> str:
        """`file:line` of *key*, or of the section itself."""
        line = self._keys[key][0].start_mark.line + 1 if key in self._keys else self.line
        return f"{self._path}:{line}"

    def __contains__(self, key: str) -> bool:
        """Return whether *key* is given; asking makes it a known key."""
        self._asked.add(key)
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def _value(self, key: str) -> yaml.Node:
        if key not in self:
            raise UsageError(f"{self.where()}: {self._name} lacks the key {key!r}")
        return self._keys[key][1]

    def _typed(self, key: str, kind: type) -> Any:
        value = _construct(self._value(key), f"{self.where(key)}: {key!r} in {self._name}")
        # In Python a bool is an int, and a datetime is a date.
        if not isinstance(value, kind) or isinstance(value, _NOT.get(kind, ())):
            raise UsageError(
                f"{self.where(key)}: {key!r} in {self._name} must be {_TYPE_NAMES[kind]}, not {value!r}"
            )
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """The text at *key*; without a default the key is required."""
        return default if default is not None and key not in self else str(self._typed(key, str))

    def flag(self, key: str, default: bool | None = None) -> bool:
        return default if default is not None and key not in self else bool(self._typed(key, bool))

    def number(self, key: str, default: int | None = None) -> int:
        return default if default is not None and key not in self else int(self._typed(key, int))

    def date(self, key: str) -> datetime.date | None:
        """The date at *key*, None when it is absent."""
        return None if key not in self else datetime.date.fromisoformat(str(self._typed(key, datetime.date)))

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """The list of texts at *key*."""
        if default is not None and key not in self:
            return default
        values = self._typed(key, list)
        for value in values:
            if not isinstance(value, str):
                raise UsageError(
                    f"{self.where(key)}: {key!r} in {self._name} must be a list of texts, not {value!r}"
                )
        return tuple(values)

    def pattern(self, key: str) -> re.Pattern[str]:
        """The regular expression at *key*; one for all of them where it is a list."""
        is_list = isinstance(self._value(key), yaml.SequenceNode)
        text = "|".join(f"(?:{word})" for word in self.texts(key)) if is_list else self.text(key)
        try:
            return re.compile(text)
        except re.error as error:
            raise UsageError(f"{self.where(key)}: not a regular expression: {error}") from error

    def scalars(self, key: str) -> dict[str, str | int | bool]:
        """The mapping of plain values at *key*, empty when the key is absent."""
        if key not in self:
            return {}
        values = self._typed(key, dict)
        for name, value in values.items():
            if not isinstance(value, str | int | bool):
                raise UsageError(
                    f"{self.where(key)}: {name!r} in {key!r} must be a plain value, not {value!r}"
                )
        return {str(name): value for name, value in values.items()}

    def mapping(self, key: str) -> dict[str, Any]:
        """The mapping at *key*, of whatever is in it; empty when the key is absent."""
        return {str(name): value for name, value in self._typed(key, dict).items()} if key in self else {}

    def section(self, key: str) -> Section:
        """The mapping at *key*."""
        value = self._value(key)
        if not isinstance(value, yaml.MappingNode):
            raise UsageError(f"{self.where(key)}: {key!r} in {self._name} must be a mapping")
        return Section(self._path, value, f"{key!r}")

    def sections(self, key: str) -> tuple[Section, ...]:
        """The list of mappings at *key*, empty when the key is absent."""
        if key not in self:
            return ()
        value = self._value(key)
        if not isinstance(value, yaml.SequenceNode) or not all(
            isinstance(item, yaml.MappingNode) for item in value.value
        ):
            raise UsageError(f"{self.where(key)}: {key!r} in {self._name} must be a list of mappings")
        return tuple(Section(self._path, item, f"an entry of {key!r}") for item in value.value)

    def read(self, kind: type[T], **given: Any) -> T:
        """Return a *kind*, a dataclass, whose fields are the keys of this section, and *given*.

        Keys of fields with a default may be absent; every other key is refused.
        """
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            name = field.name
            if name not in given and (name in self or field.default is dataclasses.MISSING):
                given[name] = self._field(name, hints[name])
        self.done()
        return kind(**given)

    def _field(self, key: str, hint: Any) -> Any:
        if hint == tuple[str, ...]:
            return self.texts(key)
        kind = next(part for part in (*typing.get_args(hint), hint) if part is not types.NoneType)
        if not issubclass(kind, enum.Enum):
            return self._typed(key, kind)
        word, members = self.text(key), {member.value: member for member in kind}
        if word not in members:
            raise UsageError(f"{self.where(key)}: {key!r} cannot be {word!r}", hint=nearest(word, members))
        return members[word]

    def done(self) -> None:
        """Refuse the first key that was not read."""
        for key in self._keys:
            if key not in self._asked:
                raise UsageError(
                    f"{self.where(key)}: {self._name} has no key {key!r}", hint=nearest(key, self._asked)
                )


def _construct(node: yaml.Node, what: str) -> Any:
    """Return the Python value of *node*; UsageError says *what* it is."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    # PyYAML lets through whatever its conversions raise: a KeyError for `!!bool maybe`, an IndexError for an
    # empty `!!int`.
    except Exception as error:
        reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else None
        raise UsageError(f"{what} is not a value: {reason or _shown(node)}") from error
    finally:
        loader.dispose()


def _shown(node: yaml.Node) -> str:
    kind = node.tag.rpartition(":")[2]
    return f"{node.value!r} as {kind}" if isinstance(node, yaml.ScalarNode) else f"not a {kind}"


def load(path: Path) -> Section:
    """Read *path*, whose top level must be a mapping.

    Raises UsageError with file and line when it cannot be read or is not YAML.
    """
    return parse(read(path), path)


def read(path: Path) -> str:
    """Return the text of *path*.  Raises UsageError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason})") from error


def parse(text: str, path: Path | str) -> Section:
    """Read *text*, whose top level must be a mapping; messages call it *path*.

    Raises UsageError with the line when it is not YAML.
    """
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: not valid YAML: {error.reason}") from error
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}:1: the top level must be a mapping of keys")
    return Section(path, node, "the file")
