# SPDX-License-Identifier: GPL-2.0-only
"""Whether an expression for pytest's -k can choose anything, told before there is a kernel to ask about."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from harness.errors import UsageError, nearest
from harness.plan import Job
from harness.suites.catalogue import source_of, work_of
from harness.suites.probes import SUITE as PROBES
from harness.suites.probes import probe_cases

_PLAIN = re.compile(r"[\s()A-Za-z0-9_]+")
"""What consists of words and parentheses; a word of other characters may be part of a job's name."""


def check_keyword(keyword: str, suites: Sequence[str], others: Iterable[str] = ()) -> None:
    """Refuse an expression that chooses no case of *suites*, before there is a tree.

    *others* are names that every item has beside its own: those of its job.  What only a tree can tell is
    taken as it is: anything where upstream's selftests may run, and a word with more than letters in it.
    """
    if tuple(suites) != (PROBES,) or not _PLAIN.fullmatch(keyword) or not keyword.split():
        return
    try:
        tree = ast.parse(keyword.strip(), mode="eval").body
    except SyntaxError:
        raise UsageError(
            f"-k takes no {keyword!r}", hint="join words with and, or, not and parentheses"
        ) from None
    parts = [node for node in ast.walk(tree) if isinstance(node, ast.expr)]
    if not all(isinstance(part, ast.BoolOp | ast.UnaryOp | ast.Name) for part in parts):
        return
    words = [part.id for part in parts if isinstance(part, ast.Name)]
    names = [_names_of(Path(case.path), case.name, others) for case in probe_cases()]
    if any(_holds(tree, own) for own in names):
        return
    strange = [word for word in words if not any(_in(word, own) for own in names)]
    raise UsageError(f"no case matches -k {shlex.quote(keyword)}", hint=_hint(strange))


def check_choice(keyword: str, jobs: Iterable[Job]) -> None:
    """Refuse a word for pytest's -k that matches no work of *jobs*; an expression is taken as it is."""
    if not _WORD.fullmatch(keyword) or keyword in ("and", "or", "not"):
        return
    work = [one for job in jobs for one in work_of(job)]
    titles = {one.title for one in work}
    places = {part for one in work for part in source_of(one).parts[-3:]}
    _require_match(keyword, titles | places, {title.partition("[")[0] for title in titles})


_WORD = re.compile(r"[\w:+.\[\]\\/-]+")
"""One name in an expression of pytest's -k."""


def _require_match(keyword: str, names: Collection[str], cases: Collection[str]) -> None:
    if names and not any(keyword.lower() in name.lower() for name in names):
        hint = nearest(keyword, cases)
        raise UsageError(
            f"no case matches -k {keyword}",
            hint=hint if hint.startswith("did") else "see: vfio-harness list cases",
        )


def _names_of(path: Path, name: str, others: Iterable[str]) -> frozenset[str]:
    """What pytest finds a case by: its own name, the files and directories above it, its job."""
    return frozenset(word.lower() for word in (name, *path.parts[-3:], *others))


def _holds(tree: ast.expr, names: Collection[str]) -> bool:
    match tree:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_holds(value, names) for value in values)
        case ast.BoolOp(values=values):
            return any(_holds(value, names) for value in values)
        case ast.UnaryOp(operand=operand):
            return not _holds(operand, names)
        case ast.Name(id=word):
            return _in(word, names)
        case _:
            raise AssertionError(tree)


def _in(word: str, names: Collection[str]) -> bool:
    return any(word.lower() in name for name in names)


def _hint(strange: Sequence[str]) -> str:
    """The word that no case has, with the nearest one that some case has."""
    if strange:
        known = {name for case in probe_cases() for name in (case.name, case.module)}
        hint = nearest(strange[0], known)
        return f"{strange[0]}: {hint}" if hint.startswith("did") else f"{strange[0]!r} is in no name"
    return "see: vfio-harness list cases"
