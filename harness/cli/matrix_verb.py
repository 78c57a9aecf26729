# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness matrix`: run all jobs of a matrix."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from harness.base import output
from harness.base.errors import UsageError, nearest
from harness.cli import options
from harness.cli.fleet_options import FLEET, fleet_options
from harness.cli.given import given, refuse_beside, repeated
from harness.cli.moment import parse_deadline
from harness.fleet.cluster import FleetWish
from harness.matrix import SHIPPED, Entry, Matrix, load_matrix, matrix_names, with_coverage
from harness.matrix.recipes import SERVICES, recipe
from harness.matrix.shards import parse_shard, shard
from harness.results import owned
from harness.results.store import load
from harness.session import planning
from harness.session.pipeline import Request, build, check, plan, show_plan
from harness.session.planning import cell_of
from harness.session.reporting import find_run
from harness.session.running import carry_out
from harness.session.wishes import (
    Conduct,
    JobWish,
    KernelWish,
    MachineWish,
    OwnWish,
    PytestOptions,
    load_wishes,
)
from harness.suites.catalogue import check_patterns


@click.command("matrix")
@click.argument(
    "name",
    required=False,
    metavar="[NAME]",
    shell_complete=options.completing(lambda: matrix_names().items()),
)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=SHIPPED,
    show_default=False,
    metavar="FILE",
    help="Read the matrix from this file instead of the shipped one.",
)
@click.option(
    "--tree",
    "trees",
    multiple=True,
    metavar="TREE",
    help="As in run; replaces the trees of the matrix. Repeatable.",
)
@options.toolchain_option(multiple=True, words=" Repeatable; replaces the toolchains of the matrix.")
@options.arch_option(multiple=True, words=" Repeatable; replaces the architectures of the matrix.")
@click.option(
    "--plan",
    "plan_only",
    is_flag=True,
    help="Show what would be built and run. Builds no kernel and boots nothing, but downloads and unpacks a "
    "source that is missing.",
)
@click.option("--shard", "part", metavar="K/N", help="Only the K-th of N parts, for N machines.")
@click.option(
    "--deadline",
    metavar="WHEN",
    help="Start no case and stop builds after this time: 8h, 06:30, '2026-11-26 06:30'.",
)
@click.option(
    "--resume",
    metavar="RUN",
    shell_complete=options.complete_run,
    help="Resume an interrupted run; finished work is not repeated.",
)
@click.option(
    "--emit",
    type=click.Choice(SERVICES),
    help="Print the CI file that runs this matrix with the other options given; paths in them are relative "
    "to this project's checkout.",
)
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    default=4,
    metavar="N",
    help="With --emit: number of machines.",
)
@click.option(
    "--coverage",
    is_flag=True,
    help="Build all kernels with coverage counters, as once a week; jobs of LLVM are left out.",
)
@options.own_options
@options.fold(
    "kernel",
    options.make_kernel_wish,
    *("compilers", "ready", "modules", "kernel_config", "selftests"),
    options=(options.compilers_option, options.ready_options, options.selftests_option),
)
@options.machine_options
@options.conduct_options(confirm=True)
@options.workers_option
@fleet_options
@options.junit_option
@options.accept_option("this run")
@options.verbose_option
@click.option("--json", "as_json", is_flag=True, help="Print the run, or the plan, as JSON on stdout.")
@options.fold("pytest", PytestOptions, "workers", "verbose")
def command(
    name: str | None,
    path: Path,
    trees: tuple[str, ...],
    toolchains: tuple[str, ...],
    arches: tuple[str, ...],
    plan_only: bool,
    part: str | None,
    deadline: str | None,
    resume: str | None,
    emit: str | None,
    shards: int,
    coverage: bool,
    kernel: KernelWish,
    own: OwnWish,
    machine: MachineWish,
    conduct: Conduct,
    pytest: PytestOptions,
    fleet: FleetWish | None,
    junit: Path | None,
    accept: str | None,
    as_json: bool,
) -> int:
    """Build, boot and test every job of a matrix; see: list matrices.

    Kernels are built while others are tested, failed cases are repeated in a fresh VM, and the run is
    compared with the last good run of the same --tree.

    \b
    Examples:
      vfio-harness matrix smoke --tree ~/linux
      vfio-harness matrix nightly --plan
      vfio-harness matrix nightly --tree debian:7.3 --tree debian:7.2 --deadline 06:30
      vfio-harness matrix nightly --fleet tls://build1:8786 --fleet-keys ~/fleet
      vfio-harness matrix --resume 20261125-221503-1f0c
      vfio-harness matrix nightly --emit github --shards 8 > .github/workflows/nightly.yml
    """
    if emit is None and "shards" in given():
        raise UsageError("--shards is for --emit", hint="run one part with --shard K/N")
    if plan_only and accept is not None:
        raise UsageError("--plan runs nothing: there is nothing to --accept")
    conduct = dataclasses.replace(conduct, until=parse_deadline(deadline))
    request = Request(wishes=(), conduct=conduct, pytest=pytest, fleet=fleet, junit=junit, accept=accept)
    if resume is not None:
        refuse_beside("--resume uses the options of that run", _WITH_RESUME)
        with _resumed(resume, request) as request:
            return _run(request, plan_only=plan_only, as_json=as_json)
    if name is None:
        raise UsageError("which matrix?", hint=nearest("", matrix_names(path)))
    matrix = load_matrix(name, path, trees, toolchains, arches)
    matrix = with_coverage(matrix) if coverage else matrix
    if emit is not None:
        return _emit(emit, matrix, conduct.cases, shards)
    request = _request(request, matrix, part, machine, own, planning.take_ready(kernel))
    return _run(request, plan_only=plan_only, as_json=as_json)


def _run(request: Request, *, plan_only: bool, as_json: bool) -> int:
    planned = plan(check(request), build=not plan_only)
    if plan_only:
        return show_plan(planned, as_json=as_json)
    return carry_out(build(planned), as_json=as_json)


def _request(
    request: Request, matrix: Matrix, part: str | None, machine: MachineWish, own: OwnWish, kernel: KernelWish
) -> Request:
    """Return *request* with the jobs of *matrix*, or of one *part* of it."""
    if kernel.ready is not None:
        matrix = _with_ready(matrix, kernel)

    def wish(entry: Entry) -> JobWish:
        return JobWish(
            kernel=entry.kernel(kernel) if kernel.ready is None else kernel,
            machine=machine.on(entry.topology),
            suites=own.added_to(entry.suites),
            seed=request.conduct.seed,
            own=own,
        )

    mine = shard(matrix.entries, *parse_shard(part)) if part is not None else matrix.entries
    conduct = dataclasses.replace(
        request.conduct,
        about={"matrix": matrix.name, **({"shard": part} if part else {})},
        elsewhere=tuple(cell_of(wish(entry)) for entry in matrix.entries if entry not in mine),
    )
    return dataclasses.replace(request, wishes=tuple(map(wish, mine)), conduct=conduct)


def _with_ready(matrix: Matrix, kernel: KernelWish) -> Matrix:
    """Return *matrix* with the finished *kernel* once on each topology, with all suites that run there."""
    suites: dict[str, dict[str, None]] = {}
    for entry in (one for one in matrix.entries if one.arch == kernel.arch):
        suites.setdefault(entry.topology, {}).update(dict.fromkeys(entry.suites))
    every = tuple(dict.fromkeys(suite for names in suites.values() for suite in names))
    runnable = planning.runnable(kernel, every)
    entries = tuple(
        Entry(
            tree=None,
            variant=kernel.variant,
            addons=kernel.addons,
            arch=kernel.arch,
            topology=topology,
            suites=tuple(name for name in names if name in runnable),
        )
        for topology, names in suites.items()
    )
    return dataclasses.replace(matrix, entries=tuple(entry for entry in entries if entry.suites))


_NOT_EMITTED = {"plan_only", "as_json", "part", "junit", "accept"}
"""Options that the CI file sets itself, or that are only about a run on this host."""


def _emit(service: str, matrix: Matrix, cases: Sequence[str], shards: int) -> int:
    """Print the CI file for *service*, with every option of the command line."""
    check_patterns(cases, tuple(dict.fromkeys(suite for entry in matrix.entries for suite in entry.suites)))
    refuse_beside("--emit prints a CI file for other hosts", only=_NOT_EMITTED)
    _, *words = repeated(without=("name", "emit", "shards"))
    for word in words:
        if word.startswith("/"):
            output.tell(f"{word} must exist where the CI file is run")
    output.emit(recipe(service, matrix, words, shards).rstrip("\n"))
    return 0


_WITH_RESUME = {"resume", "deadline", "accept", "junit", "workers", "verbose", "as_json", "plan_only", *FLEET}
"""Options that may change on resume; all others are those of the run."""


@contextlib.contextmanager
def _resumed(name: str, request: Request) -> Iterator[Request]:
    """Lock the run called *name* and yield *request* with the options saved in that run, to resume it."""
    directory = Path(find_run(name).directory)
    with owned(directory):
        # Read it only after locking it: its last owner may have finished more of it.
        before = load(directory)
        wishes, conduct = load_wishes(directory)
        conduct = dataclasses.replace(conduct, until=request.conduct.until)
        yield dataclasses.replace(request, wishes=wishes, conduct=conduct, before=before)
