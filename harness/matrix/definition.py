# SPDX-License-Identifier: GPL-2.0-only
"""Matrix files: read a matrix as a value; an error is one sentence with file and line."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from harness.base import yamlfile
from harness.base.errors import UsageError, nearest
from harness.session import names
from harness.session.wishes import DEFAULT_TOOLCHAIN, KernelWish

COVERAGE = "gcov"
"""The add-on with coverage counters."""

SHIPPED = Path(__file__).resolve().parent / "matrix.yaml"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One job of a matrix, in the words of the command line."""

    tree: str | None
    """The tree as `--tree` takes it; None: the default tree."""
    variant: str
    addons: tuple[str, ...]
    toolchain: str = DEFAULT_TOOLCHAIN
    """As `--toolchain` takes it."""
    arch: str = dataclasses.field(default_factory=names.default_arch)
    topology: str
    """The name of a shipped one, or an absolute path."""
    suites: tuple[str, ...]

    def kernel(self, like: KernelWish) -> KernelWish:
        """Return its kernel, *like* another in all that the matrix does not say."""
        return dataclasses.replace(
            like,
            tree=self.tree,
            variant=self.variant,
            addons=self.addons,
            toolchain=self.toolchain,
            arch=self.arch,
        )

    def __str__(self) -> str:
        return " ".join(
            [self.kernel(KernelWish(variant="")).name, self.topology, *([self.tree] if self.tree else [])]
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A named set of jobs."""

    name: str
    summary: str
    entries: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """The lists whose product are the jobs of a matrix, or of one of its includes."""

    trees: tuple[str, ...]
    variants: tuple[str, ...]
    addons: tuple[str, ...]
    toolchains: tuple[str, ...]
    arches: tuple[str, ...]
    topologies: tuple[str, ...]
    suites: tuple[str, ...]

    def product(self, trees: Sequence[str], toolchains: Sequence[str], arches: Sequence[str]) -> list[Entry]:
        """Return the jobs on *trees* with *toolchains* and of *arches*, by default its own.

        A topology that the machines of an architecture cannot have gives no job there, nor does an add-on
        that its kernels cannot have.  A blocked variant, which is never booted, is one job per tree,
        toolchain and architecture.
        """
        blocked = {name for name in self.variants if names.variant(name).blocked}
        possible = {
            arch: [name for name in self.topologies if arch in names.arches_of_topology(name)]
            for arch in arches or self.arches
            if names.is_for(self.addons, arch)
        }
        kernels = itertools.product(trees or (None,), self.variants, toolchains or self.toolchains, possible)
        return [
            Entry(
                tree=tree,
                variant=variant,
                addons=self.addons,
                toolchain=toolchain,
                arch=arch,
                topology=topology,
                suites=self.suites,
            )
            for tree, variant, toolchain, arch in kernels
            for topology in possible[arch]
            if variant not in blocked or topology == possible[arch][0]
        ]


def matrix_names(path: Path = SHIPPED) -> dict[str, str]:
    """Return the summary of every matrix in the file *path*.  Raises UsageError as load_matrix() does."""
    matrices = _matrices(path)
    return {name: matrices.section(name).text("summary") for name in matrices}


def load_matrix(
    name: str,
    path: Path = SHIPPED,
    trees: Sequence[str] = (),
    toolchains: Sequence[str] = (),
    arches: Sequence[str] = (),
) -> Matrix:
    """Return the matrix *name* of the file *path*; *trees*, *toolchains*, *arches*, if any, replace its own.

    Raises UsageError, with file and line, for what is wrong with it.
    """
    matrices = _matrices(path)
    if name not in matrices:
        raise UsageError(f"{path} has no matrix {name!r}", hint=nearest(name, list(matrices)))
    section = matrices.section(name)
    summary = section.text("summary")
    block = _block(section, path)
    product = block.product(trees or block.trees, toolchains, arches)
    as_defined = block.product(block.trees, (), ())
    for exclude in section.sections("exclude"):
        patterns = _patterns(exclude)
        _check_exclude(exclude, as_defined, patterns)
        as_defined, product = _without(as_defined, patterns), _without(product, patterns)
    for include in section.sections("include"):
        added = _block(include, path, inherited=block, trees=tuple(trees) or block.trees)
        product += added.product(trees or added.trees, toolchains, arches)
        include.done()
    section.done()
    entries = tuple(dict.fromkeys(product))
    if not entries:
        raise UsageError(f"{section.where()}: the matrix {name!r} has no jobs left")
    return Matrix(name=name, summary=summary, entries=entries)


def with_coverage(matrix: Matrix) -> Matrix:
    """Return *matrix* with the add-on for coverage in each job, without those whose compiler has no counters.

    Another name keeps it from being compared with the matrix without: the jobs are others.
    """
    counted = tuple(
        dataclasses.replace(entry, addons=tuple(dict.fromkeys((*entry.addons, COVERAGE))))
        for entry in matrix.entries
        if names.has_counters(entry.toolchain)
    )
    return dataclasses.replace(matrix, name=f"{matrix.name}+{COVERAGE}", entries=counted)


def _matrices(path: Path) -> yamlfile.Section:
    top = yamlfile.load(path)
    matrices = top.section("matrices")
    top.done()
    return matrices


def _block(
    section: yamlfile.Section,
    path: Path,
    *,
    inherited: _Block | None = None,
    trees: tuple[str, ...] = (),
) -> _Block:
    """Read the keys of a product; an include inherits *trees*, suites and architectures."""
    suites = inherited.suites if inherited is not None else None
    arches = inherited.arches if inherited is not None else (names.default_arch(),)

    def known(key: str, words: Iterable[str], look_up: Callable[[str], object]) -> tuple[str, ...]:
        return tuple(_checked(section, key, word, look_up) for word in words)

    block = _Block(
        trees=section.texts("trees", trees),
        variants=known("variants", section.texts("variants"), names.variant),
        addons=known("with", section.texts("with", ()), names.check_addon),
        toolchains=known(
            "toolchains", section.texts("toolchains", (DEFAULT_TOOLCHAIN,)), names.check_toolchain
        ),
        arches=tuple(
            map(names.arch_named, known("arches", section.texts("arches", arches), names.arch_named))
        ),
        topologies=known(
            "topologies", (_beside(path, name) for name in section.texts("topologies")), names.check_topology
        ),
        suites=known("suites", section.texts("suites", suites), names.check_suite),
    )
    for key in ("variants", "toolchains", "arches", "topologies"):
        if not getattr(block, key):
            raise UsageError(f"{section.where(key)}: {key!r} is empty, so there is no job")
    return block


def _checked(section: yamlfile.Section, key: str, name: str, look_up: Callable[[str], object]) -> str:
    """Return *name* after looking it up; a UsageError gets file and line of *key*."""
    try:
        look_up(name)
    except UsageError as error:
        raise UsageError(f"{section.where(key)}: {error.message}", hint=error.hint) from error
    return name


def _beside(path: Path, topology: str) -> str:
    """Return *topology* as the command line takes it; a file is relative to the matrix file *path*."""
    is_file = "/" in topology or topology.endswith((".yaml", ".yml"))
    return str((path.absolute().parent / topology).resolve()) if is_file else topology


_EXCLUDABLE = ("tree", "variant", "toolchain", "arch", "topology")


def _patterns(exclude: yamlfile.Section) -> dict[str, str]:
    patterns = {key: exclude.text(key) for key in _EXCLUDABLE if key in exclude}
    exclude.done()
    if not patterns:
        raise UsageError(
            f"{exclude.where()}: an exclude needs {', '.join(_EXCLUDABLE[:-1])} or {_EXCLUDABLE[-1]}"
        )
    return patterns


def _without(entries: Iterable[Entry], patterns: Mapping[str, str]) -> list[Entry]:
    """Return the *entries* that do not match all of *patterns*."""
    return [entry for entry in entries if not _matches(entry, patterns)]


def _check_exclude(exclude: yamlfile.Section, entries: Sequence[Entry], patterns: Mapping[str, str]) -> None:
    """Refuse an exclude that matches none of the matrix's own *entries*.

    A matrix without trees takes any tree, so that only variants and topologies can be checked.
    """
    treeless = all(entry.tree is None for entry in entries)
    telling = {key: pattern for key, pattern in patterns.items() if not (treeless and key == "tree")}
    if any(_matches(entry, telling) for entry in entries):
        return
    hint = "each pattern matches some job, but no job matches all of them"
    for key, pattern in telling.items():
        words = {_word(entry, key) for entry in entries}
        if not fnmatch.filter(words, pattern):
            hint = f"{key} {pattern!r}: {nearest(pattern, words)}"
            break
    raise UsageError(f"{exclude.where()}: this exclude matches no job of its matrix", hint=hint)


def _matches(entry: Entry, patterns: Mapping[str, str]) -> bool:
    return all(fnmatch.fnmatchcase(_word(entry, key), pattern) for key, pattern in patterns.items())


def _word(entry: Entry, key: str) -> str:
    return str(getattr(entry, key) or "")
