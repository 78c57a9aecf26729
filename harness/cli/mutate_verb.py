# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness mutate`: plant faults in a kernel, and see which of them the cases notice."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from harness.base import paths
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode, InfraError, Interrupted, UsageError, nearest
from harness.base.files import write_atomic
from harness.base.output import emit, tell
from harness.base.words import count_of
from harness.bisect.state import StepOptions
from harness.cli import options
from harness.cli.fleet_options import FLEET, commit_fleet_options
from harness.cli.given import refuse_beside
from harness.cli.moment import parse_deadline
from harness.cli.testers import commit_testers, refuse
from harness.fleet.cluster import FleetWish
from harness.kernel import gittree
from harness.kernel.changes import has_commit
from harness.kernel.trees import open_tree, read_version
from harness.mutate.choose import Source, changed_faults, named_faults, read_equivalents, sample
from harness.mutate.faults import Fault
from harness.mutate.mutation import STATE_NAME, Fate, Mutation, Mutator, load_mutation
from harness.mutate.report import render_json, summary
from harness.results import owned
from harness.results.store import new_run_id
from harness.session import planning
from harness.session.coverage import HOW, line_of_kernels
from harness.session.reporting import ask
from harness.session.wishes import KernelWish, MachineWish
from harness.suites.catalogue import check_patterns

REPORT_NAME = "report.txt"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Where faults are to be planted, and how many."""

    targets: tuple[str, ...]
    diff: str | None
    survivors: str | None
    limit: int | None
    seed: int

    def check(self) -> None:
        """Refuse a place that is not named, or named in two ways."""
        ways = [bool(self.targets), bool(self.diff), bool(self.survivors)]
        if sum(ways) != 1 or (self.diff or "").startswith(".."):
            raise click.UsageError(
                "say where to plant faults: FILE, FILE:FUNCTION, --diff REV[..REV] or --survivors ID"
            )

    def find(self, tree: str | None) -> tuple[Source, list[Fault]]:
        """Return the source, and the faults that were asked for; UsageError when there are none."""
        if self.survivors is not None:
            if tree is not None:
                raise UsageError("--survivors plants in the source of that mutation", hint="leave --tree out")
            earlier = _begun(self.survivors)
            source, what = Source(Path(earlier.root), earlier.commit), f"{earlier.id}: nothing survived"
            faults = [mutant.fault for mutant in earlier.fates(Fate.SURVIVED)]
        elif self.diff is None:
            source = Source.of(open_tree(tree))
            faults, what = named_faults(source, self.targets), " and ".join(self.targets)
        else:
            old, dots, new = re.split(r"(\.{2,3}|$)", self.diff, maxsplit=1)
            tree = tree or "."
            path = paths.expanded(tree)
            directory = path if path.is_dir() else paths.expanded(tree.rsplit("@", 1)[0])
            if tree.startswith("debian:"):
                hint = "give --tree a git repository of Linux"
                raise UsageError(f"--diff {self.diff}: {tree} is a package without a history", hint=hint)
            if new and directory != path:
                both = f"--diff {self.diff} names the source, and --tree {tree} as well"
                raise UsageError(both, hint=f"give --tree {directory}")
            source = Source.of(open_tree(f"{tree}@{new}" if new else tree))
            if dots == "...":
                at = "HEAD" if directory == path else tree.rpartition("@")[2]
                old = gittree.merge_base(directory, old, new or at)
            faults, what = changed_faults(source, directory, old), f"the C lines of --diff {self.diff}"
        if not faults:
            raise UsageError(f"no fault can be planted in {what}")
        return source, faults


_ASKED = (
    click.argument("targets", nargs=-1, metavar="[FILE[:FUNCTION]...]"),
    click.option(
        "--diff",
        metavar="REV[..REV]",
        help="Plant faults only in C lines that changed since REV, in the tree or in the second REV; with "
        "three dots since their merge base.",
    ),
    click.option(
        "--survivors",
        metavar="ID",
        help="Plant only what survived in an earlier mutation, in its source: with new cases, or other "
        "topologies.",
    ),
    click.option(
        "--limit", type=click.IntRange(min=1), metavar="N", help="Plant only N faults, chosen at random."
    ),
    click.option("--seed", type=int, default=1, help="Seed of that choice."),
)


@click.command("mutate")
@options.built_kernel_wish
@options.variant_option(multiple=False)
@options.topology_option(multiple=True)
@options.suite_option
@options.case_option
@options.keyword_option
@options.vm_options
@click.option(
    "--deadline", metavar="WHEN", help="Plant no fault after this time: 8h, 06:30, '2026-11-26 06:30'."
)
@click.option(
    "--equivalents",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Faults that no test can see, which are not planted: a YAML mapping of fault id to reason.",
)
@click.option("--continue", "go_on", metavar="ID", help="Continue an interrupted mutation, with its options.")
@click.option(
    "--plan", "plan_only", is_flag=True, help="List the faults that would be planted; build nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@commit_fleet_options
@options.fold(
    "asked",
    lambda **fields: _Asked(**fields),
    "targets",
    "diff",
    "survivors",
    "limit",
    "seed",
    options=_ASKED,
)
def command(
    kernel: KernelWish,
    variant: str,
    topologies: tuple[str, ...],
    suites: tuple[str, ...],
    cases: tuple[str, ...],
    keyword: str | None,
    machine: MachineWish,
    asked: _Asked,
    deadline: str | None,
    equivalents: Path | None,
    go_on: str | None,
    plan_only: bool,
    as_json: bool,
    fleet: FleetWish | None,
) -> int:
    """Plant faults in a kernel, one at a time, and see which of them the cases notice.

    A fault is one wrong change: a condition negated, a check dropped, an errno swapped, a bound moved, a
    statement removed, a flag lost, a lock held shorter.  Each faulty kernel is built, and the cases run until
    one fails, on each topology where they apply.  A fault that survives shows what no case tests.  The tree
    is never written to.

    Exit codes: 0 every fault was noticed; 1 some survived; 2, 3 and 4 as for run, 3 also with untested ones.

    \b
    Examples:
      vfio-harness mutate --tree ~/linux drivers/vfio/vfio_main.c:vfio_df_open
      vfio-harness mutate --tree ~/linux --diff v7.3..topic --limit 50
      vfio-harness mutate --topology edu --topology iommu-intel drivers/vfio/group.c --case 'probes/group/*'
      vfio-harness mutate --continue mutate-20261130-101500-1f0c --fleet tls://build1:8786
    """
    until = parse_deadline(deadline)
    if plan_only and as_json:
        raise UsageError("--plan prints text only: leave --json out")
    if go_on is not None:
        refuse_beside("--continue uses the options that it was started with", _WITH_CONTINUE)
        mutation = _going_on(go_on)
        known = read_equivalents(equivalents, mutation.faults)
    else:
        kernel = kernel.of(variant)
        machines = [machine.on(topology) for topology in dict.fromkeys(topologies)]
        steps = StepOptions(
            kernel=dataclasses.replace(kernel.absolute(), tree=None),
            machine=_machine_words(machines),
            suites=suites,
            cases=cases,
            keyword=keyword or "",
        )
        check_patterns(cases, suites)
        asked.check()
        refuse(fleet, steps)
        tell(f"accelerator: {_check(kernel, machines)}")
        source, faults = asked.find(kernel.tree)
        known = read_equivalents(equivalents, faults)
        chosen = sample([fault for fault in faults if fault.id not in known], asked.limit, asked.seed)
        if plan_only:
            return _show(sorted(chosen, key=faults.index), len(faults))
        mutation = _begin(source, steps, chosen, faults, known)
    return _mutate(mutation, known, until, fleet, as_json=as_json)


_WITH_CONTINUE = {"go_on", "deadline", "equivalents", "as_json", *FLEET}


def _machine_words(machines: Sequence[MachineWish]) -> tuple[str, ...]:
    others = (("--topology", other.absolute().topology) for other in machines[1:])
    return (*machines[0].options(), *itertools.chain.from_iterable(others))


def _begun(name: str) -> Mutation:
    """Return the mutation *name*; UsageError when there is none, or its source is gone."""
    known = {path.parent.name: path.parent for path in paths.runs_dir().glob(f"mutate-*/{STATE_NAME}")}
    if name not in known:
        hint = nearest(name, known) if known else "start one: vfio-harness mutate FILE:FUNCTION"
        raise UsageError(f"there is no mutation {name!r} in {paths.runs_dir()}", hint=hint)
    mutation = load_mutation(known[name])
    if not has_commit(gittree.provide_mirror(Path(mutation.root)), mutation.commit):
        gone = f"neither {mutation.root} nor the cache has commit {mutation.commit[:12]}"
        raise UsageError(f"the source of {name} is gone: {gone}", hint="start a new one")
    return mutation


def _going_on(name: str) -> Mutation:
    mutation = _begun(name)
    tell(f"continuing {name}: {count_of(len(mutation.mutants), 'fault')} tested so far")
    return mutation


def _reached(source: Source) -> Mapping[str, frozenset[str]]:
    """Return the functions that each case reaches, as FILE:FUNCTION; empty without a coverage map."""
    line = line_of_kernels(read_version(source.read("Makefile")))
    functions_by_case = ask(lambda history: history.map.read(line))
    if not functions_by_case:
        tell(f"no coverage map of kernel version {line}: every case runs for each fault; to make one: {HOW}")
    return functions_by_case


def _show(faults: Sequence[Fault], found: int) -> int:
    for fault in faults:
        emit(f"{fault.id} {fault.label}")
    tell(f"{len(faults)} of {count_of(found, 'fault')}")
    return ExitCode.GOOD


def _check(kernel: KernelWish, machines: Sequence[MachineWish]) -> str:
    """Refuse impossible values; return the accelerator with the reason for it."""
    planning.check_kernel(kernel)
    qemu, choice = planning.choose(machines[0], kernel.arch)
    for machine in machines:
        planning.check_machine(machine, qemu)
    return choice.reason


def _begin(
    source: Source,
    steps: StepOptions,
    chosen: tuple[Fault, ...],
    faults: Sequence[Fault],
    known: Mapping[str, str],
) -> Mutation:
    """Save a new mutation of *chosen*, and of those of *faults* that are *known* as equivalent."""
    mutation = Mutation(
        id=f"mutate-{new_run_id(datetime.datetime.now(datetime.UTC))}",
        root=os.fspath(source.root),
        commit=source.commit,
        options=steps,
        faults=(*chosen, *(fault for fault in faults if fault.id in known)),
        found=len(faults),
    )
    directory = paths.runs_dir() / mutation.id
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise InfraError(f"cannot write {error.filename or directory}: {error.strerror}") from error
    mutation.save(directory)
    tell(f"planting {len(chosen)} of {count_of(len(faults), 'fault')}; everything is in {directory}")
    return mutation


def _mutate(
    mutation: Mutation,
    known: Mapping[str, str],
    until: float | None,
    fleet: FleetWish | None,
    *,
    as_json: bool,
) -> int:
    source = Source(Path(mutation.root), mutation.commit)
    deadline = Deadline.after(until - time.time()) if until is not None else None
    directory, resume = paths.runs_dir() / mutation.id, f"vfio-harness mutate --continue {mutation.id}"
    made = commit_testers(
        fleet,
        directory,
        source.mirror,
        mutation.options,
        mirror=lambda: source.mirror,
        commits=lambda: (source.commit,),
        resume=resume,
    )
    try:
        # Its last owner may have tested more of it since it was read.
        with owned(directory), made as tester:
            mutation = load_mutation(directory).with_equivalents(known)
            mutation.save(directory)
            mutation = Mutator(mutation, directory, _reached(source), tester, deadline).run()
            text = summary(mutation, source.read)
            write_atomic(directory / REPORT_NAME, text + "\n")
    except KeyboardInterrupt as error:
        raise Interrupted(f"to continue: {resume}") from error
    emit(render_json(mutation).rstrip("\n") if as_json else text)
    if mutation.left:
        tell(f"to continue: {resume}")
    if mutation.fates(Fate.SURVIVED):
        return ExitCode.CASE_FAILED
    if mutation.left:
        return ExitCode.INFRA
    return ExitCode.KERNEL if mutation.score is None else ExitCode.GOOD
