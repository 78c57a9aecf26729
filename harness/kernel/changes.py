# SPDX-License-Identifier: GPL-2.0-only
"""Find which lines of which files differ between two commits of a kernel's source."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from harness.base.cause import Cause
from harness.kernel.gittree import git

_FILE = re.compile(r'diff --git (?:a/(.+) b/\1|"a/(.+)" "b/\2")')
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A file that differs, with the changed lines of both commits."""

    name: str
    before: frozenset[int]
    after: frozenset[int]


def has_commit(repository: Path, commit: str) -> bool:
    """Whether *repository* has *commit* with its tree."""
    return bool(commit) and git(repository, ["cat-file", "-e", f"{commit}^{{tree}}"]).ok


def find_changes(repository: Path, before: str, after: str) -> tuple[Change, ...]:
    """Return what differs between two commits; a renamed file counts as one removed and one added."""
    # The user's diff.* settings change what git diff prints, not what diff-tree does.
    words = ["diff-tree", "-r", "--unified=0", "--no-renames", "--no-ext-diff", "--no-textconv"]
    done = git(repository, [*words, before, after]).check(
        f"cannot compare {before[:12]} with {after[:12]}", Cause.SOURCE
    )
    return tuple(parse_diff(done.stdout))


def parse_diff(text: str) -> Iterator[Change]:
    """Yield the files in the output of git diff-tree --unified=0."""
    name, before, after = "", set[int](), set[int]()
    left = 0
    # Other line ends than git's may be in a line.
    for line in text.split("\n"):
        if left:
            # A changed line may look like a header.
            left -= not line.startswith("\\")
        elif file := _FILE.fullmatch(line):
            if name:
                yield Change(name, frozenset(before), frozenset(after))
            name, before, after = file[1] or _unquoted(file[2]), set(), set()
        elif hunk := _HUNK.match(line):
            old, gone, new, come = (int(1 if word is None else word) for word in hunk.groups())
            before.update(range(old, old + gone))
            after.update(range(new, new + come))
            left = gone + come
    if name:
        yield Change(name, frozenset(before), frozenset(after))


def _unquoted(name: str) -> str:
    """Return a name that git quotes: with bytes in octal, and the escapes of C."""
    return name.encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")


def read_file(repository: Path, commit: str, name: str) -> str:
    """Return the text of a file in a commit; empty if the commit has none of that name."""
    done = git(repository, ["show", f"{commit}:{name}"])
    return done.stdout if done.ok else ""
