# SPDX-License-Identifier: GPL-2.0-only
"""Choose the work of a plan that reaches what changed since the last good run, by the coverage map."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.base.errors import NoCase, UsageError
from harness.base.output import tell
from harness.base.words import count_of
from harness.kernel import gittree
from harness.kernel.changes import find_changes, has_commit, read_file
from harness.kernel.trees import KernelTree, read_version
from harness.kernel.variants import load_catalogue
from harness.plan import Job, Plan
from harness.results import Inputs, JobRecord
from harness.results.coverage.affected import Edit, Map, Touched, find_touched
from harness.results.model import without_content
from harness.session.coverage import HOW, line_of_kernels
from harness.session.planning import PlannedKernel
from harness.session.reporting import ask
from harness.session.wishes import Conduct, JobWish, KernelWish, PytestOptions
from harness.suites.catalogue import to_do
from harness.suites.model import Work
from harness.suites.own import SUITE as OWN_SUITE
from harness.suites.probes import SUITE as PROBES
from harness.suites.probes import own_cases
from harness.suites.registry import all_suites, suite_named


@dataclasses.dataclass(frozen=True, slots=True)
class _Change:
    """What changed in one tree, and the coverage map of its kernel version."""

    touched: Touched
    reached: Map
    since: str


class _Unknown(Exception):
    """Why it is not known which cases a change affects."""


def choose_affected(
    kernels: Mapping[KernelWish, PlannedKernel],
    records: Mapping[JobWish, JobRecord],
    plan: Plan,
    conduct: Conduct,
    options: PytestOptions,
) -> tuple[str, ...]:
    """Return the work of *plan* that reaches what changed, as Plan.only names it, and print how much it is.

    *records* are those of its jobs.  Empty if that is unknown or is all of it, if cases were chosen by other
    options, and for a matrix.  Work that is not in the map counts as affected.  With `--affected`, which runs
    nothing else, raises UsageError when it is unknown and NoCase when there is none.
    """
    alone = options.affected
    if plan.cases or plan.only or options.keyword or options.extra or "matrix" in conduct.about:
        return ()
    changes: dict[str, _Change] = {}
    try:
        for wish, record in records.items():
            machine = wish.machine
            inputs = Inputs(root=machine.root, machine=machine.kind, suites=record.suites)
            changes[record.name] = _change_in(kernels[wish.kernel], record, inputs)
    except _Unknown as error:
        if alone:
            raise UsageError(f"--affected: {error}", hint=f"leave it out, or make a map: {HOW}") from error
        return ()
    work = [one for one in to_do(plan) if not one.refusal]
    everything = next((one for one in changes.values() if one.touched.everything), None)
    if everything is not None:
        tell(f"affected: all cases, because {everything.touched.everything} (since {everything.since})")
        return ()
    chosen = [one for one in work if _is_affected(one, changes[one.job]) or _is_own(one, plan.job(one.job))]
    unknown = sum(one.address not in changes[one.job].reached for one in chosen)
    since = " and ".join(dict.fromkeys(one.since for one in changes.values()))
    said = f"{len(chosen)} of {count_of(len(work), 'case')} reach your change since {since}"
    said += f" ({unknown} of them are not in the map)" if unknown else ""
    touched = Touched(functions=frozenset().union(*(one.touched.functions for one in changes.values())))
    said += touched.unreached(f for one in work for f in changes[one.job].reached.get(one.address, ()))
    if not chosen:
        if alone:
            raise NoCase(f"--affected: {said}", hint="leave it out")
        if any(one.touched.functions or one.touched.suites for one in changes.values()):
            tell(f"affected: {said}; all run in the usual order")
        return ()
    tell(f"affected: {said}: {'only these' if alone else 'first'}")
    return tuple(one.key for one in chosen)


def _is_affected(work: Work, change: _Change) -> bool:
    functions = change.reached.get(work.address)
    if functions is None or change.touched.has_suite(suite_named(work.suite).selftests):
        return bool(change.touched.functions or change.touched.suites)
    return change.touched.reaches(functions)


def _is_own(work: Work, job: Job) -> bool:
    """Whether *work* is what the user brought along, which may have changed as well."""
    probes = own_cases(job.own.probes) if job.own.probes else ()
    return work.suite == OWN_SUITE or work.address in {f"{PROBES}/{case.address}" for case in probes}


def _change_in(kernel: PlannedKernel, job: JobRecord, inputs: Inputs) -> _Change:
    """Return what changed in the tree of *kernel* since *job* with *inputs* was good.  Raises _Unknown."""
    tree = kernel.tree
    if not isinstance(tree, KernelTree) or tree.repository is None or not tree.checkout:
        raise _Unknown(f"{kernel.tree_label} is not in git, so its changes are not known")
    release = line_of_kernels(tree.version)

    reached = _read_map(release)
    good = ask(lambda history: history.map.last_good(job, inputs))
    run, commit = (good[0], good[1].commit) if good is not None else ("", "")
    mirror, since = gittree.provide_mirror(tree.repository), f"the good run {run}"
    if not has_commit(mirror, commit):
        # The first run of a tree: its own last commit.
        commit, since = tree.commit or "", f"commit {(tree.commit or '')[:12]}"
    if not has_commit(mirror, commit):
        raise _Unknown("there is no earlier good run of this tree to compare with")
    touched = find_touched(_edits(mirror, commit, tree.checkout), _is_profiled)
    if kernel.tests is not None:
        # The selftests of another tree are compared with nothing.
        touched = dataclasses.replace(touched, suites=frozenset("*"))
    new = [name for name in (*job.addons, job.topology) if without_content(name) != name]
    if new and good is None:
        touched = Touched(everything=f"no good run had {new[0]}")
    return _Change(touched=touched, reached=reached, since=since)


def _read_map(release: str) -> Map:
    """Return the map of the kernel version *release*.  Raises _Unknown when there is none."""
    reached, mapped = ask(lambda history: (history.map.read(release), history.map.lines()))
    if not reached:
        others = f", only of {', '.join(mapped)}" if mapped else ""
        raise _Unknown(f"there is no coverage map of kernel version {release}{others}")
    return reached


def affected_between(repository: Path, before: str, after: str) -> tuple[str, ...]:
    """Return the cases of the map that reach what differs between two commits, and print how many.

    Raises UsageError when there is no map of the kernel version of *after*, NoCase when no case reaches it.
    """
    release = line_of_kernels(read_version(gittree.show(repository, after, "Makefile")))
    try:
        reached = _read_map(release)
    except _Unknown as error:
        raise UsageError(str(error), hint=f"make one: {HOW}") from error
    touched = find_touched(_edits(repository, before, after), _is_profiled)
    suites = {suite.name for suite in all_suites() if touched.has_suite(suite.selftests)}
    cases = tuple(
        case
        for case, functions in sorted(reached.items())
        if touched.everything or case.partition("/")[0] in suites or touched.reaches(functions)
    )
    why = f", because {touched.everything}" if touched.everything else ""
    said = f"{len(cases)} of {count_of(len(reached), 'case')} reach what changed between the ends{why}"
    said += touched.unreached(f for functions in reached.values() for f in functions)
    if not cases:
        raise NoCase(said, hint="name one with --case")
    tell(f"affected: {said}")
    return cases


def _edits(mirror: Path, before: str, after: str) -> Iterator[Edit]:
    for change in find_changes(mirror, before, after):
        is_code = change.name.endswith(".c") and _is_profiled(change.name)
        texts = tuple(read_file(mirror, commit, change.name) if is_code else "" for commit in (before, after))
        yield Edit(name=change.name, texts=(texts[0], texts[1]), lines=(change.before, change.after))


def _is_profiled(name: str) -> bool:
    """Whether the add-on for coverage has counters for the file *name*."""
    addons = load_catalogue().addons.values()
    return any(name.startswith(f"{directory}/") for addon in addons for directory in addon.profile)
