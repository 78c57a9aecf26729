# SPDX-License-Identifier: GPL-2.0-only
"""Matrix files: reading them, and what is wrong with them in one sentence."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from harness import yamlfile
from harness.errors import UsageError, nearest
from harness.kernel.variants import load_catalogue
from harness.machine.topology import load_topology
from harness.suites.catalogue import suite_names

T = TypeVar("T")

SHIPPED = Path(__file__).resolve().parent / "matrix.yaml"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One job of a matrix, in the words of the command line."""

    tree: str | None
    """As `--tree` takes it; None: the default tree."""
    variant: str
    addons: tuple[str, ...]
    topology: str
    """A shipped one by name, another one by absolute path."""
    suites: tuple[str, ...]

    def __str__(self) -> str:
        words = ("-".join([self.variant, *self.addons]), self.topology, *([self.tree] if self.tree else []))
        return " ".join(words)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A named set of jobs."""

    name: str
    summary: str
    entries: tuple[Entry, ...]


def matrix_names(path: Path = SHIPPED) -> dict[str, str]:
    """Every matrix in the file *path*, with its summary.  Raises UsageError as load_matrix() does."""
    matrices = _matrices(path)
    return {name: matrices.section(name).text("summary") for name in matrices}


def load_matrix(name: str, path: Path = SHIPPED, trees: Sequence[str] = ()) -> Matrix:
    """The matrix *name* of the file *path*; *trees*, when given, take the place of its own.

    Raises UsageError, with file and line, for whatever is wrong with it.
    """
    matrices = _matrices(path)
    if name not in matrices:
        raise UsageError(f"{path} has no matrix {name!r}", hint=nearest(name, list(matrices)))
    section = matrices.section(name)
    summary = section.text("summary")
    said = section.texts("trees", ())
    own = tuple(trees) or said
    suites = _suites(section, None)
    product = list(_product(section, path, trees=own, suites=suites))
    as_defined = list(_product(section, path, trees=said, suites=suites))
    for exclude in section.sections("exclude"):
        patterns = _patterns(exclude)
        _check_exclude(exclude, as_defined, patterns)
        as_defined, product = _without(as_defined, patterns), _without(product, patterns)
    included = [
        entry
        for block in section.sections("include")
        for entry in _included(block, path, trees=own, forced=bool(trees), suites=suites)
    ]
    section.done()
    entries = tuple(dict.fromkeys([*product, *included]))
    if not entries:
        raise UsageError(f"{section.where()}: the matrix {name!r} has no jobs left")
    return Matrix(name=name, summary=summary, entries=entries)


def _matrices(path: Path) -> yamlfile.Section:
    top = yamlfile.load(path)
    matrices = top.section("matrices")
    top.done()
    return matrices


def _included(
    block: yamlfile.Section, path: Path, *, trees: tuple[str, ...], forced: bool, suites: tuple[str, ...]
) -> Iterator[Entry]:
    own = block.texts("trees", trees)
    yield from _product(block, path, trees=trees if forced else own, suites=_suites(block, suites))
    block.done()


def _product(
    section: yamlfile.Section, path: Path, *, trees: tuple[str, ...], suites: tuple[str, ...]
) -> Iterator[Entry]:
    variants = [_known_variant(section, name) for name in section.texts("variants")]
    topologies = [_topology(section, name, path) for name in section.texts("topologies")]
    addons = tuple(_known_addon(section, name) for name in section.texts("with", ()))
    for key, values in (("variants", variants), ("topologies", topologies)):
        if not values:
            raise UsageError(f"{section.where(key)}: {key!r} is empty, so there is no job")
    for tree, variant, topology in itertools.product(trees or (None,), variants, topologies):
        # A blocked variant is proved by its configuration alone, once.
        if not load_catalogue().variant(variant).blocked or topology == topologies[0]:
            yield Entry(tree=tree, variant=variant, addons=addons, topology=topology, suites=suites)


def _known_variant(section: yamlfile.Section, name: str) -> str:
    return _at(section, "variants", lambda: load_catalogue().variant(name).name)


def _known_addon(section: yamlfile.Section, name: str) -> str:
    return _at(section, "with", lambda: load_catalogue().addon(name).name)


def _topology(section: yamlfile.Section, name: str, path: Path) -> str:
    """*name* as the command line takes it: a file is looked for beside the matrix file."""
    beside = (path.absolute().parent / name).resolve()
    is_file = "/" in name or name.endswith((".yaml", ".yml"))
    word = str(beside) if is_file else name
    _at(section, "topologies", lambda: load_topology(word))
    return word


def _suites(section: yamlfile.Section, inherited: tuple[str, ...] | None) -> tuple[str, ...]:
    names = section.texts("suites", inherited)
    for name in names:
        if name not in suite_names():
            raise UsageError(
                f"{section.where('suites')}: there is no suite {name!r}", hint=nearest(name, suite_names())
            )
    return names


def _at(section: yamlfile.Section, key: str, look: Callable[[], T]) -> T:
    """What *look* finds; what it has against it is said with the place in the file."""
    try:
        return look()
    except UsageError as error:
        raise UsageError(f"{section.where(key)}: {error.message}", hint=error.hint) from error


_EXCLUDABLE = ("tree", "variant", "topology")


def _patterns(exclude: yamlfile.Section) -> dict[str, str]:
    patterns = {key: exclude.text(key) for key in _EXCLUDABLE if key in exclude}
    exclude.done()
    if not patterns:
        raise UsageError(f"{exclude.where()}: an exclude says {', '.join(_EXCLUDABLE[:-1])} or topology")
    return patterns


def _without(entries: list[Entry], patterns: dict[str, str]) -> list[Entry]:
    """*entries* less those that all of *patterns* match."""
    return [entry for entry in entries if not _matches(entry, patterns)]


def _check_exclude(exclude: yamlfile.Section, entries: list[Entry], patterns: dict[str, str]) -> None:
    """Refuse an exclude that none of the matrix's own *entries* can ever match.

    A matrix without trees takes any, so that only its variants and topologies are known.
    """
    treeless = all(entry.tree is None for entry in entries)
    telling = {key: pattern for key, pattern in patterns.items() if not (treeless and key == "tree")}
    if not any(_matches(entry, telling) for entry in entries):
        raise UsageError(
            f"{exclude.where()}: this exclude matches no job of its matrix",
            hint=_nearest_exclude(entries, telling),
        )


def _matches(entry: Entry, patterns: dict[str, str]) -> bool:
    return all(fnmatch.fnmatchcase(_word(entry, key), pattern) for key, pattern in patterns.items())


def _word(entry: Entry, key: str) -> str:
    return str(getattr(entry, key) or "")


def _nearest_exclude(entries: list[Entry], patterns: dict[str, str]) -> str:
    for key, pattern in patterns.items():
        words = {_word(entry, key) for entry in entries}
        if not any(fnmatch.fnmatchcase(word, pattern) for word in words):
            return f"{key} {pattern!r}: {nearest(pattern, words)}"
    return "each of its patterns matches, but never in one job"
