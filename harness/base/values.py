# SPDX-License-Identifier: GPL-2.0-only
"""Frozen dataclasses as JSON files and back: every key and type is checked, every file is written atomically.

The only importer of cattrs.
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.base.errors import UsageError
from harness.base.files import write_atomic

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")

_hooks: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {}

_FORMAT = "format"
"""The key of the format number, next to the fields of the value."""


def register(kind: type[T], unstructure: Callable[[T], Any], structure: Callable[[Any], T]) -> None:
    """Convert values of *kind* to and from JSON with these functions.

    *structure* reverses *unstructure*, and raises ValueError for anything else.
    """
    _hooks[kind] = (unstructure, lambda plain, _kind: structure(plain))
    _converter.cache_clear()


def dumps(plain: Any) -> str:
    """Return *plain* as JSON text in the form of all our JSON documents."""
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


def unstructure(value: object) -> Any:
    """Return *value* as json.dumps() takes it."""
    return _converter().unstructure(value)


def structure(plain: object, kind: type[T], where: str | Path) -> T:
    """Return the value of *kind* from which unstructure() made *plain*.

    Raises UsageError, which names *where* it was read from and the key, for a value of another type and for a
    key that is missing or unknown.
    """
    from cattrs import transform_error

    try:
        return _converter().structure(plain, kind)
    # cattrs raises groups of any exceptions.
    except Exception as error:
        first = transform_error(error, path="", format_exception=_problem)[0]
        problem, _, key = first.rpartition(" @ ")
        raise UsageError(
            f"{where}: {key.lstrip('.')}: {problem}" if key else f"{where}: {problem}"
        ) from error


def save(path: Path, value: object, *, version: int, durable: bool = False) -> None:
    """Write *value* to *path* as JSON in the format *version*; *durable* as for write_atomic().

    Raises OSError.
    """
    text = json.dumps({_FORMAT: version, **unstructure(value)}, indent=2) + "\n"
    write_atomic(path, text, durable=durable)


def load(path: Path, kind: type[T], *, version: int, hint: str | None = None) -> T:
    """Read the *kind* that save() wrote to *path*.

    Raises UsageError, with *hint*, for a file that cannot be read or has another format.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}", hint=hint) from error
    found = plain.pop(_FORMAT, None) if isinstance(plain, dict) else None
    if found != version:
        raise UsageError(f"{path}: format {found}, expected {version}", hint=hint)
    return structure(plain, kind, path)


@functools.cache
def _converter() -> Converter:
    from cattrs import Converter

    converter = Converter(forbid_extra_keys=True)
    # By default cattrs converts numbers to text and text to numbers.
    for kind in (str, int, bool):
        converter.register_structure_hook(kind, _typed)
    for base in (enum.StrEnum, enum.IntEnum):
        converter.register_structure_hook(base, lambda value, kind: kind(value))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(Path, lambda value, _kind: Path(_typed(value, str)))
    converter.register_unstructure_hook(Path, str)
    for own, (unstructure_one, structure_one) in _hooks.items():
        converter.register_unstructure_hook(own, unstructure_one)
        converter.register_structure_hook(own, structure_one)
    return converter


def _typed(value: object, kind: type[T]) -> T:
    # In Python a bool is an int.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"expected {kind.__name__}, got {value!r}")
    return value


def _number(value: object, _kind: type[float]) -> float:
    return float(value) if type(value) is int else _typed(value, float)


def _problem(error: BaseException, kind: type | None) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown key {sorted(error.extra_fields)[0]!r}"
    if isinstance(error, KeyError):
        return "missing"
    return str(error) if isinstance(error, ValueError) else f"not a {getattr(kind, '__name__', kind)}"
