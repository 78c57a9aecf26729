# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness run`: build, boot and test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from harness.base.errors import UsageError
from harness.cli import options, patch_runs
from harness.cli.fleet_options import fleet_options
from harness.cli.given import given, refuse_beside, repeated
from harness.fleet.cluster import FleetWish
from harness.session import planning
from harness.session.pipeline import Request, build, check, collect, plan
from harness.session.running import carry_out
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish, OwnWish, PytestOptions


def _pytest_options(keyword: str | None, **fields: Any) -> PytestOptions:
    if fields["affected"]:
        refuse_beside("--affected chooses the cases", only={"cases", "keyword", "last_failed", "extra"})
    return PytestOptions(keyword=keyword or "", **fields)


@click.command("run", context_settings={"ignore_unknown_options": False})
@options.kernel_wish
@options.variant_option(multiple=True)
@options.topology_option(multiple=True)
@options.suite_option
@options.own_options
@options.machine_options
@options.conduct_options(confirm=False)
@options.keyword_option
@click.option("-x", "exit_first", is_flag=True, help="Stop at the first bad result.")
@click.option(
    "--lf", "last_failed", is_flag=True, help="Run only the cases that failed in this tree's last run."
)
@click.option(
    "--affected",
    is_flag=True,
    help="Run only the cases that reach what changed since the last good run; needs a coverage map.",
)
@options.workers_option
@fleet_options
@click.option(
    "--series",
    metavar="FILE|DIR|MESSAGE-ID",
    help="First apply these patches to a copy of --tree: an mbox, format-patch's directory, or a message-id, "
    "which b4 fetches.  Replies and older versions are left out.",
)
@click.option("--each", is_flag=True, help="With --series: run after every patch, not only after the last.")
@click.option("--watch", is_flag=True, help="Run again each time a source file of --tree is saved.")
@click.option("--about", multiple=True, hidden=True, metavar="KEY=VALUE", help="Record this with the run.")
@click.option("--collect-only", is_flag=True, help="Show what would run; boot nothing.")
@options.verbose_option
@options.junit_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole run as JSON on stdout at the end.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST_ARGS...]")
@options.fold(
    "pytest",
    _pytest_options,
    *("keyword", "exit_first", "last_failed", "affected", "workers", "collect_only", "verbose", "extra"),
)
def command(
    kernel: KernelWish,
    variants: tuple[str, ...],
    topologies: tuple[str, ...],
    suites: tuple[str, ...],
    own: OwnWish,
    machine: MachineWish,
    conduct: Conduct,
    pytest: PytestOptions,
    fleet: FleetWish | None,
    series: str | None,
    each: bool,
    watch: bool,
    about: tuple[str, ...],
    junit: Path | None,
    as_json: bool,
) -> int:
    """Build, boot and test a tree: each --variant on each --topology.

    Arguments after `--` are passed to pytest.

    \b
    Examples:
      vfio-harness run
      vfio-harness run --tree ~/linux --variant group-cdev --variant cdev -n 2
      vfio-harness run --topology iommu-intel --suite probes -k viommu -- --durations=5
      vfio-harness run --program './mytest.c --fast' --needs noiommu-cdev,edu
      vfio-harness run --tree ~/linux@v7.3 --series v2.mbox --each
      vfio-harness run --tree ~/linux --watch --case 'probes/nodes/*'
      vfio-harness run --kernel ~/build --selftests ~/linux
    """
    if watch:
        refuse_beside("--watch starts a run for each save", only=_NOT_WATCHED)
        from harness.cli.watch_runs import watch_tree

        return watch_tree(kernel.tree, repeated(without=("watch",)))
    conduct = dataclasses.replace(conduct, about={**conduct.about, **_facts(about)})
    patch_runs.check_each(series, each=each, as_json=as_json, junit=junit, collect=pytest.collect_only)
    if series is not None:
        repository, patches = patch_runs.apply(kernel.tree, series)
        if each:
            words = repeated(without=("tree", "series", "each"))
            return patch_runs.run_each(repository, patches, words)
        kernel = dataclasses.replace(kernel, tree=patch_runs.spec_of(repository, patches[-1]))
    kernel = planning.take_ready(kernel)
    chosen = planning.runnable(kernel, options.suites_with(own, suites), strict="suites" in given())
    wishes = tuple(
        JobWish(
            kernel=kernel.of(variant),
            machine=machine.on(topology),
            suites=chosen,
            seed=conduct.seed,
            own=own,
        )
        for variant in dict.fromkeys(variants)
        for topology in dict.fromkeys(topologies)
    )
    request = Request(wishes=wishes, conduct=conduct, pytest=pytest, fleet=fleet, junit=junit)
    planned = plan(check(request), expect=not pytest.collect_only)
    return collect(planned) if pytest.collect_only else carry_out(build(planned), as_json=as_json)


_NOT_WATCHED = ("series", "each", "as_json", "collect_only")
"""Parameters that make no sense beside --watch."""


def _facts(about: tuple[str, ...]) -> dict[str, str]:
    for fact in about:
        if "=" not in fact:
            raise UsageError(f"--about {fact}: it has no =", hint="--about KEY=VALUE")
    return dict(fact.split("=", 1) for fact in about)
