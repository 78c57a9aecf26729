# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness matrix`: a whole night's coverage in one run."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from harness import output
from harness.cli import options
from harness.cli.moment import parse_moment
from harness.errors import UsageError, nearest
from harness.matrix import SHIPPED, Entry, Matrix, load_matrix, matrix_names
from harness.matrix import shards as cutting
from harness.matrix.recipes import SERVICES, recipe
from harness.plan import Isolation
from harness.results import load, owned
from harness.session.background import find_run
from harness.session.engine import PytestOptions
from harness.session.planning import seat_of
from harness.session.session import Session
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish, load_wishes
from harness.suites.catalogue import check_patterns


def _complete_matrix(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(name, help=summary)
        for name, summary in matrix_names().items()
        if name.startswith(incomplete)
    ]


@click.command("matrix")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=_complete_matrix)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Take the matrix from this file in place of the shipped one.",
)
@click.option(
    "--tree", "trees", multiple=True, metavar="TREE", help="As of run; in place of the matrix's. Repeatable."
)
@options.case_option
@click.option(
    "--plan",
    "plan_only",
    is_flag=True,
    help="Show what would be built and run; builds no kernel and boots nothing, but downloads and "
    "unpacks a source that is not here yet.",
)
@click.option("--shard", metavar="K/N", help="Only the K-th of N parts, for N machines.")
@click.option(
    "--deadline", metavar="WHEN", help="Begin no case and end builds after it: 8h, 06:30, '2026-11-26 06:30'."
)
@click.option(
    "--resume",
    metavar="RUN",
    shell_complete=options.complete_run,
    help="Go on with a run that was cut short, and do nothing again that it has finished.",
)
@click.option(
    "--emit",
    type=click.Choice(SERVICES),
    help="Print the CI file that runs this matrix with all the options given here; paths in them are seen "
    "from this project's checkout.",
)
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="With --emit: on how many machines.",
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Parallel compilers.")
@options.machine_options
@options.workers_option
@options.isolation_option
@options.confirm_option(default=True)
@options.junit_option
@options.seed_option
@options.compare_option
@options.accept_option("this run")
@options.known_issues_option
@click.option("-v", "verbose", is_flag=True, help="One line per case while it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the run, or the plan, as JSON on stdout.")
def command(
    name: str | None,
    path: Path | None,
    trees: tuple[str, ...],
    cases: tuple[str, ...],
    plan_only: bool,
    shard: str | None,
    deadline: str | None,
    resume: str | None,
    emit: str | None,
    shards: int,
    jobs: int | None,
    machine: MachineWish,
    workers: int | None,
    isolation: str,
    confirm: bool,
    junit: Path | None,
    seed: int,
    compare: bool,
    accept: str | None,
    known_issues: Path | None,
    verbose: bool,
    as_json: bool,
) -> int:
    """Build, boot and test every job of a matrix; see: list matrices.

    Kernels are built while others are tested, what fails is tried again in a fresh VM, and the verdict is
    about what changed since the last good run of the same line.

    \b
    Examples:
      vfio-harness matrix smoke --tree ~/linux
      vfio-harness matrix nightly --plan
      vfio-harness matrix nightly --tree debian:7.3 --tree debian:7.2 --deadline 06:30
      vfio-harness matrix --resume 20261125-221503-1f0c
      vfio-harness matrix nightly --emit github --shards 8 > .github/workflows/nightly.yml
    """
    until = _until(deadline)
    passed_on = PytestOptions(workers=workers, verbose=verbose)
    if emit is None and "shards" in _given():
        raise UsageError("--shards is for --emit", hint="run one part with --shard K/N")
    if plan_only and accept is not None:
        raise UsageError("--plan runs nothing: there is nothing to --accept")
    if resume is not None:
        options.refuse_beside("--resume goes on with what was asked for then", _WITH_RESUME)
        with _resumed(resume, until, junit, accept) as session:
            return _run(session, passed_on, plan_only=plan_only, as_json=as_json)
    matrix = _chosen(name, path, trees)
    if emit is not None:
        return _emit(emit, matrix, cases, shards)
    entries = _cut(matrix.entries, shard)
    wishes = _wishes(entries, machine, jobs, seed)
    others = _wishes([one for one in matrix.entries if one not in entries], machine, jobs, seed)
    conduct = Conduct(
        cases=cases,
        seed=seed,
        isolation=Isolation(isolation),
        confirm=confirm,
        until=until,
        compare=compare,
        known_issues=known_issues,
        about={"matrix": matrix.name, **({"shard": shard} if shard else {})},
        elsewhere=tuple(map(seat_of, others)),
    )
    session = Session(wishes, conduct, junit=junit, accept=accept)
    return _run(session, passed_on, plan_only=plan_only, as_json=as_json)


def _run(session: Session, passed_on: PytestOptions, *, plan_only: bool, as_json: bool) -> int:
    session.check()
    session.prepare(build=not plan_only)
    if plan_only:
        return session.show_plan(passed_on, as_json=as_json)
    session.build()
    return session.test(passed_on, as_json)


def _until(deadline: str | None) -> float | None:
    if deadline is None:
        return None
    try:
        return parse_moment(deadline, datetime.datetime.now().astimezone()).timestamp()
    except UsageError as error:
        raise UsageError(f"--deadline: {error.message}", hint=error.hint) from error


def _chosen(name: str | None, path: Path | None, trees: Sequence[str]) -> Matrix:
    path = path or SHIPPED
    if name is None:
        raise UsageError("which matrix?", hint=nearest("", matrix_names(path)))
    return load_matrix(name, path, trees)


def _cut(entries: Sequence[Entry], part: str | None) -> tuple[Entry, ...]:
    return cutting.shard(entries, *cutting.parse_shard(part)) if part is not None else tuple(entries)


def _wishes(entries: Sequence[Entry], machine: MachineWish, jobs: int | None, seed: int) -> list[JobWish]:
    return [
        JobWish(
            kernel=KernelWish(tree=entry.tree, variant=entry.variant, addons=entry.addons, jobs=jobs),
            machine=machine.on(entry.topology),
            suites=entry.suites,
            seed=seed,
        )
        for entry in entries
    ]


def _given() -> dict[str, click.Parameter]:
    """What the command line says itself, by name."""
    context = click.get_current_context()
    return {
        str(parameter.name): parameter
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE
    }


_NOT_EMITTED = {"plan_only", "as_json", "shard", "junit", "accept"}
"""Options that a CI file says itself, or that are about one run here."""


def _emit(service: str, matrix: Matrix, cases: Sequence[str], shards: int) -> int:
    """Print the CI file for *service*; it says again every option that the command line says."""
    check_patterns(cases, tuple(dict.fromkeys(suite for entry in matrix.entries for suite in entry.suites)))
    words: list[str] = []
    for name, parameter in _given().items():
        if name in _NOT_EMITTED:
            raise UsageError(f"--emit prints a CI file, in which {parameter.opts[0]} has no place")
        if isinstance(parameter, click.Option) and name not in ("emit", "shards"):
            words += _words(parameter, click.get_current_context().params[name])
    for word in words:
        if word.startswith("/"):
            output.tell(f"{word} must be there where the CI file is run")
    output.emit(recipe(service, matrix, words, shards).rstrip("\n"))
    return 0


def _words(option: click.Option, value: object) -> list[str]:
    """What says *option* with *value* on a command line."""
    if option.is_flag:
        return [option.opts[-1] if value else option.secondary_opts[-1]]
    values = value if isinstance(value, tuple) else (value,)
    return [word for one in values for word in (option.opts[-1], str(one))]


_WITH_RESUME = {"resume", "deadline", "accept", "junit", "workers", "verbose", "as_json", "plan_only"}
"""Options that say how to go on; all others are those of the run."""


@contextlib.contextmanager
def _resumed(name: str, until: float | None, junit: Path | None, accept: str | None) -> Iterator[Session]:
    """A session that goes on with the run called *name*, which is ours alone meanwhile."""
    directory = Path(find_run(name).directory)
    with owned(directory):
        # Only now: who had it before us may have come further.
        run = load(directory)
        wishes, conduct = load_wishes(directory)
        yield Session(wishes, conduct.ending(until), junit=junit, goes_on=run, accept=accept)
