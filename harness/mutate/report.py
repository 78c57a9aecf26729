# SPDX-License-Identifier: GPL-2.0-only
"""Render a mutation as text and as JSON: pure functions."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

from harness.base import values
from harness.base.words import count_of, duration
from harness.mutate.faults import Kind
from harness.mutate.mutation import Fate, Mutant, Mutation

_SHOWN_CASES = 5
"""How many of the cases that passed on a survivor are named."""


def render_json(mutation: Mutation) -> str:
    """Return the mutation with its score as JSON."""
    return values.dumps({**values.unstructure(mutation), "score": mutation.score})


def summary(mutation: Mutation, source: Callable[[str], str]) -> str:
    """Return the score, a table by kind, and the survivors with their patches; *source* reads a file."""
    return "\n".join([*_table(mutation), *_survivors(mutation, source), *_rest(mutation), _score(mutation)])


def _table(mutation: Mutation) -> Iterator[str]:
    counts = collections.Counter((mutant.fault.kind, mutant.fate) for mutant in mutation.mutants)
    shown = [fate for fate in Fate if any(counts[kind, fate] for kind in Kind)]
    yield f"{'fault':<26}" + "".join(f"{fate.value:>16}" for fate in shown)
    for kind in Kind:
        if any(counts[kind, fate] for fate in shown):
            yield f"{kind.value:<26}" + "".join(f"{counts[kind, fate] or '-':>16}" for fate in shown)


def _survivors(mutation: Mutation, source: Callable[[str], str]) -> Iterator[str]:
    for mutant in mutation.fates(Fate.SURVIVED):
        yield f"\nsurvived: {mutant.fault.id} {mutant.fault.label}"
        yield mutant.fault.diff(source(mutant.fault.file)).rstrip("\n")
        yield f"  {mutant.why or _ran_over(mutant)}"


def _ran_over(mutant: Mutant) -> str:
    named = ", ".join(mutant.cases[:_SHOWN_CASES])
    more = len(mutant.cases) - _SHOWN_CASES
    return f"{count_of(len(mutant.cases), 'case')} passed: {named}" + (
        f" and {more} more" if more > 0 else ""
    )


def _rest(mutation: Mutation) -> Iterator[str]:
    if mutation.left_out:
        yield f"\n{mutation.left_out}"
    for fate in (Fate.UNTESTED, Fate.NO_BUILD):
        for mutant in mutation.fates(fate):
            yield f"\n{fate.value}: {mutant.fault.id} {mutant.fault.label}: {mutant.why}"


def _score(mutation: Mutation) -> str:
    killed, survived = (len(mutation.fates(fate)) for fate in (Fate.KILLED, Fate.SURVIVED))
    share = "no score" if mutation.score is None else f"score {100 * mutation.score:.0f} %"
    words = f"\n{share}: {killed} of {killed + survived} killed"
    left = len(mutation.left)
    took = sum(mutant.seconds for mutant in mutation.mutants)
    words += f"; {left} of {len(mutation.faults)} not tested" if left else ""
    words += f"; {mutation.found} faults to choose from" if mutation.found > len(mutation.faults) else ""
    return f"{words} ({duration(took)})"
