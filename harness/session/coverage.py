# SPDX-License-Identifier: GPL-2.0-only
"""Decode the coverage counters of a run, find its coverage and show it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from harness.base import paths
from harness.base.errors import HarnessError, InfraError, UsageError
from harness.base.host import default_compilers
from harness.base.output import tell
from harness.base.values import dumps
from harness.base.words import count_of
from harness.kernel import gittree
from harness.kernel.changes import find_changes, has_commit
from harness.kernel.store import Built, find_built, kernel_entry, read_facts
from harness.plan import PLAN_FILE, Job, load_plan
from harness.results import KCONFIG_SUITE, KERNEL_SUITE, Outcome, Run
from harness.results.coverage import model
from harness.results.coverage.decode import Decoder
from harness.results.coverage.model import Coverage, FileCoverage, Reach, ranges
from harness.results.coverage.reports import write_reports
from harness.results.coverage.show import render_diff, render_missing, render_table
from harness.results.store import list_runs, load
from harness.session.reporting import ask, find_run
from harness.session.wishes import SELFTESTS_OF
from harness.suites.registry import work_address

__all__ = ["render_missing", "render_table"]

HOW = "vfio-harness run --with gcov"
"""The command that makes a run with coverage."""


def keep_coverage(directory: Path) -> None:
    """Decode the counters of the run in *directory*, if its kernels have any, and write its coverage there.

    An error is printed and changes no result.
    """
    found: list[Coverage] = []
    with _telling("coverage"):
        counted = [job for job in load_plan(directory / PLAN_FILE).jobs if "gcov" in job.features]
        if not counted:
            return
        found = decode(load(directory), counted)
        for coverage in found:
            coverage.save(directory)
        run = load(directory)
        ask(lambda history: history.map.learn(run))
    for coverage in found:
        place = directory / model.DIRECTORY / model.file_name(coverage.tree)
        with _telling(f"coverage of {coverage.tree}"):
            write_reports(coverage, html=place, lcov=place.with_name(f"{place.name}.info"))
            tell_summary(coverage, place)


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Print an error about *what* that ends the with block."""
    try:
        yield
    except (HarnessError, OSError) as error:
        tell(f"{what}: {error}")


def tell_summary(coverage: Coverage, html: Path) -> None:
    """Print how much of the no-IOMMU code ran, and whose counters are missing."""
    row = next(coverage.rows())
    tell(
        f"coverage: {row.lines_run} of {row.lines} lines and {row.branches_taken} of {row.branches} branches"
        f" of the {row.name} ran; {html / 'index.html'}"
    )
    tell_lost(coverage)


def tell_lost(coverage: Coverage) -> None:
    """Print which cases ran and left no counters."""
    if coverage.lost:
        more = f" and {len(coverage.lost) - 3} more" if len(coverage.lost) > 3 else ""
        named = ", ".join(coverage.lost[:3])
        tell(f"coverage: {count_of(len(coverage.lost), 'case')} left no counters: {named}{more}")


def decode(run: Run, jobs: Iterable[Job]) -> list[Coverage]:
    """Return the coverage of each source tree of *run*, from the counters of *jobs*.

    What cannot be decoded is named and left out.  Raises InfraError when nothing is left.
    """
    trees: dict[str, list[tuple[Job, Built]]] = {}
    for job in jobs:
        with _telling(f"coverage: job {job.name} is left out"):
            built = _counted_kernel(job)
            identity = str(read_facts(kernel_entry(built.digest)).get("tree_identity", ""))
            trees.setdefault(identity, []).append((job, built))
    decoded: dict[str, Coverage] = {}
    for identity, found in trees.items():
        with _telling(f"coverage of {found[0][0].kernel.tree}"):
            decoded[identity] = _decode_tree(run, found)
    if not decoded:
        raise InfraError("no counters of the run can be read")
    # Worktrees of one commit may have one label, and a file has the name of its tree.
    names = collections.Counter(model.file_name(one.tree) for one in decoded.values())
    return [
        one
        if names[model.file_name(one.tree)] == 1
        else dataclasses.replace(one, tree=_full(one.tree, which))
        for which, one in decoded.items()
    ]


def _full(label: str, identity: str) -> str:
    """Return the name of a tree whose *label* another tree of the run has as well."""
    return f"{label} {identity[:12]}"


def _counted_kernel(job: Job) -> Built:
    """Return the kernel of *job*.  Raises InfraError if gcov cannot read its counters."""
    built = find_built(job.kernel.digest)
    if built is None:
        # It did not build, was never reached, or was pruned since.
        raise InfraError(f"its kernel {job.kernel.digest[:12]} is not in the store")
    if not built.gcov or not built.notes.is_dir():
        raise InfraError(f"its kernel {job.kernel.digest[:12]} was built elsewhere: gcov's notes are missing")
    return built


def _decode_tree(run: Run, jobs: Sequence[tuple[Job, Built]]) -> Coverage:
    files: dict[str, FileCoverage] = {}
    cases: list[Reach] = []
    lost: list[str] = []
    for built in {built.digest: built for _, built in jobs}.values():
        sent: list[tuple[str, str, Path]] = []
        for job in (job for job, kernel in jobs if kernel.digest == built.digest):
            for case, found in _counters(run, job.name).items():
                sent += [(job.name, case, path) for path in found]
                lost += [] if found else [f"{job.name} {case}"]
        decoder = Decoder(gcov=built.gcov, notes=built.notes)
        reached, counted = decoder.decode([path for _, _, path in sent], processes=default_compilers())
        model.add_counts(files, counted.items())
        for (name, case, _), lines in zip(sent, reached, strict=True):
            if lines is None:
                lost.append(f"{name} {case}")
            else:
                cases.append(Reach(name, case, lines))
    return Coverage(
        tree=jobs[0][0].kernel.tree,
        line=line_of_kernels(jobs[0][0].kernel.version),
        sources={name: text for _, built in jobs for name, text in _sources(built.notes, files).items()},
        files=files,
        cases=tuple(cases),
        lost=tuple(lost),
    )


def _sources(notes: Path, names: Iterable[str]) -> dict[str, str]:
    found = {name: notes / name for name in names}
    return {
        name: path.read_text(encoding="utf-8", errors="replace")
        for name, path in found.items()
        if path.is_file()
    }


def _counters(run: Run, job: str) -> Mapping[str, list[Path]]:
    """Return the files of counters of each piece of work of *job* that ran; empty for one that sent none."""
    found: dict[str, list[Path]] = collections.defaultdict(list)
    for result in run.results:
        if result.job != job or not result.vm_dir or result.address.suite in (KERNEL_SUITE, KCONFIG_SUITE):
            continue
        case = work_address(result.address)
        path = Path(run.directory, result.vm_dir, paths.COUNTERS, quote(case, safe=""))
        if path.is_file():
            found[case] += [path] if path not in found[case] else []
        elif result.outcome not in (Outcome.SKIP, Outcome.NOT_RUN):
            found[case] += []
    return found


def line_of_kernels(version: str) -> str:
    """Return the kernel version of a release: `7.3` of `7.3.4` or `7.3.0-rc2`."""
    return ".".join(version.split(".")[:2])


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A run and the coverage of each of its source trees."""

    run: Run
    trees: tuple[Coverage, ...]


def find_coverage(run: str | None, *, again: bool = False) -> Found:
    """Return the coverage of the run called *run*, by default of the newest that has any.

    The counters are decoded if they were not yet, or with *again*.  Raises UsageError for a run without any.
    """
    found = find_run(run) if run is not None else _newest()
    directory = Path(found.directory)
    if again or not (trees := model.load(directory)):
        keep_coverage(directory)
        trees = model.load(directory)
    if not trees:
        raise UsageError(f"run {found.info.id} has no coverage", hint=f"make a run that has: {HOW}")
    return Found(found, trees)


def _newest() -> Run:
    """Return the newest run with counters in a VM's directory.  Raises UsageError without one."""
    for summary in list_runs(paths.runs_dir()):
        if summary.info is not None and any(summary.directory.glob(f"vm/*/{paths.COUNTERS}")):
            return load(summary.directory)
    raise UsageError(f"no run in {paths.runs_dir()} has coverage", hint=f"make a run that has: {HOW}")


def export(found: Found, *, html: Path | None, lcov: Path | None) -> None:
    """Write the reports of the only source tree of *found*.

    Raises UsageError when it has several trees, or a directory is missing.
    """
    from harness.report.files import check_place

    for option, path in (("--html", html), ("--lcov", lcov)):
        if path is not None:
            check_place(option, path)
    if len(found.trees) > 1:
        where = Path(found.run.directory, model.DIRECTORY)
        raise UsageError(
            f"run {found.run.info.id} tested several source trees", hint=f"the reports of each are in {where}"
        )
    write_reports(found.trees[0], html=html, lcov=lcov)


def show_cases(coverage: Coverage, place: str) -> str:
    """Return which cases reach *place*, FILE:LINE or FILE:FUNCTION.  Raises UsageError."""
    name, lines = coverage.find(place)
    cases = coverage.reached(name, lines)
    counted = coverage.files[name].lines
    code = [line for line in lines if line in counted]
    if not code:
        return f"{name}:{ranges(lines)} has no code"
    head = f"{name}:{ranges(code)}: {sum(1 for line in code if counted[line])} of {len(code)} lines ran"
    return "\n".join([f"{head}; {count_of(len(cases), 'case')}", *(f"  {case}" for case in sorted(cases))])


def show_diff(run: Run, coverage: Coverage, revision: str) -> str:
    """Return which lines changed since *revision* in the source of *coverage* ran, and in which cases.

    Raises UsageError when the source is not from git or *revision* does not exist.
    """
    for job in run.jobs:
        # A record names the tree and its digest.
        label, _, identity = job.tree.rpartition(" ")
        if job.commit and coverage.tree in (label, _full(label, identity)):
            break
    else:
        raise UsageError(f"the source of run {run.info.id}, {coverage.tree}, is not from a git repository")
    spec = job.line.partition(SELFTESTS_OF)[0]
    directory = Path(spec if Path(spec).is_dir() else spec.rpartition("@")[0] or spec)
    before = gittree.resolve(directory, revision).commit
    mirror = gittree.provide_mirror(gittree.repository_root(directory))
    if not has_commit(mirror, job.commit):
        raise UsageError(f"the source of run {run.info.id} is no longer in the cache", hint="run it again")
    changes = find_changes(mirror, before, job.commit)
    outside = [change.name for change in changes if change.name not in coverage.files]
    return render_diff(coverage, {c.name: c.after for c in changes if c.name in coverage.files}, outside)


def to_json(found: Found) -> str:
    """Return the tables of all source trees as JSON."""
    trees = [
        {"tree": one.tree, "rows": [dataclasses.asdict(row) for row in one.rows()], "lost": list(one.lost)}
        for one in found.trees
    ]
    return dumps({"run": found.run.info.id, "trees": trees}).rstrip("\n")
