# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness run`: build, boot and test."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.cli import options, series_runs
from harness.plan import Isolation
from harness.session.engine import PytestOptions
from harness.session.session import Session
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish


@click.command("run", context_settings={"ignore_unknown_options": False})
@options.tree_option
@options.variant_option(multiple=True)
@options.topology_option(multiple=True)
@options.suite_option
@options.case_option
@options.kernel_options
@options.machine_options
@options.keyword_option
@click.option("-x", "exit_first", is_flag=True, help="Stop at the first bad result.")
@click.option("--lf", "last_failed", is_flag=True, help="Only what failed last time.")
@options.workers_option
@options.isolation_option
@options.confirm_option(default=False)
@click.option(
    "--series",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Apply these patches (an mbox, or format-patch's directory) to --tree first, in the cache.",
)
@click.option("--each", is_flag=True, help="With --series: run after every patch, not only after the last.")
@click.option("--collect-only", is_flag=True, help="Show what would run; boots nothing.")
@click.option("-v", "verbose", is_flag=True, help="One line per case while it runs.")
@options.junit_option
@options.seed_option
@options.compare_option
@options.known_issues_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole run as JSON on stdout at the end.")
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def command(
    tree: str | None,
    variants: tuple[str, ...],
    topologies: tuple[str, ...],
    suites: tuple[str, ...],
    cases: tuple[str, ...],
    addons: tuple[str, ...],
    configs: tuple[Path, ...],
    jobs: int | None,
    machine: MachineWish,
    keyword: str | None,
    exit_first: bool,
    last_failed: bool,
    workers: int | None,
    isolation: str,
    confirm: bool,
    series: Path | None,
    each: bool,
    collect_only: bool,
    verbose: bool,
    junit: Path | None,
    seed: int,
    compare: bool,
    known_issues: Path | None,
    as_json: bool,
    pytest_args: tuple[str, ...],
) -> int:
    """Build, boot and test: every variant on every topology.

    Anything after `--` goes to pytest as it is.

    \b
    Examples:
      vfio-harness run
      vfio-harness run --tree ~/linux --variant group-cdev --variant cdev -n 2
      vfio-harness run --topology iommu-intel --suite probes -k viommu -- --durations=5
      vfio-harness run --tree ~/linux@v7.3 --series v2.mbox --each
    """
    series_runs.check_each(series, each=each, as_json=as_json, junit=junit, collect=collect_only)
    if series is not None:
        repository, patches = series_runs.apply(tree, series)
        if each:
            return series_runs.run_each(repository, patches, series_runs.without_series(sys.argv[1:]))
        tree = series_runs.spec_of(repository, patches[-1])
    kernels = [
        KernelWish(tree=tree, variant=v, addons=addons, configs=configs, jobs=jobs)
        for v in dict.fromkeys(variants)
    ]
    wishes = [
        JobWish(kernel=kernel, machine=machine.on(topology), suites=tuple(dict.fromkeys(suites)), seed=seed)
        for kernel in kernels
        for topology in dict.fromkeys(topologies)
    ]
    passed_on = PytestOptions(
        keyword=keyword,
        exit_first=exit_first,
        last_failed=last_failed,
        workers=workers,
        collect_only=collect_only,
        verbose=verbose,
        extra=pytest_args,
    )
    conduct = Conduct(
        cases=cases,
        seed=seed,
        isolation=Isolation(isolation),
        confirm=confirm,
        compare=compare,
        known_issues=known_issues,
    )
    session = Session(wishes, conduct, junit=junit)
    session.check(keyword or "")
    session.prepare(expect=not collect_only)
    if collect_only:
        return session.collect(passed_on)
    session.build()
    return session.test(passed_on, as_json)
