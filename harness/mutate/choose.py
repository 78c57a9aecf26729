# SPDX-License-Identifier: GPL-2.0-only
"""Choose the faults to plant: those of named functions or of changed lines, all of them or a sample."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.base import yamlfile
from harness.base.csource import find_functions
from harness.base.errors import UsageError, nearest
from harness.base.output import tell
from harness.base.words import count_of
from harness.kernel import gittree
from harness.kernel.changes import find_changes
from harness.kernel.trees import KernelTree, open_tree
from harness.mutate.faults import Fault, find_faults


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A kernel tree as a commit in a repository of the cache."""

    root: Path
    """The repository whose mirror holds it."""
    commit: str

    @classmethod
    def of(cls, tree: KernelTree) -> Source:
        """Return the source of *tree*; an unpacked package is committed like a user's directory."""
        if tree.repository is None or not tree.checkout:
            return cls.of(open_tree(os.fspath(tree.path)))
        return cls(tree.repository, tree.checkout)

    @property
    def mirror(self) -> Path:
        """The repository that holds the commit."""
        return gittree.provide_mirror(self.root)

    def read(self, file: str) -> str:
        """Return the text of *file*; UsageError when the commit has none."""
        return gittree.show(self.mirror, self.commit, file)


def named_faults(source: Source, targets: Sequence[str]) -> list[Fault]:
    """Return the faults of *targets*, each FILE or FILE:FUNCTION; UsageError for one that does not exist."""
    files = gittree.list_files(source.mirror, source.commit)
    wanted: dict[str, set[str]] = {}
    for target in targets:
        file, colon, function = target.partition(":")
        file = os.path.normpath(file)
        if file not in files or not file.endswith(".c"):
            known = [name for name in files if name.endswith(".c") and Path(name).name == Path(file).name]
            known = known or [name for name in files if name.endswith(".c")]
            hint = nearest(file, known, otherwise="name a C file from the top of the tree")
            raise UsageError(f"the tree has no C file {file!r}", hint=hint)
        functions = {one.name for one in find_functions(source.read(file))}
        if colon and function not in functions:
            raise UsageError(f"{file} defines no function {function!r}", hint=nearest(function, functions))
        wanted.setdefault(file, set()).update({function} if colon else functions)
    return _found(source, wanted, lambda file, function, _: function in wanted[file])


def changed_faults(source: Source, directory: Path, old: str) -> list[Fault]:
    """Return the faults in C lines of *source* that differ from the commit that *old* names in *directory*.

    Each worktree of a repository has its own HEAD.  Raises UsageError for an unknown one.
    """
    before = gittree.resolve(directory, old).commit
    changes = {one.name: one.after for one in find_changes(source.mirror, before, source.commit)}
    lines = {name: after for name, after in changes.items() if name.endswith(".c") and after}
    return _found(source, lines, lambda file, _, line: line in lines[file])


def _found(
    source: Source, files: Mapping[str, object], wanted: Callable[[str, str, int], bool]
) -> list[Fault]:
    def of(file: str) -> Iterator[Fault]:
        yield from find_faults(file, source.read(file), lambda function, line: wanted(file, function, line))

    return [fault for file in sorted(files) for fault in of(file)]


def sample(faults: Sequence[Fault], limit: int | None, seed: int) -> tuple[Fault, ...]:
    """Return *limit* of *faults*, or all, in a random order in which each function gives its share.

    So what is done at a deadline is a sample, too.
    """
    chance = random.Random(seed)
    by_function: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        by_function.setdefault((fault.file, fault.function), []).append(fault)
    # The place of each fault within its function, from 0 to 1: the first ones of all functions come first.
    places = []
    for group in by_function.values():
        chance.shuffle(group)
        places += [((number + chance.random()) / len(group), fault) for number, fault in enumerate(group)]
    return tuple(fault for _, fault in sorted(places, key=lambda place: place[0])[:limit])


def read_equivalents(path: Path | None, faults: Sequence[Fault]) -> dict[str, str]:
    """Return the reasons in *path*, a YAML mapping of fault id to reason, for those of *faults* it names.

    Raises UsageError when it names others only.
    """
    if path is None:
        return {}
    section = yamlfile.load(path)
    known = {fault.id for fault in faults}
    reasons = {name: section.text(name) for name in section}
    elsewhere = reasons.keys() - known
    if elsewhere and len(elsewhere) == len(reasons):
        hint = "mutate --plan lists the ids"
        raise UsageError(f"{path}: it names none of the faults to be planted", hint=hint)
    if elsewhere:
        tell(f"{path}: {len(elsewhere)} of {count_of(len(reasons), 'fault')} are elsewhere")
    return {name: reason for name, reason in reasons.items() if name in known}
